"""`check`: each finding, and that there is none where all is well."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.service import EVENT, Service, set_up
from tests.commands.trail import receive
from tests.support import Account, command, json_lines


@pytest.fixture
def account(create_schema: Callable[[], str], start_service: Callable[..., Service]) -> Account:
    url = create_schema()
    return Account(start_service(url), "acme", set_up(url, "acme", 10))


def check(account: Account, *options: str) -> list[str]:
    done = command("check", *options, database_url=account.service.database_url)
    assert done.returncode == (2 if done.stdout else 0), done.stderr
    return done.stdout.splitlines()


def test_where_all_is_well_nothing_is_found(account: Account) -> None:
    account.post([EVENT] * 8)
    assert check(account) == []


def test_an_outage_is_found() -> None:
    done = command("check", "--json", database_url="postgresql://127.0.0.1:1/x")
    [found] = json_lines(done.stdout)
    assert (done.returncode, found["check"]) == (2, "database")
    assert found["message"].startswith("PostgreSQL can't be reached: ")


def test_a_quota_that_is_nearly_used_up_or_rejected_a_request_is_found(account: Account) -> None:
    account.post([EVENT] * 9)
    assert check(account) == ["quota: acme: 9 of 10 events of this month stored"]
    assert check(account, "--quota-percent", "95") == []
    assert account.post([EVENT] * 2).status == 429
    assert account.used() == 9
    found = ["quota: acme: the quota rejected requests in this month; 9 events of 10 stored"]
    assert check(account, "--quota-percent", "95") == found
    assert command("quota", "acme", "unlimited", database_url=account.service.database_url).returncode == 0
    assert account.post(EVENT).json["meta"] == {"remainingQuota": None}
    assert check(account) == []


def test_a_seal_that_is_late_is_found(account: Account) -> None:
    receive(account, "2026-03-01T10:00:00Z")
    start = "start the timer of `seal`"
    assert check(account) == [f"seal: acme: an event received 2026-03-01T10:00:00.000000Z has no seal yet: {start}"]
    command("seal", database_url=account.service.database_url)
    account.post(EVENT)
    assert check(account) == []
    account.execute("UPDATE audit_events SET received_at = now() - interval '3 h' WHERE received_at > '2026-04-01'")
    account.execute("DELETE FROM chain_entries WHERE until > now() - interval '4 h'")
    assert check(account, "--seal-hours", "4") == []
    [found] = json_lines("\n".join(check(account, "--json")))
    assert (found["check"], found["organization"]) == ("seal", "acme")


def test_keys_that_expire_or_fell_silent_are_found(account: Account) -> None:
    key = command("keys", "create", "acme", "--expires-in-days", "10", database_url=account.service.database_url)
    assert key.returncode == 0
    [found] = check(account)
    assert found.startswith("key: acme: key 2 expires 20")
    assert check(account, "--key-days", "9") == []
    assert command("keys", "revoke", "2", database_url=account.service.database_url).returncode == 0
    for day in range(1, 8):
        account.post(EVENT)
        query = "UPDATE audit_events SET received_at = now() - %s * interval '1 day' - interval '1 h' WHERE id = %s"
        account.execute(query, day, day)
    silent = ["key: acme: key 1 sent nothing for a day, after 7 days with events"]
    assert check(account, "--seal-hours", "8760") == silent
    assert check(account, "--seal-hours", "8760", "--daily-days", "8") == []
    account.post(EVENT)
    assert check(account, "--seal-hours", "8760") == []


def test_an_import_that_was_interrupted_is_found_until_it_is_run_again(account: Account, tmp_path: Path) -> None:
    file = tmp_path / "a.ndjson"
    file.write_text(json.dumps(EVENT) + "\n")
    import_ = ["import", str(file), "--timestamp-now", "--org", "acme"]
    assert command(*import_, database_url=account.service.database_url).returncode == 0
    account.execute("UPDATE imports SET ended_at = NULL")  # as a process that was killed leaves it
    [found] = check(account)
    assert found.startswith(f"import: acme: import 1 of {file}, begun 20")
    assert command(*import_, database_url=account.service.database_url).returncode == 0
    assert check(account) == []


def test_a_disk_that_fills_is_found(account: Account, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    percent = int(100 * usage.used / (usage.used + usage.free))
    if percent > 0:
        [found] = check(account, "--disk", str(tmp_path), "--disk-percent", str(percent))
        assert re.fullmatch(rf"disk: \d+% of the disk of {re.escape(str(tmp_path))} in use", found)
    if percent < 95:
        assert check(account, "--disk", str(tmp_path), "--disk-percent", str(percent + 5)) == []


def test_a_database_that_takes_no_writes_is_found(account: Account) -> None:
    [[name]] = account.execute("SELECT quote_ident(current_database())")
    account.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "database: the database is read-only" in check(account)
