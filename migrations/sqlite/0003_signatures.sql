-- Crashes by what they are: reports of consoles under the signature that one version of the crash-log rules gives them. Better
-- rules make signatures of their own and leave these as they are, so what people have triaged is never bucketed anew.
CREATE TABLE signature (
    id TEXT NOT NULL PRIMARY KEY,
    rule_version BIGINT NOT NULL,
    -- Hash of title and frames.
    fingerprint TEXT NOT NULL,
    title TEXT NOT NULL,
    kind TEXT NOT NULL,
    frame TEXT,
    module TEXT,
    frames TEXT NOT NULL,
    -- When the first and the last attempt began that showed it.
    first_seen_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    UNIQUE (rule_version, fingerprint)
);

CREATE INDEX signature_rules ON signature (rule_version, id);

-- Where a signature was seen: one row for each console, with the place of its first report there.
CREATE TABLE signature_attempt (
    signature_id TEXT NOT NULL REFERENCES signature (id),
    artifact_id TEXT NOT NULL REFERENCES artifact (id),
    attempt_id TEXT NOT NULL REFERENCES attempt (id),
    source TEXT NOT NULL,
    -- Byte and line of the console.
    start_at BIGINT NOT NULL,
    line BIGINT NOT NULL,
    reports BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (signature_id, artifact_id)
);

CREATE INDEX signature_attempt_seen ON signature_attempt (signature_id, seen_at);
CREATE INDEX signature_attempt_attempt ON signature_attempt (attempt_id);
