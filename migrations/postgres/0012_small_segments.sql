-- The bytes of a small segment are kept in its row: one flush for both, where a file of its own costs three.
ALTER TABLE segment ADD COLUMN bytes BYTEA;
-- Text of a console is written once and read once or twice: not worth compressing.
ALTER TABLE segment ALTER COLUMN bytes SET STORAGE EXTERNAL;
