"""deploy/citus.sql on a real Citus cluster: TEST_CITUS_URL is its coordinator, with a superuser who needs no password
between nodes. The tests make a database of their own on each node."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from commands.init_db import create_or_upgrade
from dev.service import EVENT, ROOT, TOO_LARGE_A_NUMBER, Service, at_once, set_up, wait_for
from tests.deploy.test_roles import make_role
from tests.support import Account, assert_rejected, command, json_lines

COORDINATOR = os.environ.get("TEST_CITUS_URL", "")
pytestmark = [
    pytest.mark.skipif(not COORDINATOR, reason="needs a Citus cluster: TEST_CITUS_URL"),
    pytest.mark.skipif(not shutil.which("psql"), reason="needs psql"),
]


class Cluster(NamedTuple):
    url: str
    """The coordinator's database."""
    workers: list[str]


def run_script(url: str, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["psql", url, "-f", f"deploy/{name}"], cwd=ROOT, capture_output=True, text=True, check=False)


def execute(url: str, query: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        return [] if cursor.description is None else cursor.fetchall()


@pytest.fixture
def new_cluster() -> Iterator[Callable[[], Cluster]]:
    """Makes a database on all nodes, and what docs/scaling.md says that each needs."""
    with psycopg.connect(COORDINATOR) as connection:
        query = (
            "SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid = 0 DESC, nodeid"
        )
        [coordinator, *workers] = connection.execute(query.encode()).fetchall()
    nodes = [make_conninfo(COORDINATOR, host=host, port=port) for host, port in (coordinator, *workers)]
    names: list[str] = []

    def new() -> Cluster:
        names.append(f"igris_test_{uuid.uuid4().hex[:12]}")
        urls = [make_conninfo(node, dbname=names[-1]) for node in nodes]
        for node, url in zip(nodes, urls, strict=True):
            with psycopg.connect(
                node, autocommit=True, options="-c citus.enable_create_database_propagation=off"
            ) as each:
                each.execute(f"CREATE DATABASE {names[-1]} ENCODING 'UTF8' TEMPLATE template0".encode())
            execute(url, "CREATE EXTENSION citus")
        execute(urls[0], f"SELECT citus_set_coordinator_host('{coordinator[0]}', {coordinator[1]})")
        for host, port in workers:
            execute(urls[0], f"SELECT citus_add_node('{host}', {port})")
        return Cluster(urls[0], urls[1:])

    yield new
    for name in names:
        for node in nodes:
            with psycopg.connect(
                node, autocommit=True, options="-c citus.enable_create_database_propagation=off"
            ) as each:
                each.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def cluster(new_cluster: Callable[[], Cluster]) -> Cluster:
    """A cluster with the schema, distributed."""
    cluster = new_cluster()
    with psycopg.connect(cluster.url) as connection:
        create_or_upgrade(connection)
    for _ in range(2):  # the second time there is nothing to do
        done = run_script(cluster.url, "citus.sql")
        assert done.returncode == 0, done.stderr
    return cluster


def node_of(cluster: Cluster, org_id: str) -> int:
    """The port of the worker that has an organization."""
    [(port,)] = execute(
        cluster.url,
        "SELECT nodeport FROM pg_dist_shard_placement WHERE shardid = "
        f"(SELECT get_shard_id_for_distribution_column('audit_events', '{org_id}'))",
    )
    return int(port)


@pytest.mark.parametrize("entry", ["coordinator", "worker"])
def test_the_contract_holds(cluster: Cluster, start_service: Callable[..., Service], entry: str) -> None:
    service = start_service(cluster.url if entry == "coordinator" else cluster.workers[0])
    assert service.get("/readyz").status == 200
    for org_id in ("acme", "globex", "initech"):
        account = Account(service, org_id, set_up(cluster.url, org_id, 100))
        events = [{**EVENT, "toolName": f"tool-{i}", "metadata": {"n": i}} for i in range(10)]
        assert account.post(events).json == {"data": {"ingested": 10, "rejected": 0}, "meta": {"remainingQuota": 90}}
        assert account.rows("tool_name") == [(f"tool-{i}",) for i in range(10)]
        assert len(set(account.rows("received_at"))) == 1
        assert account.post([EVENT, {}, EVENT], Prefer="handling=lenient").json["data"] == {
            "ingested": 2,
            "rejected": 1,
        }
        responses = at_once(16, lambda _: account.send(EVENT, Idempotency_Key="once"))  # noqa: B023
        assert {(response.status, response.body) for response in responses} == {(200, responses[0].body)}, (
            service.output()
        )
        assert account.count() == account.used() == 13
        assert_rejected(account.post([EVENT], Idempotency_Key="once"), 422, "Idempotency-Key reused")
        rejected = account.post(TOO_LARGE_A_NUMBER.encode())
        assert_rejected(rejected, 400, "Invalid JSON")
        statuses = [response.status for response in at_once(24, lambda _: account.send([EVENT] * 7))]  # noqa: B023
        assert sorted(statuses) == [200] * 12 + [429] * 12
        assert account.count() == account.used() == 97
        [key] = json_lines(command("keys", "list", org_id, "--json", database_url=cluster.url).stdout)
        assert command("keys", "revoke", str(key["id"]), database_url=cluster.url).returncode == 0
        assert_rejected(account.post(EVENT), 401, "Unauthorized")
    assert "Traceback" not in service.output()


def test_a_request_is_one_command_to_one_node(cluster: Cluster) -> None:
    set_up(cluster.url, "acme", 100)
    notices: list[str] = []
    with psycopg.connect(cluster.url, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        connection.execute("SET client_min_messages = debug1")
        query = """
            SELECT outcome
            FROM store_events_v1('acme', NULL, 'raw', '[{"type": "custom", "toolName": "x"}]', NULL, 1, 'a', '', 1)
        """
        assert connection.execute(query).fetchall() == [("stored",)]
    assert "pushing down the function call" in notices
    for table in ("audit_events", "monthly_usage", "idempotency_keys"):
        assert execute(cluster.url, f"SELECT pg_relation_size('{table}')") == [(0,)]


def test_a_schema_in_use_is_distributed_with_its_rows(
    new_cluster: Callable[[], Cluster], start_service: Callable[..., Service]
) -> None:
    cluster = new_cluster()
    account = Account(start_service(cluster.url), "acme", set_up(cluster.url, "acme", None))
    account.post([EVENT] * 1000)
    statuses: list[int] = []

    def send(i: int) -> None:
        if i == 0:
            done = run_script(cluster.url, "citus.sql")
            assert done.returncode == 0, done.stderr
        else:
            statuses.extend(account.post(EVENT).status for _ in range(40))

    at_once(5, send)
    assert set(statuses) <= {200, 503}
    assert account.post(EVENT).status == 200
    assert account.count() == account.used() == 1000 + statuses.count(200) + 1
    assert execute(cluster.url, "SELECT pg_relation_size('audit_events')") == [(0,)]


def test_a_distributed_schema_is_upgraded(
    cluster: Cluster, start_service: Callable[..., Service], add_step: Callable[[], None]
) -> None:
    account = Account(start_service(cluster.url), "upgraded", set_up(cluster.url, "upgraded", 10))
    add_step()
    assert command("init-db", database_url=cluster.url).returncode == 0
    assert account.post(EVENT).status == 200


def test_partitions_come_first(new_cluster: Callable[[], Cluster], start_service: Callable[..., Service]) -> None:
    cluster = new_cluster()
    account = Account(start_service(cluster.url), "acme", set_up(cluster.url, "acme", None))
    account.post([EVENT] * 10)
    for name in ("partitions.sql", "citus.sql", "partitions.sql"):
        done = run_script(cluster.url, name)
        assert done.returncode == 0, done.stderr
    make_role(cluster.url)
    assert account.post([EVENT] * 10).status == 200
    assert account.count() == account.used() == 20


def test_partitions_after_distribution_are_rejected(cluster: Cluster) -> None:
    done = run_script(cluster.url, "partitions.sql")
    assert done.returncode != 0
    assert "partitions have to be made before" in done.stderr


def test_the_commands_work(cluster: Cluster, start_service: Callable[..., Service], tmp_path: Path) -> None:
    make_role(cluster.url)
    web_url = make_conninfo(cluster.url, user="igris_web", password="secret")
    service = start_service(web_url)
    service.database_url = cluster.url
    for org_id in ("acme", "globex", "initech"):
        account = Account(service, org_id, set_up(cluster.url, org_id, 5000))
        assert account.post(EVENT).status == 200
        file = tmp_path / f"{org_id}.ndjson"
        row = {**EVENT, "timestamp": "2020-01-01T00:00:00Z"}
        file.write_text("".join(json.dumps({**row, "toolName": str(i)}) + "\n" for i in range(2500)))
        for counts in ("stored 2500, already stored 0", "stored 0, already stored 2500"):
            done = command("import", str(file), "--org", org_id, database_url=cluster.url)
            assert counts in done.stdout, done.stderr
    shown = command("events", "--limit", "5", "--json", database_url=cluster.url).stdout
    assert [each["receipt"]["organization"] for each in json_lines(shown)] == ["initech"] * 5
    usage = json_lines(command("usage", "--json", database_url=cluster.url).stdout)
    assert [(row["organization"], row["stored"]) for row in usage] == [
        ("acme", 2501),
        ("globex", 2501),
        ("initech", 2501),
    ]
    pruned = command("prune", "--before", "0d", database_url=cluster.url)
    assert pruned.stdout.startswith("deleted 7503 events"), pruned.stderr
    listed = json_lines(command("imports", "list", "--org", "globex", "--json", database_url=cluster.url).stdout)
    assert [(each["stored"], each["skipped"]) for each in listed] == [(2500, 0), (0, 2500)]
    assert command("quota", "globex", "unlimited", database_url=cluster.url).returncode == 0
    again = command("import", str(tmp_path / "globex.ndjson"), "--org", "globex", database_url=cluster.url)
    assert "stored 2500, already stored 0" in again.stdout, again.stderr
    newest = json_lines(command("imports", "list", "--org", "globex", "--json", database_url=cluster.url).stdout)[-1]
    undone = command("imports", "undo", str(newest["id"]), "--yes", database_url=cluster.url)
    assert undone.stdout == f"deleted 2500 events of import {newest['id']}\n", undone.stderr
    again = command("import", str(tmp_path / "acme.ndjson"), "--org", "acme", database_url=cluster.url)
    assert "stored 2499, already stored 0" in again.stdout  # up to the quota
    assert command("quota", "acme", "unlimited", database_url=cluster.url).returncode == 0
    rows = tmp_path / "by-id.ndjson"
    rows.write_text("".join(json.dumps({**EVENT, "call_id": number}) + "\n" for number in range(50)))
    for counts in ("stored 50, already stored 0", "stored 0, already stored 50"):
        options = ["--org", "initech", "--id", "call_id", "--timestamp-now"]
        by_id = command("import", str(rows), *options, database_url=cluster.url)
        assert counts in by_id.stdout, by_id.stderr
    dry = command("import", str(rows), "--org", "initech", "--timestamp-now", "--dry-run", database_url=cluster.url)
    assert (dry.returncode, "stored none" in dry.stdout) == (0, True), dry.stderr
    checked = command("check", "--seal-hours", "8760", database_url=cluster.url)
    assert checked.returncode in (0, 2), checked.stderr


def test_the_trail_can_be_sealed_and_verified(
    cluster: Cluster, start_service: Callable[..., Service], tmp_path: Path
) -> None:
    make_role(cluster.url)
    service = start_service(cluster.url)
    for org_id in ("acme", "globex"):
        account = Account(service, org_id, set_up(cluster.url, org_id, None))
        for day in (1, 2):
            account.post([{**EVENT, "toolName": f"{day}", "metadata": {"userId": "user_42"}}] * 10)
            moment = f"SET received_at = '2026-03-0{day}T10:00:00Z'"
            execute(cluster.url, f"UPDATE audit_events {moment} WHERE org_id = '{org_id}' AND tool_name = '{day}'")
    entries = json_lines(command("seal", "--json", database_url=cluster.url).stdout)
    sealed = [entry for entry in entries if entry["events"]]
    assert [(seal["organization"], seal["number"], seal["events"]) for seal in sealed] == [
        ("acme", 1, 10),
        ("acme", 2, 10),
        ("globex", 1, 10),
        ("globex", 2, 10),
    ]
    file = tmp_path / "a.ndjson"
    chosen = ["--org", "acme", "--since", "2026-03-02", "--until", "2026-03-03", "--output", str(file)]
    exported = command("export", *chosen, database_url=cluster.url)
    assert exported.returncode == 0, exported.stderr
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sealed[1]["digest"]
    assert command("verify", database_url=cluster.url).returncode == 0
    pruned = command("prune", "--before", "2026-03-02T12:00Z", database_url=cluster.url)
    assert pruned.stdout.startswith("deleted 20 events"), pruned.stderr
    assert command("verify", database_url=cluster.url).returncode == 0
    execute(cluster.url, "UPDATE audit_events SET action = 'deny' WHERE org_id = 'acme' AND tool_name = '2'")
    found = command("verify", "--json", database_url=cluster.url)
    assert found.returncode == 3
    assert [len(json.loads(line)["problems"]) for line in found.stdout.splitlines()] == [1, 0]
    erase = ["erase", "--org", "globex", "--metadata", "userId=user_42", "--reason", "request 17", "--yes"]
    erased = command(*erase, database_url=cluster.url)
    assert erased.stdout == "deleted 10 events of 'globex', and amended 1 sealed period\n", erased.stderr
    assert command("verify", "--org", "globex", database_url=cluster.url).returncode == 0
    pack = command("evidence", "--org", "globex", "--output", str(tmp_path / "pack"), database_url=cluster.url)
    assert pack.returncode == 0, pack.stderr
    deleted = command("organizations", "delete", "acme", "--yes", database_url=cluster.url)
    assert deleted.stdout == "deleted the organization 'acme' and 10 events\n", deleted.stderr
    listed = json_lines(command("organizations", "list", "--json", database_url=cluster.url).stdout)
    assert [row["organization"] for row in listed] == ["globex"]


def test_a_worker_that_is_unavailable_harms_only_its_organizations(
    cluster: Cluster, start_service: Callable[..., Service]
) -> None:
    service = start_service(cluster.url)
    accounts = [Account(service, f"org-{i}", set_up(cluster.url, f"org-{i}", None)) for i in range(8)]
    ports = [node_of(cluster, account.org_id) for account in accounts]
    assert len(set(ports)) > 1
    for account in accounts:
        assert account.post(EVENT).status == 200
    [away] = [url for url in cluster.workers if f"port={ports[0]}" in url]
    [(pid_file,)] = execute(away, "SELECT pg_read_file('postmaster.pid')")
    postmaster = int(pid_file.split()[0])
    if not psutil.pid_exists(postmaster):
        pytest.skip("the worker is on another machine")
    processes = [psutil.Process(postmaster), *psutil.Process(postmaster).children()]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL ends some of its own accord
            process.suspend()
    try:
        for _ in range(3):
            responses = at_once(8, lambda i: accounts[i].post(EVENT, Idempotency_Key="while-away"))
            for port, response in zip(ports, responses, strict=True):
                assert response.status == (503 if port == ports[0] else 200)
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    for account in accounts:
        wait_for(lambda account=account: account.post(EVENT, Idempotency_Key="while-away").status == 200)
        assert account.count() == account.used() == 2


def test_every_statement_of_the_documentation_for_citus_runs(cluster: Cluster) -> None:
    scaling = (ROOT / "docs/scaling.md").read_text()
    for query in re.findall(r"```sql\n(.*?)```", scaling[scaling.index("## Citus") :], re.DOTALL):
        execute(cluster.url, query)
