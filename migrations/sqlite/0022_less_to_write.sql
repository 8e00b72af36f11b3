-- Who gives way to a job of a higher class; most farms have none, and looked at every machine to find that.

CREATE INDEX job_preemptible ON job (id) WHERE state = 'leased' AND preemptible;
