-- Only SQLite keeps a text key twice, in the table and in its index; here a row's key is a small part of what a row costs.
SELECT 1;
