-- Written with every stage, and never read: a stage's place follows from its name.

ALTER TABLE stage DROP COLUMN ordinal;
