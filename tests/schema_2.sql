-- The tables, as `flask --app app init-db` makes them in an empty database.
--
-- Every unique key of a table that holds events or usage begins with org_id, and no column is an identity column,
-- so that these tables can be distributed by org_id over several machines.

CREATE TABLE schema_version (
    version integer NOT NULL
);

CREATE TABLE organizations (
    id            text PRIMARY KEY,  -- its name: ORG of the commands
    monthly_quota bigint CHECK (monthly_quota >= 0),  -- events; NULL: unlimited
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id         bigserial PRIMARY KEY,
    org_id     text NOT NULL REFERENCES organizations,
    key_hash   bytea NOT NULL UNIQUE,  -- SHA-256 of the whole key, which is stored nowhere
    prefix     text NOT NULL,  -- its first characters, to tell keys apart
    label      text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,  -- NULL: never
    revoked_at timestamptz
);

-- No foreign keys: checking one costs more than inserting the row, and the storing statement has read the key.
CREATE TABLE audit_events (
    id          bigserial,
    org_id      text NOT NULL,
    api_key_id  bigint,  -- NULL: it was imported
    source      text NOT NULL DEFAULT 'raw',  -- or import
    type        text NOT NULL,
    tool_name   text NOT NULL,
    action      text NOT NULL,
    "timestamp" timestamptz NOT NULL,  -- the client's, or the time of receipt
    metadata    jsonb NOT NULL,
    received_at timestamptz NOT NULL,  -- ours; the quota counts by it
    PRIMARY KEY (org_id, id)
);

-- Rows lie in the order of their receipt, so a BRIN index finds a period at a thousandth of a btree's size and cost.
CREATE INDEX audit_events_received_at ON audit_events USING brin (received_at);
CREATE INDEX audit_events_timestamp ON audit_events USING brin ("timestamp" timestamptz_minmax_multi_ops);

-- The events of an organization in a calendar month in UTC: the sum of `used` over its slots.
-- A limited organization counts in slot 0, where the CHECK keeps the quota exact however many requests run at once.
-- An unlimited one has a slot for each backend, so that its requests do not wait for each other's commit.
CREATE TABLE monthly_usage (
    org_id text NOT NULL,
    month  date NOT NULL,  -- its first day
    slot   smallint NOT NULL,
    used   bigint NOT NULL,
    quota  bigint,  -- what slot 0 may hold; NULL in the other slots
    PRIMARY KEY (org_id, month, slot),
    CONSTRAINT within_quota CHECK (used <= quota)
) WITH (fillfactor = 50);  -- room on the page: the row is updated by every request

-- What was answered under an Idempotency-Key, kept in the transaction that stored the events. An import keeps a key of
-- its own for each of its chunks.
CREATE TABLE idempotency_keys (
    org_id          text NOT NULL,
    key             text NOT NULL,
    fingerprint     bytea NOT NULL,  -- SHA-256 of the body
    ingested        integer NOT NULL,
    remaining_quota bigint,
    expires_at      timestamptz,  -- NULL: an import's, as long as one of its events is there
    stored_at       timestamptz NOT NULL DEFAULT now(),  -- received_at of its events
    PRIMARY KEY (org_id, key)
);
