.PHONY: help run test test-fast browser-test clients-test lint lock fuzz crash-test bench

PYTHON ?= python3
PORT ?= 8000
export PORT

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: usable .venv/run ## Serve on 127.0.0.1:$PORT (8000), with a separate PostgreSQL
	@.venv/bin/python -m dev.run

test: usable .venv/dev ## Run all tests; against another PostgreSQL with TEST_DATABASE_URL
	.venv/bin/python -m pytest -m "not measures" $(if $(TEST_DATABASE_URL),,-n 4 --dist worksteal)
	.venv/bin/python -m pytest -m measures

test-fast: .venv/dev ## Run the tests of one process, against app, body and schemas: some seconds
	.venv/bin/python -m pytest tests/fast

browser-test: .venv/dev ## Look at the evidence page in Chromium, with what that needs
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/browser/requirements.txt
	.venv/bin/python -m pytest -n 0 tests/browser

clients-test: .venv/dev ## Run the recipes of docs/clients.md, generated clients and Parquet, with what they need
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
	CLIENTS_TEST=1 .venv/bin/python -m pytest -n 4 tests/clients tests/commands/test_import_options.py

lint: .venv/dev ## Check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m mypy

lock: .venv/dev ## Pin the newest versions of all packages, with their hashes
	.venv/bin/python -m pip install --quiet --upgrade uv
	for name in requirements requirements/run requirements/dev; do \
		.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
			--no-header --no-annotate $$name.in --output-file $$name.txt || exit 1; \
	done

fuzz: .venv/dev ## Send what no client should, for MINUTES (5) a test
	FUZZ_MINUTES=$(or $(MINUTES),5) .venv/bin/python -m pytest -o faulthandler_timeout=0 tests/test_fuzz.py

crash-test: .venv/dev ## Kill workers and PostgreSQL under load for SECONDS (120), and count what was lost
	CRASH_SECONDS=$(or $(SECONDS),120) .venv/bin/python -m pytest -o faulthandler_timeout=0 tests/test_outages.py -k kills

bench: .venv/dev ## Measure the service beside others: bench/results.md, bench/results.svg (10 minutes)
	.venv/bin/python -m pip install --quiet --requirement bench/requirements.txt
	.venv/bin/python -m bench.run

.venv/run: requirements/run.txt .venv/python
	@echo "Installing Python packages into .venv: about 130 MB and half a minute, only now."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/run.txt
	@touch $@

.venv/dev: requirements/dev.txt .venv/run
	@echo "Installing what tests and checks need into .venv: about 150 MB more, only now."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	@touch $@

# What make can't do, in one line: a folder or .venv of another user, a .venv whose Python has gone or changed.
.PHONY: usable
usable:
	@test -w . || { echo "make: this user can't write here: clone the project into a folder of your own"; exit 1; }
	@test ! -e .venv || test -w .venv || { echo "make: .venv belongs to another user: remove it, or run as that user"; exit 1; }
	@test ! -e .venv/python || .venv/bin/python -c 'import pip' 2> /dev/null || \
		{ echo "make: the Python of .venv has changed: remove .venv"; exit 1; }

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv || { echo "make: Python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@touch $@
