-- Makes a role for gunicorn: igris_web, which can add events and read the hashes of keys. It can not read events back,
-- change them or delete them. The owner of the tables runs the commands.
--
-- Run it in the service's database as a superuser, or as the owner of the tables if that role has CREATEROLE, after init-db
-- and again after every upgrade. An owner can't do all of it: the script then says what it left out. The password comes
-- from the environment, since arguments can be seen in the list of processes:
--     IGRIS_WEB_PASSWORD=... psql -d igris -f deploy/roles.sql
-- Then give gunicorn a DATABASE_URL with the user igris_web and that password.

\set ON_ERROR_STOP on
\set password `printenv IGRIS_WEB_PASSWORD`
SELECT :'password' <> '' AS has_password, pg_get_userbyid(relowner) AS owner, rolsuper AS is_superuser
FROM pg_class, pg_roles
WHERE pg_class.oid = 'audit_events'::regclass AND rolname = current_user \gset
\if :has_password
\else
    DO $$ BEGIN RAISE 'set IGRIS_WEB_PASSWORD in the environment'; END $$;
\endif

BEGIN;
\if :is_superuser
    SET LOCAL log_statement = 'none';  -- the server's log must not get the password
    SET LOCAL log_min_duration_statement = -1;
    SET LOCAL log_min_error_statement = 'panic';
\else
    \warn 'left out, since it needs a superuser: hiding the password from the log of the server'
\endif

SELECT 'CREATE ROLE igris_web LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'igris_web') \gexec
ALTER ROLE igris_web CONNECTION LIMIT 80 PASSWORD :'password';  -- of max_connections, 100 by default
\if :is_superuser
    ALTER ROLE igris_web NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
\endif

-- The role may change its own settings. These are the ones that the service relies on, for connections through a pooler,
-- which drops what the service asks for.
ALTER ROLE igris_web RESET ALL;
SELECT format('ALTER ROLE igris_web IN DATABASE %I RESET ALL', current_database()) \gexec
ALTER ROLE igris_web SET default_transaction_isolation = 'read committed';
ALTER ROLE igris_web SET standard_conforming_strings = 'on';
ALTER ROLE igris_web SET synchronous_commit = 'on';
ALTER ROLE igris_web SET DateStyle = 'ISO, MDY';
ALTER ROLE igris_web SET IntervalStyle = 'postgres';
ALTER ROLE igris_web SET TimeZone = 'UTC';
ALTER ROLE igris_web SET lock_timeout = '0.2s';
ALTER ROLE igris_web SET statement_timeout = '8s';
ALTER ROLE igris_web SET idle_in_transaction_session_timeout = '8s';

\if :is_superuser
    ALTER ROLE igris_web SET temp_file_limit = '64MB';  -- else its sorts could fill the disk
    -- On Citus the server of a worker would log the bodies of requests that lose a race.
    ALTER ROLE igris_web SET log_min_error_statement = 'panic';
    ALTER ROLE igris_web SET lc_messages = 'C';  -- the service finds the name of a trigger that failed in the English words
\else
    \warn 'left out, since they need a superuser: temp_file_limit, log_min_error_statement and lc_messages of igris_web'
\endif

-- Up to PostgreSQL 14 everybody may create functions in the schema, which the owner would run unawares.
\if :is_superuser
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    -- It has no business in other databases, whose disk is the same.
    SELECT format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', datname)
    FROM pg_database
    WHERE datname IN ('postgres', 'template1') AND datname <> current_database() \gexec
\else
    \warn 'left out, since they need a superuser: closing the schema public, other databases and large objects to igris_web'
\endif
GRANT USAGE, CREATE ON SCHEMA public TO :"owner";
SELECT format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), :'owner') \gexec
\if :is_superuser
-- Large objects would fill the disk.
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure)
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_open', 'lo_put', 'lowrite')
\gexec
\endif

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM igris_web;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM igris_web;
GRANT USAGE ON SCHEMA public TO igris_web;
GRANT SELECT ON schema_version TO igris_web;
GRANT SELECT (id, org_id, key_hash, expires_at, revoked_at) ON api_keys TO igris_web;
REVOKE EXECUTE ON FUNCTION store_events_v1 FROM PUBLIC;  -- a restored dump has no privileges
GRANT EXECUTE ON FUNCTION store_events_v1 TO igris_web;

COMMIT;
