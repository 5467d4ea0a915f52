"""docs/operations.md and deploy/partitions.sql: their SQL runs, on the schema as it is."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from commands import organizations, prune
from commands.importer import records
from dev.service import EVENT, ROOT, Service, set_up
from tests.deploy.test_roles import make_role
from tests.support import Account, command, igris

OPERATIONS = (ROOT / "docs/operations.md").read_text()
QUESTIONS = re.findall(r"```sql\n(.*?)```", OPERATIONS, re.DOTALL)


@pytest.fixture
def own_account(create_database: Callable[[], str], start_service: Callable[..., Service]) -> Account:
    """An account in a separate database, with some events."""
    url = create_database()
    account = Account(start_service(url), "acme", set_up(url, "acme", 100, "openai"))
    account.post([EVENT] * 7 + [{**EVENT, "action": "deny", "toolName": "delete_all"}])
    return account


def psql(account: Account, *arguments: str) -> None:
    command = ["psql", account.service.database_url, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_questions_of_the_documentation_return_rows(own_account: Account) -> None:
    own_account.execute("ANALYZE audit_events")
    by_hour, denied, disk = [own_account.execute(sql.replace("%", "%%")) for sql in QUESTIONS]
    assert [(row[1], row[2]) for row in by_hour] == [("generate_report", 7), ("delete_all", 1)]
    assert [row[1:4] for row in denied] == [("acme", "openai", "delete_all")]
    [(_, events, bytes_per_event, *_)] = disk
    assert events == 8
    assert bytes_per_event > 100


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_a_table_in_use_becomes_partitions(own_account: Account, tmp_path: Path) -> None:
    make_role(own_account.service.database_url)
    own_account.execute("GRANT SELECT ON audit_events TO igris_web")  # what was granted stays granted
    for _ in range(2):
        psql(own_account, "-f", "deploy/partitions.sql")
    with psycopg.connect(make_conninfo(own_account.service.database_url, user="igris_web", password="secret")) as web:
        web.execute("SELECT * FROM audit_events")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            web.execute("DELETE FROM audit_events")
    query = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_events'::regclass"
    assert own_account.execute(query) == [(14,)]  # what was there, the default, and 12 months
    own_account.post([EVENT] * 3)
    own_account.execute("""
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        SELECT 'acme', 'custom', 'x', 'log', now(), '{}', now() + months * interval '1 month'
        FROM generate_series(1, 20) AS months
    """)
    ids = [row[0] for row in own_account.rows("id")]
    assert ids == list(range(1, 32))
    assert own_account.execute("SELECT count(*) FROM audit_events_first") == [(11,)]
    [(late,)] = own_account.execute("SELECT count(*) FROM audit_events_default")
    assert late in (8, 9)
    psql(own_account, "-f", "deploy/partitions.sql")
    assert own_account.execute("SELECT count(*) FROM audit_events_default") == [(0,)]
    assert [row[0] for row in own_account.rows("id")] == ids
    url = own_account.service.database_url
    assert igris("init-db", database_url=url).returncode == 0
    assert len(igris("events", "--limit", "100", database_url=url).stdout.splitlines()) == 32
    file = tmp_path / "a.ndjson"
    file.write_text('{"type": "custom", "toolName": "x"}')
    assert igris("import", str(file), "--timestamp-now", "--org", "acme", database_url=url).returncode == 0
    assert "deleted 12 events" in igris("prune", "--before", "0d", database_url=url).stdout
    assert own_account.count() == 20  # what is received in months to come


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_a_dropped_partition_is_pruned_from_the_chain(own_account: Account) -> None:
    psql(own_account, "-f", "deploy/partitions.sql")
    url = own_account.service.database_url
    own_account.execute("""
        ALTER TABLE audit_events DETACH PARTITION audit_events_first;
        CREATE TABLE february PARTITION OF audit_events FOR VALUES FROM ('2026-02-01Z') TO ('2026-03-01Z');
        CREATE TABLE march PARTITION OF audit_events FOR VALUES FROM ('2026-03-01Z') TO ('2026-04-01Z');
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        SELECT 'acme', 'custom', 'x', 'log', now(), '{}', '2026-02-27Z'::timestamptz + days * interval '1 day'
        FROM generate_series(0, 3) AS days
    """)
    assert command("seal", database_url=url).returncode == 0
    own_account.execute("DROP TABLE february")
    assert command("verify", database_url=url).returncode == 3
    assert command("prune", "--before", "2026-03-01", database_url=url).stdout.startswith("deleted 0 events")
    assert command("verify", database_url=url).returncode == 0
    assert own_account.count() == 2


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_partitions_are_all_or_nothing(own_account: Account) -> None:
    def run_script(url: str) -> subprocess.CompletedProcess[str]:
        command = ["psql", url, "-f", "deploy/partitions.sql"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    url = own_account.service.database_url
    state = """
        SELECT relkind::text, (SELECT count(*) FROM pg_constraint WHERE conrelid = c.oid)
        FROM pg_class c WHERE oid = 'audit_events'::regclass
    """
    before = own_account.execute(state)
    own_account.execute("CREATE TABLE audit_events_default ()")  # a name that is needed in the middle
    done = run_script(url)
    assert done.returncode != 0
    assert "nothing was changed" in done.stderr
    assert own_account.execute(state) == before
    own_account.execute("DROP TABLE audit_events_default")
    own_account.execute(
        "ALTER TABLE audit_events ADD CONSTRAINT first_months CHECK (received_at < '2030-01-01') NOT VALID"
    )

    stranger = f"stranger_{own_account.execute('SELECT current_database()')[0][0]}"
    own_account.execute(f"CREATE ROLE {stranger} LOGIN PASSWORD 'secret'")
    done = run_script(make_conninfo(url, user=stranger, password="secret"))
    assert done.returncode != 0
    assert "run this as the owner" in done.stderr
    own_account.execute(f"DROP ROLE {stranger}")

    assert run_script(url).returncode == 0
    assert own_account.execute(state)[0][0] == "p"
    checks = own_account.execute(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = 'audit_events_first'::regclass"
    )
    assert checks == []
    assert own_account.post(EVENT).status == 200


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_partitions_can_be_made_by_a_superuser_who_is_not_the_owner(create_database: Callable[[], str]) -> None:
    url = create_database()
    with psycopg.connect(url, autocommit=True) as superuser:
        [(name,)] = superuser.execute("SELECT current_database()").fetchall()
        superuser.execute(f"CREATE ROLE owner_{name} LOGIN PASSWORD 'secret'".encode())
        superuser.execute(f"GRANT ALL ON SCHEMA public TO owner_{name}".encode())
        set_up(make_conninfo(url, user=f"owner_{name}", password="secret"), "acme", 10)
        subprocess.run(["psql", url, "-f", "deploy/partitions.sql"], cwd=ROOT, check=True, capture_output=True)
        query = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname LIKE 'audit_events%'"
        assert superuser.execute(query).fetchall() == [(f"owner_{name}",)]
        superuser.execute(f"DROP OWNED BY owner_{name}".encode())
        superuser.execute(f"DROP ROLE owner_{name}".encode())


def test_every_unique_key_of_events_and_usage_has_the_organization(own_account: Account) -> None:
    for table in ("audit_events", "monthly_usage", "idempotency_keys"):
        keys = own_account.execute(
            """
            SELECT array_agg(a.attname::text) FROM pg_index i
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
            WHERE i.indrelid = %s::regclass AND i.indisunique GROUP BY i.indexrelid
            """,
            table,
        )
        assert keys
        assert all("org_id" in columns for (columns,) in keys)


def test_every_statement_that_writes_has_its_organization_as_a_parameter() -> None:
    written = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM) (audit_events|monthly_usage|idempotency_keys)\b")
    schema = (ROOT / "schema.sql").read_text()
    modules = (prune, organizations, records)
    constants = ((name, value) for module in modules for name, value in vars(module).items() if isinstance(value, str))
    statements = {name: sql for name, sql in constants if written.search(sql)}
    assert {"DELETE_EVENTS", "DELETE_CHUNK_KEYS", "DELETE_EXPIRED_KEYS", "DELETE_IDEMPOTENCY_KEYS"} <= set(statements)
    for name, sql in statements.items():
        assert sql.count("%(org_id)s") >= len(written.findall(sql)), name
    function = schema[schema.index("CREATE FUNCTION") :]
    assert len(written.findall(function)) == 5
    for statement in function.split(";"):
        assert "p_org_id" in statement or not written.search(statement), statement
