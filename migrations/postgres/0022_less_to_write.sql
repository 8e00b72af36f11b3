-- A piece of a console stays in its row as it is. PostgreSQL otherwise compresses every row of more than two thousand bytes and
-- moves what is left to another table, to be put together again a minute later, when the attempt is over and its console becomes
-- one object.

ALTER TABLE segment SET (toast_tuple_target = 8160);

-- Rows of these tables are added and hardly ever changed, thousands a minute. What there is to clean up does not grow with every
-- fifth row more, and neither does what a plan needs to know of them.

ALTER TABLE event SET (autovacuum_vacuum_insert_scale_factor = 1, autovacuum_analyze_scale_factor = 1);
ALTER TABLE report SET (autovacuum_vacuum_insert_scale_factor = 1, autovacuum_analyze_scale_factor = 1);
ALTER TABLE stage SET (autovacuum_vacuum_insert_scale_factor = 1, autovacuum_analyze_scale_factor = 1);
ALTER TABLE segment SET (autovacuum_vacuum_insert_scale_factor = 1, autovacuum_analyze_scale_factor = 1);

-- Who gives way to a job of a higher class; most farms have none, and looked at every machine to find that.

CREATE INDEX job_preemptible ON job (id) WHERE state = 'leased' AND preemptible;
