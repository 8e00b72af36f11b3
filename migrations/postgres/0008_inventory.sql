-- What machines are made of as their kernels see it, whether they are healthy, what people type into consoles, and what a
-- reservation gives back.

CREATE TABLE machine_inventory (
    machine_id TEXT NOT NULL PRIMARY KEY REFERENCES machine (id),
    -- Who found it.
    attempt_id TEXT NOT NULL REFERENCES attempt (id),
    seen_at BIGINT NOT NULL,
    -- Name and value.
    facts JSONB NOT NULL
);

-- Labels that follow from the inventory; those of the controller's configuration win.
ALTER TABLE machine ADD COLUMN seen_labels JSONB NOT NULL DEFAULT '{}';

CREATE TABLE key_press (
    attempt_id TEXT NOT NULL REFERENCES attempt (id),
    -- Counts from 0 inside the attempt.
    number BIGINT NOT NULL,
    source TEXT NOT NULL,
    -- `token:NAME`.
    typed_by TEXT NOT NULL,
    keys JSONB NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (attempt_id, number)
);

-- The quarantine that a reservation interrupts, or that the attempt before it asked for: it is there again afterwards.
ALTER TABLE reservation ADD COLUMN quarantine_reason TEXT;
ALTER TABLE reservation ADD COLUMN quarantine_until BIGINT;

-- When its last health check was submitted.
ALTER TABLE machine ADD COLUMN health_at BIGINT;
-- How its failures differ from those of the machines that ran the same tests; NULL if they do not.
ALTER TABLE machine ADD COLUMN differs TEXT;
-- The machine whose health a run checks.
ALTER TABLE run ADD COLUMN health_machine_id TEXT REFERENCES machine (id);

CREATE INDEX run_health ON run (health_machine_id) WHERE health_machine_id IS NOT NULL AND state = 'open';
