"""What may import what, and which names of libraries may be used."""

import ast
import os
import re
import subprocess
import sys

import pytest

from dev.service import ROOT


def private_names(program: str) -> set[str]:
    """Returns the names with one _ at their beginning that a program uses and does not define."""
    used, defined = set(), set()
    for node in ast.walk(ast.parse(program)):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Load()):
                used.add(name)
            case ast.ImportFrom(names=names):
                used.update(each.name for each in names)
            case ast.Attribute(attr=name) | ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
    defined |= {"_asdict", "_fields", "_replace"}  # public names of named tuples
    return {name for name in used - defined if re.match("_[^_]", name)}


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
    assert private_names("try: f()\nexcept psycopg.errors._WaitTimeout: pass") == {"_WaitTimeout"}
    assert private_names("from gunicorn.workers.gthread import (\n    TConn,\n    _DEFER as d,\n)") == {"_DEFER"}
    assert private_names("class W(ThreadWorker):\n def f(self): self._keepalive_after()") == {"_keepalive_after"}
    assert private_names("class A:\n def f(self): self._a = 1\n def _b(self): return self._a + self._b()") == set()
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        if not name.startswith("tests/") and (ROOT / name).exists():
            assert private_names((ROOT / name).read_text()) == set(), name


def test_the_default_of_workers_is_the_cpus_that_the_process_may_use() -> None:
    code = "import os, config; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(config._cpus())"
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs sched_setaffinity")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
