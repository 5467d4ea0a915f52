-- Makes audit_events a table of partitions, one for each month of receipt, so that old months can be dropped at once:
--     psql "$DATABASE_URL" -f deploy/partitions.sql
-- The first time it turns the table into the first partition, without copying a row: the key is built while the service
-- goes on, and requests wait only while the tables change places. Each time it makes the partitions of the next 12
-- months: run it every month, from cron. What finds no partition goes into the default one, is not lost, and is moved to
-- where it belongs by the next run.
--
-- It is all or nothing: if it fails, the table is as it was. Run it as the owner of the table, or as a superuser.

\set ON_ERROR_STOP on
SET timezone = 'UTC';

-- From here on names of functions and operators are PostgreSQL's own, and not those of the schema.
SELECT pg_catalog.quote_ident(n.nspname) AS schema, c.relkind = 'r' AS ordinary,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') AS may, pg_catalog.pg_get_userbyid(c.relowner) AS owner
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = 'audit_events'::pg_catalog.regclass \gset
SET search_path = pg_catalog, :schema;
\if :may
    SET ROLE :"owner";
\else
    DO $$ BEGIN RAISE 'run this as the owner of audit_events, or as a superuser'; END $$;
\endif

SELECT to_regclass('pg_dist_partition') IS NOT NULL AS citus \gset
\if :citus
    SELECT :'ordinary'::boolean AND count(*) > 0 AS distributed
    FROM pg_dist_partition
    WHERE logicalrelid = 'audit_events'::regclass \gset
    \if :distributed
        DO $$ BEGIN RAISE 'audit_events is distributed already: partitions have to be made before'; END $$;
    \endif
\endif

\if :ordinary
    SELECT date_trunc('month', now()) + interval '1 month' AS next_month \gset

    -- A partition's key has to contain what it is chosen by. This takes a while for a large table, and blocks no request. An
    -- index that an earlier run could not finish is of no use.
    SELECT 'DROP INDEX audit_events_first_pkey'
    FROM pg_index
    WHERE indexrelid = to_regclass('audit_events_first_pkey') AND NOT indisvalid \gexec
    CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS audit_events_first_pkey ON audit_events (org_id, id, received_at);

    -- The rows are checked while the service goes on, so that the exchange needs no look at them. The constraint must not
    -- stay if anything fails: it would reject all events from next month on. So errors do not end the script until the
    -- constraint is gone. (Should psql itself be killed meanwhile, the next run begins with dropping it.)
    ALTER TABLE audit_events DROP CONSTRAINT IF EXISTS first_months;
    \set ON_ERROR_STOP off
    ALTER TABLE audit_events ADD CONSTRAINT first_months CHECK (received_at < :'next_month') NOT VALID;
    ALTER TABLE audit_events VALIDATE CONSTRAINT first_months;
    BEGIN;
    SET LOCAL lock_timeout = '3s';  -- run it again if it could not get the table
    ALTER TABLE audit_events RENAME TO audit_events_first;
    ALTER TABLE audit_events_first DROP CONSTRAINT audit_events_pkey;
    ALTER TABLE audit_events_first ADD CONSTRAINT audit_events_first_pkey PRIMARY KEY USING INDEX audit_events_first_pkey;
    ALTER INDEX audit_events_received_at RENAME TO audit_events_first_received_at;
    ALTER INDEX audit_events_timestamp RENAME TO audit_events_first_timestamp;
    CREATE TABLE :schema.audit_events (LIKE audit_events_first INCLUDING DEFAULTS) PARTITION BY RANGE (received_at);
    ALTER TABLE audit_events ADD PRIMARY KEY (org_id, id, received_at);
    ALTER SEQUENCE audit_events_id_seq OWNED BY audit_events.id;
    CREATE INDEX audit_events_received_at ON audit_events USING brin (received_at);
    CREATE INDEX audit_events_timestamp ON audit_events USING brin ("timestamp" timestamptz_minmax_multi_ops);
    ALTER TABLE audit_events ATTACH PARTITION audit_events_first FOR VALUES FROM (MINVALUE) TO (:'next_month');
    CREATE TABLE :schema.audit_events_default PARTITION OF audit_events DEFAULT;
    -- who may do something with the table, may go on
    SELECT format('GRANT %s ON audit_events TO %I', acl.privilege_type, pg_get_userbyid(acl.grantee))
    FROM pg_class c, aclexplode(c.relacl) AS acl
    WHERE c.oid = 'audit_events_first'::regclass AND acl.grantee NOT IN (0, c.relowner)
    \gexec
    COMMIT;  -- or a rollback, if one of them failed
    SELECT relkind = 'r' AS failed FROM pg_class WHERE oid = 'audit_events'::regclass \gset
    \set ON_ERROR_STOP on
    \if :failed
        ALTER TABLE audit_events DROP CONSTRAINT IF EXISTS first_months;
        DO $$ BEGIN RAISE 'nothing was changed; see the error above'; END $$;
    \endif
    ALTER TABLE audit_events_first DROP CONSTRAINT first_months;  -- the partition's bound says the same
\endif

BEGIN;
SET LOCAL lock_timeout = '3s';
ALTER TABLE audit_events DETACH PARTITION audit_events_default;
SELECT format(
    'CREATE TABLE IF NOT EXISTS %s.audit_events_%s PARTITION OF audit_events FOR VALUES FROM (%L) TO (%L)',
    :'schema', to_char(month, 'YYYY_MM'), month, month + interval '1 month'
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
