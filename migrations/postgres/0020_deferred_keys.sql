-- Nothing to do: PostgreSQL undoes a single statement without a copy of its pages (see SQLite's).
SELECT 1;
