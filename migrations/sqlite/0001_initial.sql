-- The farm's ledger. Same tables and columns as the file of this name for PostgreSQL; a test holds them together.
-- Ids are ULIDs, times are Unix milliseconds handed in by the server, words are TEXT with a CHECK, JSON is never queried inside.

CREATE TABLE tree (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    git_url TEXT,
    created_at BIGINT NOT NULL
);

CREATE TABLE checkout (
    id TEXT NOT NULL PRIMARY KEY,
    tree_id TEXT NOT NULL REFERENCES tree (id),
    git_commit_hash TEXT NOT NULL,
    git_repository_branch TEXT,
    git_commit_name TEXT,
    created_at BIGINT NOT NULL,
    UNIQUE (tree_id, git_commit_hash)
);

CREATE TABLE build (
    id TEXT NOT NULL PRIMARY KEY,
    checkout_id TEXT REFERENCES checkout (id),
    idempotency_key TEXT UNIQUE,
    name TEXT NOT NULL,
    architecture TEXT NOT NULL,
    release TEXT NOT NULL,
    build_id TEXT,
    config_name TEXT,
    cmdline TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE scenario (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE plan (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE run (
    id TEXT NOT NULL PRIMARY KEY,
    build_id TEXT NOT NULL REFERENCES build (id),
    name TEXT NOT NULL,
    plan TEXT NOT NULL,
    idempotency_key TEXT UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('open', 'done')),
    status TEXT NOT NULL CHECK (status IN ('PASS', 'FAIL', 'ERROR', 'MISS', 'SKIP', 'DONE')),
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    last_event BIGINT NOT NULL
);

-- Which machines a job may have. Jobs with equal labels share one row, so that a claim asks once for each.
CREATE TABLE selector (
    id TEXT NOT NULL PRIMARY KEY,
    labels_key TEXT NOT NULL UNIQUE,
    labels TEXT NOT NULL
);

CREATE TABLE job (
    id TEXT NOT NULL PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES run (id),
    ordinal BIGINT NOT NULL,
    scenario TEXT NOT NULL,
    selector_id TEXT NOT NULL REFERENCES selector (id),
    -- Place in the queue, computed once at submission.
    rank BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'leased', 'done', 'cancelled')),
    status TEXT NOT NULL CHECK (status IN ('PASS', 'FAIL', 'ERROR', 'MISS', 'SKIP', 'DONE')),
    reason TEXT,
    blamed_stage TEXT,
    attempt_count BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    UNIQUE (run_id, ordinal)
);

CREATE INDEX job_queue ON job (selector_id, rank, id) WHERE state = 'queued';

CREATE TABLE controller (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    version TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL
);

CREATE TABLE machine (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    controller_id TEXT NOT NULL REFERENCES controller (id),
    labels TEXT NOT NULL,
    -- Whether its controller named it when it last enrolled.
    announced BOOLEAN NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('enrolled', 'available', 'leased', 'held', 'reserved', 'quarantined', 'retired')),
    reason TEXT,
    state_since BIGINT NOT NULL,
    attempt_id TEXT,
    lease_epoch BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX machine_controller ON machine (controller_id);

CREATE TABLE machine_selector (
    machine_id TEXT NOT NULL REFERENCES machine (id),
    selector_id TEXT NOT NULL REFERENCES selector (id),
    PRIMARY KEY (machine_id, selector_id)
);

CREATE INDEX machine_selector_selector ON machine_selector (selector_id, machine_id);

CREATE TABLE attempt (
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES job (id),
    run_id TEXT NOT NULL REFERENCES run (id),
    number BIGINT NOT NULL,
    machine_id TEXT NOT NULL REFERENCES machine (id),
    controller_id TEXT NOT NULL REFERENCES controller (id),
    epoch BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'collecting', 'done', 'lost')),
    verdict TEXT NOT NULL CHECK (verdict IN ('PASS', 'FAIL', 'ERROR', 'MISS', 'SKIP', 'DONE')),
    reason TEXT,
    blamed_stage TEXT,
    -- Title of the crash that nobody asked for, where the contract stopped at one.
    signature TEXT,
    -- When to judge again if nothing arrives until then.
    check_at BIGINT,
    -- Counts the judgements applied, so that one made from older evidence never overwrites a newer one.
    judgement_seq BIGINT NOT NULL,
    lease_expires_at BIGINT NOT NULL,
    -- What was read in the dump; NULL until it has been read.
    dump_facts TEXT,
    started_at BIGINT NOT NULL,
    judged_at BIGINT,
    finished_at BIGINT,
    released_healthy BOOLEAN,
    release_detail TEXT,
    progress_event_at BIGINT,
    UNIQUE (job_id, number)
);

-- A machine and a job each have at most one lease: the database refuses a second one, whatever the code does.
CREATE UNIQUE INDEX attempt_live_machine ON attempt (machine_id) WHERE state IN ('running', 'collecting');
CREATE UNIQUE INDEX attempt_live_job ON attempt (job_id) WHERE state IN ('running', 'collecting');
CREATE INDEX attempt_lease ON attempt (lease_expires_at) WHERE state IN ('running', 'collecting');
CREATE INDEX attempt_check ON attempt (check_at) WHERE check_at IS NOT NULL;
CREATE INDEX attempt_run ON attempt (run_id);
CREATE INDEX attempt_machine ON attempt (machine_id, id);

CREATE TABLE token (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('admin', 'submit', 'controller', 'attempt')),
    -- BLAKE3 of the secret.
    secret_hash TEXT NOT NULL UNIQUE,
    attempt_id TEXT REFERENCES attempt (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);

CREATE INDEX token_attempt ON token (attempt_id) WHERE attempt_id IS NOT NULL;

CREATE TABLE stage (
    attempt_id TEXT NOT NULL REFERENCES attempt (id),
    name TEXT NOT NULL,
    ordinal BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'proven', 'failed', 'skipped')),
    -- The whole stage as judged.
    body TEXT NOT NULL,
    PRIMARY KEY (attempt_id, name)
);

CREATE TABLE report (
    attempt_id TEXT NOT NULL REFERENCES attempt (id),
    role TEXT NOT NULL CHECK (role IN ('controller', 'target', 'capture')),
    seq BIGINT NOT NULL,
    body TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (attempt_id, role, seq)
);

CREATE TABLE artifact (
    id TEXT NOT NULL PRIMARY KEY,
    build_id TEXT REFERENCES build (id),
    attempt_id TEXT REFERENCES attempt (id),
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'complete', 'dropped')),
    -- Bytes received; for a console the offset of the next byte.
    size BIGINT NOT NULL,
    blake3 TEXT,
    created_at BIGINT NOT NULL,
    completed_at BIGINT,
    -- When closing it was refused because its bytes are not the announced ones, and how they differ.
    mismatch_at BIGINT,
    mismatch TEXT,
    CHECK ((build_id IS NULL) <> (attempt_id IS NULL)),
    UNIQUE (build_id, name),
    UNIQUE (attempt_id, name)
);

-- Where the bytes of an artifact are: one immutable object of the blob store for each row.
CREATE TABLE segment (
    artifact_id TEXT NOT NULL REFERENCES artifact (id),
    start_at BIGINT NOT NULL,
    length BIGINT NOT NULL CHECK (length > 0),
    -- BLAKE3: of an upload's chunk its chaining value, of console bytes their own hash.
    hash TEXT NOT NULL,
    -- When the server had it.
    received_at BIGINT NOT NULL,
    PRIMARY KEY (artifact_id, start_at)
);

CREATE TABLE event (
    run_id TEXT NOT NULL REFERENCES run (id),
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    job_id TEXT,
    attempt_id TEXT,
    body TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
);

-- Servers that are or were up, and the times in which none was: stages do not age then.
CREATE TABLE server_seen (
    id TEXT NOT NULL PRIMARY KEY,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL
);

CREATE TABLE server_away (
    from_at BIGINT NOT NULL,
    to_at BIGINT NOT NULL,
    PRIMARY KEY (from_at, to_at)
);

CREATE INDEX artifact_open ON artifact (id) WHERE state = 'open';
CREATE INDEX checkout_created ON checkout (tree_id, id);
CREATE INDEX run_build ON run (build_id);
CREATE INDEX event_attempt ON event (attempt_id, seq) WHERE attempt_id IS NOT NULL;
