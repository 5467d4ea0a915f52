-- Imported events have no API key. Each chunk of an import is kept under an idempotency key that never expires.
ALTER TABLE audit_events ALTER COLUMN api_key_id DROP NOT NULL;
ALTER TABLE idempotency_keys ALTER COLUMN expires_at DROP NOT NULL;
ALTER TABLE idempotency_keys ADD COLUMN stored_at timestamptz NOT NULL DEFAULT now();
