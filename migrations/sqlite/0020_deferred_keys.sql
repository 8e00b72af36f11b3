-- A foreign key that is checked at once makes SQLite keep a copy of every page that a statement over several rows changes, to
-- undo that statement alone. One that is checked at the commit refuses the same rows, and undoes the transaction, which is what
-- happens to it anyway. Nothing that is stored depends on when a key is checked, so it is the schema's text that changes
-- (https://sqlite.org/lang_altertable.html, the shorter procedure).

PRAGMA writable_schema = ON;

UPDATE sqlite_schema SET sql = replace(replace(sql,
    'REFERENCES attempt (id)', 'REFERENCES attempt (id) DEFERRABLE INITIALLY DEFERRED'),
    'REFERENCES artifact (id)', 'REFERENCES artifact (id) DEFERRABLE INITIALLY DEFERRED')
WHERE type = 'table' AND name IN ('token', 'stage', 'report', 'segment', 'artifact');

UPDATE sqlite_schema SET sql = replace(replace(replace(replace(replace(replace(sql,
    'REFERENCES job (id)', 'REFERENCES job (id) DEFERRABLE INITIALLY DEFERRED'),
    'REFERENCES run (id)', 'REFERENCES run (id) DEFERRABLE INITIALLY DEFERRED'),
    'REFERENCES machine (id)', 'REFERENCES machine (id) DEFERRABLE INITIALLY DEFERRED'),
    'REFERENCES controller (id)', 'REFERENCES controller (id) DEFERRABLE INITIALLY DEFERRED'),
    'REFERENCES selector (id)', 'REFERENCES selector (id) DEFERRABLE INITIALLY DEFERRED'),
    'REFERENCES build (id)', 'REFERENCES build (id) DEFERRABLE INITIALLY DEFERRED')
WHERE type = 'table' AND name IN ('attempt', 'event', 'job');

PRAGMA writable_schema = RESET;
