-- Attempts are judged under their lock, so no judgement is ever made on top of an older one.
ALTER TABLE attempt DROP COLUMN judgement_seq;
