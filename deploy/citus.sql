-- Distributes the tables over an existing Citus cluster, by organization. On its coordinator, as the owner of the tables,
-- after init-db, after partitions.sql if you want partitions, and again after every upgrade:
--     psql "$DATABASE_URL" -f deploy/citus.sql
-- What is distributed already stays as it is. Rows that are there are moved, while requests wait. docs/scaling.md says what
-- the cluster has to have, and when this is worth it.

\set ON_ERROR_STOP on
BEGIN;
SET LOCAL citus.multi_shard_modify_mode = 'sequential';

-- All at once and in one order, or requests and this would wait for each other.
LOCK TABLE schema_version, organizations, api_keys, audit_events, monthly_usage, idempotency_keys, imports, chain_entries,
    imported_rows
    IN ACCESS EXCLUSIVE MODE;

-- by name: on the way a table can get another oid
CREATE TEMPORARY TABLE wanted (number integer, name text, colocated text) ON COMMIT DROP;
INSERT INTO wanted VALUES
    (1, 'schema_version', NULL),
    (2, 'organizations', NULL),
    (3, 'api_keys', NULL),
    (4, 'audit_events', 'none'),
    (5, 'monthly_usage', 'audit_events'),
    (6, 'idempotency_keys', 'audit_events'),
    (7, 'imports', 'audit_events'),
    (8, 'chain_entries', 'audit_events'),
    (9, 'imported_rows', 'audit_events');
DELETE FROM wanted WHERE name::regclass IN (SELECT logicalrelid FROM pg_dist_partition);

SELECT CASE WHEN colocated IS NULL
    THEN format('SELECT create_reference_table(%L)', name)
    ELSE format('SELECT create_distributed_table(%L, %L, colocate_with => %L)', name, 'org_id', colocated) END
FROM wanted
ORDER BY number
\gexec

-- The rows have been copied; the coordinator's own are of no use any more.
SELECT format('SELECT truncate_local_data_after_distributing_table(%L)', name) FROM wanted ORDER BY number DESC \gexec

-- A call becomes one command to the node that has the organization.
SELECT create_distributed_function(
    'store_events_v1(text, bigint, text, jsonb, integer[], integer, text, bytea, integer)',
    'p_org_id',
    colocate_with => 'audit_events'
);

COMMIT;
