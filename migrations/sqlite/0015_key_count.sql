-- How often somebody typed is told with each renewal of the lease, so that controllers need not ask for it.
ALTER TABLE attempt ADD COLUMN keys BIGINT NOT NULL DEFAULT 0;
UPDATE attempt SET keys = (SELECT COUNT(*) FROM key_press WHERE key_press.attempt_id = attempt.id);
