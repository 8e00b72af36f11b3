-- Only PostgreSQL has something to do here (see its file of this number).
SELECT 1;
