-- These are read and written by their keys only: as the key's own tree they are kept once and not twice.

CREATE TABLE stage_by_key (
    attempt_id TEXT NOT NULL REFERENCES attempt (id),
    name TEXT NOT NULL,
    ordinal BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'proven', 'failed', 'skipped')),
    -- The whole stage as judged.
    body TEXT NOT NULL,
    PRIMARY KEY (attempt_id, name)
) WITHOUT ROWID;
INSERT INTO stage_by_key (attempt_id, name, ordinal, state, body)
SELECT attempt_id, name, ordinal, state, body FROM stage;
DROP TABLE stage;
ALTER TABLE stage_by_key RENAME TO stage;

CREATE TABLE event_by_key (
    run_id TEXT NOT NULL REFERENCES run (id),
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    job_id TEXT,
    attempt_id TEXT,
    body TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
) WITHOUT ROWID;
INSERT INTO event_by_key (run_id, seq, at, job_id, attempt_id, body)
SELECT run_id, seq, at, job_id, attempt_id, body FROM event;
DROP TABLE event;
ALTER TABLE event_by_key RENAME TO event;
CREATE INDEX event_attempt ON event (attempt_id, seq) WHERE attempt_id IS NOT NULL;

CREATE TABLE report_by_key (
    attempt_id TEXT NOT NULL REFERENCES attempt (id),
    role TEXT NOT NULL CHECK (role IN ('controller', 'target', 'capture')),
    seq BIGINT NOT NULL,
    body TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (attempt_id, role, seq)
) WITHOUT ROWID;
INSERT INTO report_by_key (attempt_id, role, seq, body, received_at)
SELECT attempt_id, role, seq, body, received_at FROM report;
DROP TABLE report;
ALTER TABLE report_by_key RENAME TO report;

CREATE TABLE segment_by_key (
    artifact_id TEXT NOT NULL REFERENCES artifact (id),
    start_at BIGINT NOT NULL,
    length BIGINT NOT NULL CHECK (length > 0),
    -- BLAKE3: of an upload's chunk its chaining value, of console bytes their own hash.
    hash TEXT NOT NULL,
    -- When the server had it.
    received_at BIGINT NOT NULL,
    PRIMARY KEY (artifact_id, start_at)
) WITHOUT ROWID;
INSERT INTO segment_by_key (artifact_id, start_at, length, hash, received_at)
SELECT artifact_id, start_at, length, hash, received_at FROM segment;
DROP TABLE segment;
ALTER TABLE segment_by_key RENAME TO segment;
