FROM python:3.13-slim AS install
WORKDIR /opt/igris-ingest
COPY requirements.txt .
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir --require-hashes --requirement requirements.txt

FROM python:3.13-slim
RUN useradd --system --no-create-home igris-ingest
WORKDIR /opt/igris-ingest
COPY --from=install /opt/igris-ingest/.venv .venv
COPY *.py schema.sql openapi.yaml Procfile igris-ingest ./
COPY commands commands
COPY migrations migrations
COPY deploy deploy
ENV PATH=/opt/igris-ingest:/opt/igris-ingest/.venv/bin:$PATH HOST=0.0.0.0 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER igris-ingest
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\") or 8000}/healthz', timeout=2)"]
# with HOST above other containers reach it; nothing else should: see compose.yaml
CMD ["gunicorn", "app:create_app()"]
