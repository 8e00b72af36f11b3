-- The secret of an attempt is in its row, and says which attempt it is of: a token of its own for each was a row and three keys
-- more, one of them at a random place. Tokens of attempts that are under way stay until these are over.

ALTER TABLE attempt ADD COLUMN secret_hash TEXT;

DELETE FROM token WHERE attempt_id IN (SELECT id FROM attempt WHERE state IN ('done', 'lost'));
