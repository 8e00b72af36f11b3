-- Leases are renewed all the time, and a renewal must not move an attempt in any index. Of live attempts there is one for each
-- machine, so those whose lease has run out are found by reading them.
DROP INDEX attempt_lease;

-- Room in each page for the next version of its rows.
ALTER TABLE attempt SET (fillfactor = 70);
ALTER TABLE machine SET (fillfactor = 70);
ALTER TABLE run SET (fillfactor = 70);
