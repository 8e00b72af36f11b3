-- Which version of the readers (crash logs, dumps) has read an attempt that is over; lower than the current one means
-- that it is to be read again.
ALTER TABLE attempt ADD COLUMN read_by BIGINT NOT NULL DEFAULT 0;

CREATE INDEX attempt_read_by ON attempt (read_by, id) WHERE state IN ('done', 'lost');
