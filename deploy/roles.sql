-- Two roles: the owner, who runs the commands, and igris_web, which runs gunicorn and can do no more than requests need.
-- It can add events and read keys' hashes; it can not read events back, change them or delete them.
--
-- Run in the database, after init-db and again after every upgrade, as a superuser:
--     psql "$DATABASE_URL" -v password=secret -f deploy/roles.sql
-- and give gunicorn a DATABASE_URL with the user igris_web and that password.

\set ON_ERROR_STOP on
BEGIN;

SELECT 'CREATE ROLE igris_web LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'igris_web') \gexec
ALTER ROLE igris_web PASSWORD :'password';

-- For connections through a pooler, which drops the timeouts that the service asks for.
ALTER ROLE igris_web SET lock_timeout = '7s';
ALTER ROLE igris_web SET statement_timeout = '8s';
ALTER ROLE igris_web SET idle_in_transaction_session_timeout = '8s';

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM igris_web;
GRANT USAGE ON SCHEMA public TO igris_web;
GRANT SELECT ON schema_version, organizations, api_keys TO igris_web;
GRANT INSERT ON audit_events TO igris_web;
GRANT USAGE ON SEQUENCE audit_events_id_seq TO igris_web;
GRANT SELECT, INSERT, UPDATE ON monthly_usage TO igris_web;
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO igris_web;

COMMIT;
