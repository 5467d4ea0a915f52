-- The tables, as `igris-ingest init-db` makes them in an empty database.
--
-- Every unique key of a table that holds events or usage begins with org_id, and no column is an identity column,
-- so that these tables can be distributed by org_id over several machines.

-- The function below looks for names here, and nowhere else first.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

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
-- An unlimited one has a slot for each backend, so that its requests do not wait for each other's commit. Two backends
-- share a slot if their process ids differ by a multiple of 32,767.
-- Slot -1 is there if the quota rejected a request in the month: `check` reports it.
CREATE TABLE monthly_usage (
    org_id text NOT NULL,
    month  date NOT NULL,  -- its first day
    slot   smallint NOT NULL,
    used   bigint NOT NULL,
    quota  bigint,  -- what slot 0 may hold; NULL in the other slots
    PRIMARY KEY (org_id, month, slot),
    CONSTRAINT within_quota CHECK (used <= quota)
) WITH (fillfactor = 50);  -- room on the page: the row is updated by every request

-- What was responded under an Idempotency-Key, kept in the transaction that stored the events. An import keeps a key of
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

-- The rows that `import --id` stored, so that each is stored once, from any file.
CREATE TABLE imported_rows (
    org_id    text NOT NULL,
    row_id    bytea NOT NULL,  -- the first 16 bytes of the SHA-256 of the row's id
    content   bytea NOT NULL,  -- the first 16 bytes of the SHA-256 of its event
    stored_at timestamptz NOT NULL DEFAULT now(),  -- received_at of its event
    PRIMARY KEY (org_id, row_id)
);

CREATE INDEX imported_rows_stored_at ON imported_rows USING brin (stored_at);

-- The runs of `import`. Only one at a time runs into an organization, so the events of a run are those with the source
-- `import` that were received from its beginning to its end.
CREATE TABLE imports (
    org_id     text NOT NULL,
    id         bigserial,
    file       text NOT NULL,  -- its path, or - for standard input
    options    text NOT NULL,  -- JSON
    sha256     bytea,  -- of an ordinary file, as it was at the beginning
    began_at   timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz,  -- NULL: it runs, or its process was killed
    read       bigint NOT NULL DEFAULT 0,  -- rows
    stored     bigint NOT NULL DEFAULT 0,
    skipped    bigint NOT NULL DEFAULT 0,  -- stored by an earlier run
    rejected   bigint NOT NULL DEFAULT 0,
    undone_at  timestamptz,
    PRIMARY KEY (org_id, id)
);

-- The chain of an organization: what was sealed of it, and what was deleted since. Each entry has the digest of the entry
-- before. docs/evidence.md has the definition of an entry.
CREATE TABLE chain_entries (
    org_id       text NOT NULL,
    number       integer NOT NULL,  -- 1, 2 and so on
    since        timestamptz NOT NULL,  -- of a seal: the end of the period before
    until        timestamptz NOT NULL,  -- received_at of the period's events is less
    events       bigint NOT NULL,  -- that the period has from this entry on
    digest       bytea NOT NULL,  -- SHA-256 of these events, as `export` writes them
    previous     bytea NOT NULL,  -- entry_digest of the entry before; of the first it is 32 zero bytes
    reason       text,  -- NULL: a seal. Else an amendment: the command that deleted events, and the operator's words
    entry_digest bytea NOT NULL,  -- SHA-256 of the columns above, as a line of JSON
    made_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (org_id, number)
);

-- Stores the events of a batch in one transaction: makes the rows from the body itself, so that numbers keep every digit,
-- counts them, and keeps the response under the idempotency key, if there is one.
--
-- p_body is an array of events, or an object whose `events` is one; p_indexes chooses some of them (NULL: all), p_count
-- is how many these are. A command has no API key (NULL). p_idempotency_days NULL keeps the idempotency key for ever.
--
-- outcome is `stored`, `replayed` (an earlier batch had the same idempotency key and body), `key_reused` (it had another
-- body), `quota_exceeded` or `unauthorized`. Unless it is `stored`, nothing was. If another transaction commits a row that
-- conflicts, the CHECK of monthly_usage or the primary key of idempotency_keys fails: call the function again then. The
-- usage row is touched as late as possible, since others wait for its lock until the commit.
--
-- It runs with the rights of its owner, so that the role of the service needs no others. migrations/README.md says what
-- the number in its name means.
CREATE FUNCTION store_events_v1(
    p_org_id text,
    p_api_key_id bigint,
    p_source text,
    p_body jsonb,
    p_indexes integer[],
    p_count integer,
    p_idempotency_key text,
    p_fingerprint bytea,
    p_idempotency_days integer,
    OUT outcome text,
    OUT ingested integer,
    OUT remaining bigint,
    OUT resets_at text  -- when the next month begins, if the quota was exceeded
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    v_month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    v_quota bigint;
    v_used bigint := 0;
    v_fingerprint bytea;
    v_events jsonb;
    v_rows integer;
BEGIN
    SELECT o.monthly_quota INTO v_quota
    FROM organizations o
    WHERE o.id = p_org_id
      AND (p_api_key_id IS NULL OR EXISTS (
          SELECT
          FROM api_keys k
          WHERE k.id = p_api_key_id
            AND k.org_id = p_org_id
            AND k.revoked_at IS NULL
            AND (k.expires_at IS NULL OR k.expires_at > now())
      ));
    IF NOT FOUND THEN
        outcome := 'unauthorized';
        RETURN;
    END IF;

    -- before the idempotency key: where the same batch has used up the quota meanwhile, its key is found
    IF v_quota IS NOT NULL THEN
        SELECT
            coalesce(sum(u.used) FILTER (WHERE u.slot = 0), 0),
            v_quota - coalesce(sum(u.used) FILTER (WHERE u.slot <> 0), 0)
        INTO v_used, v_quota
        FROM monthly_usage u
        WHERE u.org_id = p_org_id AND u.month = v_month;
    END IF;

    IF p_idempotency_key IS NOT NULL THEN
        DELETE FROM idempotency_keys k
        WHERE k.org_id = p_org_id AND k.key = p_idempotency_key AND k.expires_at <= now();
        SELECT k.fingerprint, k.ingested, k.remaining_quota INTO v_fingerprint, ingested, remaining
        FROM idempotency_keys k
        WHERE k.org_id = p_org_id AND k.key = p_idempotency_key;
        IF FOUND THEN
            outcome := CASE WHEN v_fingerprint = p_fingerprint THEN 'replayed' ELSE 'key_reused' END;
            RETURN;
        END IF;
    END IF;

    IF p_count > 0 AND v_used + p_count > v_quota THEN
        outcome := 'quota_exceeded';
        resets_at := to_char(v_month + interval '1 month', 'YYYY-MM-DD"T00:00:00Z"');
        remaining := greatest(v_quota - v_used, 0);
        INSERT INTO monthly_usage (org_id, month, slot, used) VALUES (p_org_id, v_month, -1, 0) ON CONFLICT DO NOTHING;
        RETURN;
    END IF;

    outcome := 'stored';
    ingested := p_count;
    remaining := CASE WHEN v_quota IS NOT NULL THEN greatest(v_quota - v_used, 0) END;
    IF p_count = 0 THEN
        RETURN;
    END IF;

    v_events := coalesce(p_body -> 'events', p_body);
    IF p_indexes IS NOT NULL THEN
        -- jsonb_agg takes 8 s for an object of 500,000 members
        v_events := jsonb_build_array(VARIADIC ARRAY(SELECT v_events -> i FROM unnest(p_indexes) AS i ORDER BY i));
    END IF;
    INSERT INTO audit_events
        (org_id, api_key_id, source, type, tool_name, action, "timestamp", metadata, received_at)
    SELECT
        p_org_id,
        p_api_key_id,
        p_source,
        e.type,
        e."toolName",
        coalesce(e.action, 'log'),
        -- a fraction of a hundred digits is too long for PostgreSQL's parser, and says no more than 20 do
        coalesce(
            CASE WHEN length(e."timestamp") > 60
            THEN regexp_replace(e."timestamp", '([.][0-9]{20})[0-9]+', '\1')
            ELSE e."timestamp" END::timestamptz,
            now()
        ),
        coalesce(e.metadata, '{}'),
        now()
    FROM jsonb_to_recordset(v_events)
        AS e (type text, "toolName" text, action text, "timestamp" text, metadata jsonb);
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    IF v_rows <> p_count THEN  -- the caller's count is what the quota counts
        RAISE 'the count is %, and the body has % events', p_count, v_rows;
    END IF;

    INSERT INTO monthly_usage AS u (org_id, month, slot, used, quota)
    VALUES (
        p_org_id,
        v_month,
        CASE WHEN v_quota IS NULL THEN 1 + pg_backend_pid() % 32767 ELSE 0 END,
        p_count,
        v_quota
    )
    ON CONFLICT (org_id, month, slot) DO UPDATE
        SET used = u.used + excluded.used, quota = excluded.quota
    RETURNING u.quota - u.used INTO remaining;

    IF p_idempotency_key IS NOT NULL THEN
        INSERT INTO idempotency_keys (org_id, key, fingerprint, ingested, remaining_quota, expires_at)
        VALUES (
            p_org_id,
            p_idempotency_key,
            p_fingerprint,
            p_count,
            remaining,
            now() + p_idempotency_days * interval '1 day'
        );
    END IF;
END
$$;
