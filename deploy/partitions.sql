-- Makes audit_events a table of partitions, one for each month of receipt, so that old months can be dropped at once:
--     psql "$DATABASE_URL" -f deploy/partitions.sql
-- The first time it turns the table into the first partition, without copying a row: the key is built while the service
-- goes on, and requests wait only while the tables change places. Each time it makes the partitions of the next 12
-- months: run it every month, from cron. What finds no partition goes into the default one, is not lost, and is moved to
-- where it belongs by the next run.

\set ON_ERROR_STOP on
SET timezone = 'UTC';

SELECT relkind = 'r' AS ordinary FROM pg_class WHERE oid = 'audit_events'::regclass \gset

\if :ordinary
    SELECT date_trunc('month', now()) + interval '1 month' AS next_month \gset

    -- A partition's key has to contain what it is chosen by. This takes a while for a large table, and blocks nobody.
    CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS audit_events_first_pkey ON audit_events (org_id, id, received_at);
    ALTER TABLE audit_events DROP CONSTRAINT IF EXISTS first_months;
    ALTER TABLE audit_events ADD CONSTRAINT first_months CHECK (received_at < :'next_month') NOT VALID;
    ALTER TABLE audit_events VALIDATE CONSTRAINT first_months;

    BEGIN;
    SET LOCAL lock_timeout = '3s';  -- run it again if it could not get the table
    ALTER TABLE audit_events RENAME TO audit_events_first;
    ALTER TABLE audit_events_first DROP CONSTRAINT audit_events_pkey;
    ALTER TABLE audit_events_first ADD CONSTRAINT audit_events_first_pkey PRIMARY KEY USING INDEX audit_events_first_pkey;
    ALTER INDEX audit_events_received_at RENAME TO audit_events_first_received_at;
    ALTER INDEX audit_events_timestamp RENAME TO audit_events_first_timestamp;
    CREATE TABLE audit_events (LIKE audit_events_first INCLUDING DEFAULTS) PARTITION BY RANGE (received_at);
    ALTER TABLE audit_events ADD PRIMARY KEY (org_id, id, received_at);
    ALTER SEQUENCE audit_events_id_seq OWNED BY audit_events.id;
    CREATE INDEX audit_events_received_at ON audit_events USING brin (received_at);
    CREATE INDEX audit_events_timestamp ON audit_events USING brin ("timestamp" timestamptz_minmax_multi_ops);
    ALTER TABLE audit_events ATTACH PARTITION audit_events_first FOR VALUES FROM (MINVALUE) TO (:'next_month');
    CREATE TABLE audit_events_default PARTITION OF audit_events DEFAULT;
    -- who may do something with the table, may go on
    SELECT format('GRANT %s ON audit_events TO %I', acl.privilege_type, pg_get_userbyid(acl.grantee))
    FROM pg_class c, aclexplode(c.relacl) AS acl
    WHERE c.oid = 'audit_events_first'::regclass AND acl.grantee NOT IN (0, c.relowner)
    \gexec
    COMMIT;
\endif

BEGIN;
SET LOCAL lock_timeout = '3s';
ALTER TABLE audit_events DETACH PARTITION audit_events_default;
SELECT format(
    'CREATE TABLE IF NOT EXISTS audit_events_%s PARTITION OF audit_events FOR VALUES FROM (%L) TO (%L)',
    to_char(month, 'YYYY_MM'), month, month + interval '1 month'
)
FROM generate_series(
    coalesce(
        (SELECT date_trunc('month', min(received_at)) FROM audit_events_default),
        date_trunc('month', now()) + interval '1 month'
    ),
    greatest(now() + interval '12 months', (SELECT max(received_at) FROM audit_events_default)),
    interval '1 month'
) AS month
WHERE to_regclass('audit_events_' || to_char(month, 'YYYY_MM')) IS NULL
\gexec
INSERT INTO audit_events SELECT * FROM audit_events_default;
TRUNCATE audit_events_default;
ALTER TABLE audit_events ATTACH PARTITION audit_events_default DEFAULT;
COMMIT;
