-- Consoles into which nothing will come any more are found among all open files, of which every live attempt has several, by
-- an index of their own.

ALTER TABLE artifact ADD COLUMN finished BOOLEAN NOT NULL DEFAULT FALSE;
UPDATE artifact SET finished = TRUE
WHERE state = 'open' AND substr(name, 1, 8) = 'console-'
AND attempt_id IN (SELECT id FROM attempt WHERE state IN ('done', 'lost') AND check_at IS NULL);
CREATE INDEX artifact_finished ON artifact (id) WHERE state = 'open' AND finished;
