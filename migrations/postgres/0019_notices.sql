-- What the owners of reservations are told by the server's `notify_command`: written down together with what they are told of,
-- so that a restart loses nothing.

ALTER TABLE reservation ADD COLUMN notify TEXT;

CREATE TABLE notice (
    reservation_id TEXT NOT NULL REFERENCES reservation (id),
    event TEXT NOT NULL CHECK (event IN ('ends-soon', 'ended')),
    -- The end that is meant; one that was put off is announced anew.
    until_at BIGINT NOT NULL,
    -- When it is to be told, or to be tried again; NULL when that is over.
    next_at BIGINT,
    tries BIGINT NOT NULL,
    told_at BIGINT,
    PRIMARY KEY (reservation_id, event, until_at)
);

CREATE INDEX notice_next ON notice (next_at) WHERE next_at IS NOT NULL;
