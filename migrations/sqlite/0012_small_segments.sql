-- The bytes of a small segment are kept in its row: one flush for both, where a file of its own costs three.
ALTER TABLE segment ADD COLUMN bytes BLOB;
