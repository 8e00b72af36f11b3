-- These rows are written in the transaction that makes or locks the row they point to, many thousand a minute, and nothing
-- deletes any of those. PostgreSQL looks each of them up and locks it for it, which cost a sixth of a claim. SQLite's check is
-- one step in memory, and stays.

ALTER TABLE attempt DROP CONSTRAINT attempt_run_id_fkey;
ALTER TABLE attempt DROP CONSTRAINT attempt_controller_id_fkey;
ALTER TABLE attempt DROP CONSTRAINT attempt_boots_build_id_fkey;
ALTER TABLE token DROP CONSTRAINT token_attempt_id_fkey;
ALTER TABLE stage DROP CONSTRAINT stage_attempt_id_fkey;
ALTER TABLE report DROP CONSTRAINT report_attempt_id_fkey;
ALTER TABLE segment DROP CONSTRAINT segment_artifact_id_fkey;
ALTER TABLE event DROP CONSTRAINT event_run_id_fkey;
