-- Dumps are large, so their bytes do not stay for ever. The row of a dropped one keeps name, size and hash and says why
-- its bytes are gone; a person can hold one. A dump is written down as dropped before its first byte goes.
ALTER TABLE artifact ADD COLUMN held_at BIGINT;
ALTER TABLE artifact ADD COLUMN held_by TEXT;
ALTER TABLE artifact ADD COLUMN held_reason TEXT;
ALTER TABLE artifact ADD COLUMN dropped_at BIGINT;
ALTER TABLE artifact ADD COLUMN dropped_reason TEXT;
-- When the last byte of a dropped one had left the blob store.
ALTER TABLE artifact ADD COLUMN emptied_at BIGINT;

CREATE INDEX artifact_dump ON artifact (completed_at, id) WHERE name = 'vmcore' AND state = 'complete';
CREATE INDEX artifact_dropping ON artifact (id) WHERE state = 'dropped' AND emptied_at IS NULL;

-- What could be read of a dump that is still arriving; replaced as it grows.
CREATE TABLE glimpse (
    artifact_id TEXT NOT NULL PRIMARY KEY REFERENCES artifact (id),
    -- Bytes from the dump's start that were there.
    bytes BIGINT NOT NULL,
    -- NULL: nothing could be read of so little.
    body JSONB,
    -- The panic was seen: nothing that is still to come is waited for.
    settled BOOLEAN NOT NULL,
    read_at BIGINT NOT NULL
);
