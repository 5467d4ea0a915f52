"""What may import what, and which names of libraries may be used."""

import os
import re
import subprocess
import sys

import pytest

from dev.service import ROOT

PRIVATE_NAME = re.compile(
    r"\b(?:gunicorn|psycopg|flask|click|marshmallow|werkzeug)(?:\.[a-z_]+)*\._[A-Za-z]"
    r"|from (?:gunicorn|psycopg|flask|click|marshmallow|werkzeug)[a-z._]* import .*\b_[A-Za-z]"
)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("app", {"commands"}),
        ("commands.__main__", {"app", "flask", "gunicorn", "logs"}),
        ("config", {"psycopg", "flask"}),
    ],
)
def test_the_service_and_the_commands_import_nothing_of_each_other(module: str, forbidden: set[str]) -> None:
    code = f"import {module}, sys; print(*({forbidden} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_no_private_name_of_a_library_is_used() -> None:
    assert PRIVATE_NAME.search("except psycopg.errors._WaitTimeout:")
    assert PRIVATE_NAME.search("from gunicorn.workers.gthread import TConn, _DEFER")
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        if not name.startswith("tests/") and (ROOT / name).exists():
            assert not PRIVATE_NAME.search((ROOT / name).read_text()), name


def test_the_default_of_workers_is_the_cpus_that_the_process_may_use() -> None:
    code = "import os, config; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(config._cpus())"
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs sched_setaffinity")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
