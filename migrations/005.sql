-- Seals show later that what was received is still whole. schema.sql has the same text.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- A seal is the digest of what an organization received in a period. Its own digest covers the seal before, so that seals
-- form a chain: docs/evidence.md has the definition.
CREATE TABLE seals (
    org_id    text NOT NULL,
    number    integer NOT NULL,  -- 1, 2 and so on
    since     timestamptz NOT NULL,  -- the end of the period before
    until     timestamptz NOT NULL,  -- received_at of its events is less
    events    bigint NOT NULL,
    digest    bytea NOT NULL,  -- SHA-256 of the period's events, as `export` writes them
    previous  bytea NOT NULL,  -- the own digest of the seal before; of the first it is 32 zero bytes
    seal      bytea NOT NULL,  -- its own digest
    sealed_at timestamptz NOT NULL DEFAULT now(),
    pruned_at timestamptz,  -- NULL: the events have to be there
    pruned_by text,  -- the command
    PRIMARY KEY (org_id, number)
);
