-- Fair share. A flow is the queue of one submitter's jobs of one priority for one selector; jobs stand in it in order, and a
-- claim chooses between flows, so it costs the same however many jobs are queued.

CREATE TABLE submitter (
    id TEXT NOT NULL PRIMARY KEY,
    -- `tree:NAME`, or `token:NAME` where a build belongs to no tree.
    name TEXT NOT NULL UNIQUE,
    weight BIGINT NOT NULL CHECK (weight BETWEEN 1 AND 1000),
    -- Most machines at once; NULL is no limit.
    max_machines BIGINT CHECK (max_machines >= 0),
    -- Machine time had, in microseconds divided by the weight, as the choice between submitters counts it.
    virtual_time BIGINT NOT NULL,
    -- Machine time had, as it was.
    machine_ms BIGINT NOT NULL,
    -- When it last got a machine.
    served_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE flow (
    id TEXT NOT NULL PRIMARY KEY,
    selector_id TEXT NOT NULL REFERENCES selector (id),
    submitter_id TEXT NOT NULL REFERENCES submitter (id),
    priority TEXT NOT NULL CHECK (priority IN ('urgent', 'normal', 'bulk')),
    -- Which flows come first: 0 for urgent to 2 for bulk, less for one whose first job has waited long.
    class BIGINT NOT NULL,
    -- Whether there may be a queued job.
    waiting BOOLEAN NOT NULL,
    -- How long its attempts take, as a moving average; 0 is not known.
    mean_ms BIGINT NOT NULL,
    UNIQUE (selector_id, submitter_id, priority)
);

CREATE INDEX flow_selector ON flow (selector_id) WHERE waiting;
CREATE INDEX flow_submitter ON flow (submitter_id) WHERE waiting;

-- Constraints beyond equal labels, as a list of texts in their canonical form.
ALTER TABLE selector ADD COLUMN requires TEXT NOT NULL DEFAULT '[]';

ALTER TABLE job ADD COLUMN flow_id TEXT NOT NULL DEFAULT '';
-- When a job that no machine has taken ends without a result.
ALTER TABLE job ADD COLUMN deadline_at BIGINT;
ALTER TABLE attempt ADD COLUMN submitter_id TEXT;
-- Machine time that was counted when the lease was given; corrected when the attempt ends.
ALTER TABLE attempt ADD COLUMN charged_ms BIGINT;

-- Jobs from before this file: one submitter, one flow for each selector.
INSERT INTO submitter (id, name, weight, virtual_time, machine_ms, served_at, created_at)
SELECT '00000000000000000000000000', 'earlier', 1, 0, 0, 0, 0 WHERE EXISTS (SELECT 1 FROM job);
INSERT INTO flow (id, selector_id, submitter_id, priority, class, waiting, mean_ms)
SELECT DISTINCT selector_id, selector_id, '00000000000000000000000000', 'normal', 1, TRUE, 0 FROM job;
UPDATE job SET flow_id = selector_id;

DROP INDEX job_queue;
CREATE INDEX job_flow ON job (flow_id, rank, id) WHERE state = 'queued';
CREATE INDEX job_deadline ON job (deadline_at, id) WHERE state = 'queued' AND deadline_at IS NOT NULL;
CREATE INDEX job_leased ON job (id) WHERE state = 'leased';
CREATE INDEX attempt_submitter ON attempt (submitter_id) WHERE state IN ('running', 'collecting');
