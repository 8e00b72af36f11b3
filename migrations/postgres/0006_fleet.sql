-- A machine's life outside of attempts: every change with its reason, reservations by people, quarantine and probation.
-- A job's policy: which failures are tried again, where, and with which kernel.

CREATE TABLE machine_change (
    machine_id TEXT NOT NULL REFERENCES machine (id),
    -- Counts from 1 inside the machine.
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('enrolled', 'available', 'leased', 'held', 'reserved', 'quarantined', 'retired')),
    reason TEXT,
    -- `server`, or `token:NAME`.
    decided_by TEXT NOT NULL,
    attempt_id TEXT REFERENCES attempt (id),
    PRIMARY KEY (machine_id, seq)
);

CREATE TABLE reservation (
    id TEXT NOT NULL PRIMARY KEY,
    machine_id TEXT NOT NULL REFERENCES machine (id),
    -- `token:NAME`, or the submitter whose plan holds machines of failed jobs.
    owner TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- When the machine was theirs; NULL while an attempt still has it.
    began_at BIGINT,
    until_at BIGINT NOT NULL,
    -- When its end was announced.
    warned_at BIGINT,
    ended_at BIGINT,
    ended_by TEXT,
    -- The failed attempt that the machine is kept for, in the state it was in.
    attempt_id TEXT REFERENCES attempt (id)
);

CREATE UNIQUE INDEX reservation_open ON reservation (machine_id) WHERE ended_at IS NULL;
CREATE INDEX reservation_until ON reservation (until_at) WHERE ended_at IS NULL;

-- When a quarantined machine gets another chance; NULL is when a person says so.
ALTER TABLE machine ADD COLUMN quarantined_until BIGINT;
-- How often it was quarantined since it last proved itself; not 0 is on probation.
ALTER TABLE machine ADD COLUMN probation BIGINT NOT NULL DEFAULT 0;
-- Attempts from before this moment are not held against it.
ALTER TABLE machine ADD COLUMN trusted_since BIGINT NOT NULL DEFAULT 0;

CREATE INDEX machine_quarantined ON machine (quarantined_until) WHERE quarantined_until IS NOT NULL;

ALTER TABLE job ADD COLUMN policy JSONB NOT NULL DEFAULT '{}';
ALTER TABLE job ADD COLUMN preemptible BOOLEAN NOT NULL DEFAULT FALSE;
-- What the next attempt is for, and which machine it must or must not have.
ALTER TABLE job ADD COLUMN purpose TEXT NOT NULL DEFAULT 'test' CHECK (purpose IN ('test', 'known-good', 'elsewhere'));
ALTER TABLE job ADD COLUMN only_machine_id TEXT;
ALTER TABLE job ADD COLUMN not_machine_id TEXT;

CREATE INDEX job_bound ON job (id) WHERE state = 'queued' AND (only_machine_id IS NOT NULL OR not_machine_id IS NOT NULL);

ALTER TABLE attempt ADD COLUMN purpose TEXT NOT NULL DEFAULT 'test' CHECK (purpose IN ('test', 'known-good', 'elsewhere'));
-- The kernel it boots, where that is not the run's.
ALTER TABLE attempt ADD COLUMN boots_build_id TEXT REFERENCES build (id);
-- Whether its machine was given to somebody else before it armed.
ALTER TABLE attempt ADD COLUMN gave_way BOOLEAN NOT NULL DEFAULT FALSE;
-- Until when its machine is kept as it is.
ALTER TABLE attempt ADD COLUMN held_until BIGINT;
