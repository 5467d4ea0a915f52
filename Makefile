.PHONY: help run test lint fuzz crash-test bench

PYTHON ?= python3
PORT ?= 8000
export PORT

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/installed ## Serve on 127.0.0.1:$PORT (8000), with a PostgreSQL of its own under ./var
	@.venv/bin/python -m dev.run

test: .venv/installed ## Run all tests; against another PostgreSQL with TEST_DATABASE_URL
	.venv/bin/python -m pytest

fuzz: .venv/installed ## Send what no client should, for MINUTES (5) a test
	FUZZ_MINUTES=$(or $(MINUTES),5) .venv/bin/python -m pytest -o faulthandler_timeout=0 tests/test_fuzz.py

crash-test: .venv/installed ## Kill workers and PostgreSQL under load for SECONDS (120), and count what was lost
	CRASH_SECONDS=$(or $(SECONDS),120) .venv/bin/python -m pytest -o faulthandler_timeout=0 tests/test_outages.py -k kills

bench: .venv/installed ## Measure the service beside others: bench/results.md, bench/results.svg (10 minutes)
	.venv/bin/python -m pip install --quiet --requirement bench/requirements.txt
	.venv/bin/python -m bench.run

lint: .venv/installed ## Check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@
