-- That a job has one attempt at a time is kept by its state and by the number of its attempt, which is unique in the job. The
-- second key said the same again, for a page more in each claim and in each end.

DROP INDEX attempt_live_job;
