"""Clients that generators make from openapi.yaml: they compile, and store one event, a list and a batch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dev.service import ROOT
from tests.support import Account

PYTHON_PROGRAM = """
import os, sys
from igris_client import AuthenticatedClient
from igris_client.api.ingest import ingest
from igris_client.models import Batch, Event, EventMetadata, EventType

metadata = EventMetadata()
metadata["rows"] = 3
event = Event(type_=EventType.TOOL_CALL, tool_name="generate_report", metadata=metadata)
with AuthenticatedClient(sys.argv[1], os.environ["KEY"]) as client:
    for body in (event, [event], Batch([event])):
        response = ingest.sync_detailed(client=client, body=body)
        assert response.parsed.data.ingested == 1, response
"""

TYPESCRIPT_PROGRAM = """
import createClient from "openapi-fetch";
import type { components, paths } from "./igris.js";

declare const process: { argv: string[]; env: Record<string, string>; exit(status: number): never };

const headers = { Authorization: `Bearer ${process.env.KEY}` };
const client = createClient<paths>({ baseUrl: process.argv[2], headers });
const event: components["schemas"]["Event"] = { type: "tool_call", toolName: "generate_report", metadata: { rows: 3 } };
for (const body of [event, [event], { events: [event] }]) {
  const { data, error } = await client.POST("/api/v1/ingest/raw", { body });
  if (data?.data.ingested !== 1) throw new Error(JSON.stringify(error));
}
"""

NPM_PACKAGES = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3")


def test_openapi_python_client(account: Account, tmp_path: Path) -> None:
    pytest.importorskip("openapi_python_client", reason="make clients-test installs it")
    generate = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    generate += ["--path", str(ROOT / "openapi.yaml"), "--output-path", str(tmp_path / "igris_client")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(generate, check=True, cwd=tmp_path, env={**os.environ, "PATH": path})
    run_program(account, tmp_path, [sys.executable, "-c", PYTHON_PROGRAM])


@pytest.mark.skipif(not os.environ.get("CLIENTS_TEST") or not shutil.which("npm"), reason="make clients-test, with npm")
def test_openapi_typescript_and_openapi_fetch(account: Account, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "main.ts").write_text(TYPESCRIPT_PROGRAM)
    for command in (
        ["npm", "install", "--silent", "--no-fund", "--no-audit", *NPM_PACKAGES],
        ["npx", "openapi-typescript", str(ROOT / "openapi.yaml"), "--output", "igris.d.ts"],
        ["npx", "tsc", "--strict", "--target", "es2022", "--module", "nodenext", "main.ts"],
    ):
        subprocess.run(command, check=True, cwd=tmp_path)
    run_program(account, tmp_path, ["node", "main.js"])


def run_program(account: Account, folder: Path, command: list[str]) -> None:
    subprocess.run([*command, account.service.url], check=True, cwd=folder, env={**os.environ, "KEY": account.key})
    assert account.rows("tool_name, metadata") == [("generate_report", {"rows": 3})] * 3
