-- Distributes the tables over an existing Citus cluster, by organization. On its coordinator, after init-db and before
-- anything is stored (or later, when it moves the rows):
--     psql "$DATABASE_URL" -f deploy/citus.sql
-- The service and the commands work on it as they are. Each statement that stores has the organization as a parameter
-- and goes to one shard; docs/scaling.md says when this is worth it.

\set ON_ERROR_STOP on
BEGIN;

SELECT create_reference_table('schema_version');
SELECT create_reference_table('organizations');
SELECT create_reference_table('api_keys');

SELECT create_distributed_table('audit_events', 'org_id', colocate_with => 'none');
SELECT create_distributed_table('monthly_usage', 'org_id', colocate_with => 'audit_events');
SELECT create_distributed_table('idempotency_keys', 'org_id', colocate_with => 'audit_events');

COMMIT;
