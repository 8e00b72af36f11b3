-- A dump that was complete when its attempt's lease was lost is evidence: it waits to be read as long as nothing is judged.

DROP INDEX attempt_unread;
CREATE INDEX attempt_unread ON attempt (id)
WHERE dump_at IS NOT NULL AND dump_facts IS NULL AND (state IN ('running', 'collecting') OR judged_at IS NULL);
