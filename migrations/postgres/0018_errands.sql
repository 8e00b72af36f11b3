-- What a machine's controller does with it when no attempt has it: a check that somebody wants, powering it off after a person
-- had it. Rows of checks stay, as what was seen of the machine.

CREATE TABLE errand (
    id TEXT NOT NULL PRIMARY KEY,
    machine_id TEXT NOT NULL REFERENCES machine (id),
    kind TEXT NOT NULL CHECK (kind IN ('check', 'off')),
    -- Of a check: whether the machine is switched off and on as well.
    cycle BOOLEAN NOT NULL,
    wanted_by TEXT NOT NULL,
    wanted_at BIGINT NOT NULL,
    -- When its controller took it up last.
    given_at BIGINT,
    ended_at BIGINT,
    -- Whether it could be done, and how or why not.
    ok BOOLEAN,
    detail TEXT,
    findings JSONB
);

CREATE UNIQUE INDEX errand_open ON errand (machine_id, kind) WHERE ended_at IS NULL;
CREATE INDEX errand_machine ON errand (machine_id, id);

-- Whether a machine has one that is not over; it gets no job before that. In its row, so that a claim need not look further.
ALTER TABLE machine ADD COLUMN errand_owed BOOLEAN NOT NULL DEFAULT FALSE;
