-- The secret of an attempt is in its row, and says which attempt it is of: a token of its own for each was a row and three keys
-- more, one of them at a random place. Tokens of attempts that are under way stay until these are over.

ALTER TABLE attempt ADD COLUMN secret_hash TEXT;

DELETE FROM token WHERE attempt_id IN (SELECT id FROM attempt WHERE state IN ('done', 'lost'));

-- Events are written at the end of their table, and only their keys among those of their run: as one tree by run, a quarter of all
-- pages that a claim wrote were theirs, because many runs have events at the same time.

CREATE TABLE event_in_order (
    run_id TEXT NOT NULL REFERENCES run (id) DEFERRABLE INITIALLY DEFERRED,
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    job_id TEXT,
    attempt_id TEXT,
    body TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
);
INSERT INTO event_in_order (run_id, seq, at, job_id, attempt_id, body)
SELECT run_id, seq, at, job_id, attempt_id, body FROM event ORDER BY run_id, seq;
DROP TABLE event;
ALTER TABLE event_in_order RENAME TO event;
CREATE INDEX event_attempt ON event (attempt_id, seq) WHERE attempt_id IS NOT NULL;
