"""Make docs/evidence-page.png: a picture of an evidence page, from three months of events.

    make browser-test      # installs playwright
    .venv/bin/python -m dev.evidence_page

The organization `acme` has several tools, a month that was pruned, and a person who was erased.
"""

import os
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from playwright.sync_api import sync_playwright

from dev import postgres
from dev.service import PROGRAM, ROOT, set_up

CHROMIUM = "/usr/bin/chromium"

FILL = """
    INSERT INTO audit_events (org_id, api_key_id, type, tool_name, action, "timestamp", metadata, received_at)
    SELECT
        'acme', 1,
        CASE n % 4 WHEN 0 THEN 'completion' WHEN 1 THEN 'embedding' ELSE 'tool_call' END,
        (ARRAY['gpt-4o', 'text-embedding-3-small', 'send_email', 'generate_report'])[n % 4 + 1],
        CASE WHEN n % 17 = 2 THEN 'deny' WHEN n % 11 = 0 THEN 'alert' WHEN n % 3 = 0 THEN 'allow' ELSE 'log' END,
        day + n * interval '1 minute',
        jsonb_build_object('userId', 'user_' || n % 50),
        day + n * interval '1 minute'
    FROM generate_series(current_date - 100, current_date - 1, interval '1 day') AS days (day),
        generate_series(1, (extract(day FROM day)::int * 7) % 60) AS n
    WHERE extract(isodow FROM day) < 6
"""


def make_pack(url: str, output: Path) -> None:
    """Fill a database, and write the evidence of it into a new folder."""
    set_up(url, "acme", None)

    def igris(*arguments: str) -> str:
        environ = {**os.environ, "DATABASE_URL": url}
        return subprocess.run([PROGRAM, *arguments], env=environ, check=True, stdout=subprocess.PIPE, text=True).stdout

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(FILL)
    igris("seal")
    before = f"{datetime.now(UTC) - timedelta(days=90):%Y-%m-%d}"
    igris("prune", "--yes", "--before", before, "--reason", "retention of 90 days")
    igris("erase", "--org", "acme", "--metadata", "userId=user_42", "--since", "20d", "--reason", "request 17")
    heads = output.with_name("heads.ndjson")
    heads.write_text(igris("verify", "--json"))
    igris("evidence", "--org", "acme", "--heads", str(heads), "--output", str(output))


def main() -> None:
    with postgres.temporary() as server, tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        make_pack(server.url, Path(folder) / "acme")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1060}, color_scheme="light")
        page.goto((Path(folder) / "acme/index.html").as_uri())
        page.screenshot(path=ROOT / "docs/evidence-page.png")
        browser.close()


if __name__ == "__main__":
    main()
