-- Dumps that are complete and that nobody has read, found without a look at those that were read before.

-- When the dump was complete.
ALTER TABLE attempt ADD COLUMN dump_at BIGINT;
UPDATE attempt SET dump_at = f.completed_at FROM artifact f
WHERE f.attempt_id = attempt.id AND f.name = 'vmcore' AND f.state = 'complete'
AND attempt.state IN ('running', 'collecting');

CREATE INDEX attempt_unread ON attempt (id)
WHERE dump_at IS NOT NULL AND dump_facts IS NULL AND state IN ('running', 'collecting');
