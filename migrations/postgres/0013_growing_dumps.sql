-- Dumps that are arriving are looked for by name among all open files, of which every live attempt has several.
CREATE INDEX artifact_growing ON artifact (id) WHERE state = 'open' AND name = 'vmcore';
