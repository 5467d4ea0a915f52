"""Every command of docs/import.md that imports the export of a tool, with a file of that tool's columns."""

import re
import shlex
from pathlib import Path

import pytest

from dev.service import ROOT
from tests.support import Account, command

TOOLS = ROOT / "tests/exports/tools"
PAGE = (ROOT / "docs/import.md").read_text().partition("## Exports of other tools")[2]
COMMANDS = {
    words[2]: words[3:]
    for text in re.findall(r"^```\n(igris-ingest import .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for words in [shlex.split(text.replace("\\\n", ""))]
}

# What becomes of each row: its type, toolName and action.
EXPECTED = {
    "litellm_spend_logs.csv": [
        ("completion", "gpt-4o-mini", "log"),
        ("embedding", "text-embedding-3-small", "log"),
        ("completion", "claude-sonnet-4", "alert"),
        ("tool_call", "github/search", "log"),
        ("custom", "unknown", "alert"),
    ],
    "langfuse_observations.jsonl": [
        ("completion", "gpt-4o", "log"),
        ("tool_call", "search_web", "alert"),
        ("embedding", "text-embedding-3-small", "log"),
    ],
    "openai_batch_output.jsonl": [("completion", "gpt-4o-mini-2024-07-18", "log")] * 3,
    "openai_usage.json": [("custom", "gpt-4o", "log"), ("custom", "o3", "log"), ("custom", "all models", "log")],
    "anthropic_usage.json": [("custom", "claude-sonnet-4-20250514", "log"), ("custom", "all models", "log")],
    "anthropic_batch_results.jsonl": [
        ("completion", "claude-sonnet-4-20250514", "log"),
        ("completion", "second", "alert"),
    ],
    "bedrock_invocations.jsonl": [
        ("completion", "anthropic.claude-3-haiku-20240307-v1:0", "log"),
        ("completion", "amazon.nova-lite-v1:0", "alert"),
    ],
    "azure_openai_logs.jsonl": [("completion", "gpt-4o", "log"), ("embedding", "text-embedding-3-small", "log")],
    "azure_openai_records.json": [("completion", "gpt-4o", "log"), ("embedding", "text-embedding-3-small", "log")],
    "helicone_requests.csv": [
        ("completion", "gpt-4o", "log"),
        ("embedding", "text-embedding-3-small", "alert"),
        ("completion", "CUSTOM", "log"),
    ],
    "portkey_logs.jsonl": [("completion", "gpt-4o", "log"), ("completion", "claude-sonnet-4", "alert")],
    "psql.csv": [
        ("completion", "gpt-4o", "log"),
        ("tool_call", "claude-sonnet-4-20250514", "log"),
        ("embedding", "embed, large", "log"),
    ],
    "bigquery.json": [("completion", "gpt-4o", "log"), ("embedding", "embed", "log")],
    "excel.csv": [("completion", "gpt-4o", "log"), ("tool_call", "search_web", "log")],
    "phoenix_spans.csv": [
        ("completion", "gpt-4o", "log"),
        ("tool_call", "search_web", "alert"),
        ("embedding", "text-embedding-3-small", "log"),
    ],
    "phoenix_spans.jsonl": [
        ("completion", "gpt-4o", "log"),
        ("tool_call", "search_web", "alert"),
        ("embedding", "text-embedding-3-small", "log"),
    ],
    "langfuse_blob.jsonl": [("completion", "gpt-4o", "log"), ("tool_call", "lookup_order", "alert")],
    "claude_session.jsonl": [("completion", "claude-sonnet-4-5", "log"), ("tool_call", "Read", "log")],
    "otlp_traces.jsonl": [
        ("completion", "gpt-4o", "log"),
        ("tool_call", "lookup_order", "alert"),
        ("embedding", "text-embedding-3-small", "log"),
    ],
    "jaeger_traces.json": [("custom", "gpt-4o", "log"), ("custom", "lookup_order", "alert")],
}


def test_the_document_has_a_command_for_each_tool() -> None:
    assert set(COMMANDS) == set(EXPECTED) == {"psql.csv", *(path.name for path in TOOLS.iterdir())}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_command_of_the_document_imports_the_export(account: Account, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    folder = TOOLS if (TOOLS / name).exists() else TOOLS.parent  # what the program itself wrote
    file.write_bytes((folder / name).read_bytes())
    options = [account.org_id if word == "acme" else word for word in COMMANDS[name]]
    done = command("import", str(file), *options, database_url=account.service.database_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert account.rows("type, tool_name, action") == EXPECTED[name]
    again = command("import", str(file), *options, database_url=account.service.database_url)
    assert (again.returncode, f"stored 0, already stored {len(EXPECTED[name])}" in again.stdout) == (0, True)
    inside = account.rows(""""timestamp" BETWEEN '2026-03-19 10:00Z' AND '2026-03-19 10:00:03Z'""")
    assert set(inside) == {(True,)}
