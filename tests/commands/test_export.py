"""`export`: the trail handed out."""

import csv
import io
import json
import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from commands.evidence.trail import LINE, Filters, lines
from dev.service import PROGRAM
from schemas import Event
from tests.commands.trail import EXACT, ODD, export, receive, run
from tests.support import Account


def test_a_line_of_the_export_is_canonical(account: Account, tmp_path: Path) -> None:
    account.post(ODD)
    account.post(EXACT)
    exported = export(account, tmp_path)
    [(key_id,)] = account.execute("SELECT id FROM api_keys WHERE org_id = %s", account.org_id)
    ids = [id_ for (id_,) in account.rows("id")]
    received = [at for (at,) in account.rows("""to_char(received_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')""")]
    receipts = [
        f'"receipt": {{"id": {id_}, "organization": "{account.org_id}", "apiKeyId": {key_id}, "source": "raw", '
        f'"receivedAt": "{at}"}}}}'
        for id_, at in zip(ids, received, strict=True)
    ]
    assert exported.decode().split("\n") == [
        '{"type": "tool_call", "toolName": "=1+1", "action": "deny", "timestamp": "0001-01-01T00:00:00.000000Z", '
        f'"metadata": {{}}, {receipts[0]}',
        '{"type": "completion", "toolName": "\'quoted\\"\\n\\t\\u0001\u2028😀\x7f", "action": "log", '
        f'"timestamp": "9999-12-31T23:59:59.999999Z", "metadata": {{}}, {receipts[1]}',
        '{"type": "custom", "toolName": "-", "action": "alert", "timestamp": "2026-03-18T20:00:00.123456Z", '
        f'"metadata": {{}}, {receipts[2]}',
        '{"type": "embedding", "toolName": "\\\\x", "action": "log", "timestamp": "2026-03-19T10:00:00.000000Z", '
        f'"metadata": {{"a": {{"c": null}}, "b": []}}, {receipts[3]}',
        '{"type": "custom", "toolName": "x", "action": "log", "timestamp": "2026-03-19T10:00:00.000000Z", '
        f'"metadata": {{"n": 1.50, "big": {10**40}}}, {receipts[4]}',
        "",
    ]


def test_the_line_does_not_depend_on_settings_of_the_session(account: Account) -> None:
    account.post(ODD)
    made = []
    for options in (
        "",
        "-c timezone=Asia/Kathmandu -c DateStyle=German -c extra_float_digits=-5 -c bytea_output=escape",
    ):
        with (
            psycopg.connect(account.service.database_url, options=options) as connection,
            lines(connection, Filters(account.org_id)) as found,
        ):
            made.append(list(found))
    assert made[0] == made[1]
    assert len(made[0]) == len(ODD)


def test_the_line_has_every_field_of_the_event() -> None:
    for name in Event().fields:
        assert f'"{name}": ' in LINE


@pytest.mark.parametrize("file_format", ["ndjson", "csv"])
def test_what_is_exported_is_imported_as_what_was_sent(
    account: Account, new_account: Callable[..., Account], tmp_path: Path, file_format: str
) -> None:
    other = new_account()
    account.post(ODD)
    account.post(EXACT)
    export(account, tmp_path, "--format", file_format, name=f"trail.{file_format}")
    done = run(other, "import", str(tmp_path / f"trail.{file_format}"), "--org", other.org_id)
    assert (done.returncode, done.stdout) == (0, "read 5, stored 5, already stored 0, rejected 0\n"), done.stderr
    columns = 'type, tool_name, action, "timestamp"::text, metadata::text'
    assert account.rows(columns) == other.rows(columns)


def test_csv_runs_nothing_in_a_spreadsheet(account: Account, tmp_path: Path) -> None:
    names = ["=1", "+1", "-1", "@1", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1", "'=1", "1=1"]
    account.post([{"type": "custom", "toolName": name} for name in names])
    rows = list(csv.DictReader(io.StringIO(export(account, tmp_path, "--format", "csv").decode(), newline="")))
    assert [row["toolName"] for row in rows] == [*(f"'{name}" for name in names[:-1]), "1=1"]


def test_the_events_of_an_export_can_be_chosen(account: Account, tmp_path: Path) -> None:
    receive(account, "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z")
    account.post(ODD)

    def names(*options: str) -> list[str]:
        return [json.loads(line)["toolName"] for line in export(account, tmp_path, *options).splitlines()]

    assert names("--since", "2026-03-01", "--until", "2026-03-02") == [f"2026-03-01T00:00:00Z {n}" for n in range(3)]
    assert names("--since", "2026-03-02", "--type", "tool_call", "--action", "log") == [
        f"2026-03-02T00:00:00Z {n}" for n in range(3)
    ]
    assert names("--tool", "=1+1") == names("--action", "deny") == ["=1+1"]
    [(key_id,)] = account.execute("SELECT id FROM api_keys WHERE org_id = %s", account.org_id)
    assert len(names("--key", str(key_id))) == 6 + len(ODD)
    assert names("--key", str(key_id + 1)) == []


def test_an_export_gets_its_name_when_it_is_complete(account: Account, tmp_path: Path) -> None:
    account.post(ODD)
    file = tmp_path / "trail.ndjson"
    file.write_text("mine")
    done = run(account, "export", "--org", account.org_id, "--output", str(file))
    assert (done.returncode, file.read_text()) == (1, "mine")
    done = run(account, "export", "--org", "nobody", "--output", str(tmp_path / "b"))
    assert (done.returncode, sorted(path.name for path in tmp_path.iterdir())) == (1, ["trail.ndjson"])
    (tmp_path / "c.part").touch()
    done = run(account, "export", "--org", account.org_id, "--output", str(tmp_path / "c"))
    assert "c.part: another export writes it, or was killed; then remove it" in done.stderr


def test_an_output_that_is_full_or_gone_is_reported(account: Account) -> None:
    account.post([ODD[0]] * 3000)
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}
    for path, name, status, said in (
        ("/dev/full", "export", 1, "Error: standard output: No space left on device\n"),
        ("/dev/full", "events", 1, "Error: standard output: No space left on device\n"),
        ("/dev/full", "verify", 1, "Error: standard output: No space left on device\n"),
        ("/dev/null", "export", 0, "exported 3000 events\n"),
    ):
        with Path(path).open("wb") as output:
            arguments = [PROGRAM, name, "--org", account.org_id]
            done = subprocess.run(arguments, env=environ, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (status, said)
    piped = f"{PROGRAM} export --org {account.org_id} | head -1"
    done = subprocess.run(["sh", "-c", piped], env=environ, capture_output=True, text=True, check=False)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_metadata_given_twice_has_to_contain_both(account: Account, tmp_path: Path) -> None:
    account.post([{"type": "custom", "toolName": f"{n}", "metadata": {"n": n, "odd": n % 2}} for n in range(4)])
    lines = export(account, tmp_path, "--metadata", "odd=1", "--metadata", '{"n": 3}').splitlines()
    assert [json.loads(line)["toolName"] for line in lines] == ["3"]


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="needs root, to make a small disk")
@pytest.mark.parametrize("arguments", [["export"], ["evidence"]])
def test_a_disk_that_is_full_is_named(account: Account, tmp_path: Path, arguments: list[str]) -> None:
    account.post([{"type": "custom", "toolName": "x", "metadata": {"noise": secrets.token_hex(100_000)}}])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", tmp_path], check=True)
    try:
        done = run(account, *arguments, "--org", account.org_id, "--output", str(tmp_path / "out"))
        assert (done.returncode, done.stderr) == (1, f"Error: {tmp_path}/out: No space left on device\n")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
