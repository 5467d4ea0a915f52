.PHONY: help run test lint

PYTHON ?= python3
PORT ?= 8000
export PORT

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/installed ## Serve on 127.0.0.1:$PORT (8000), with a PostgreSQL of its own under ./var
	@.venv/bin/python -m dev.run

test: .venv/installed ## Run all tests; against another PostgreSQL with TEST_DATABASE_URL
	.venv/bin/python -m pytest

lint: .venv/installed ## Check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@
