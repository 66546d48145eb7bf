-- Schema version 4 of the embedded store; the Kafka storage has its view of the topics in the same tables. Times are Unix milliseconds, ids and fingerprints 16 bytes.
-- A file of an earlier version is brought here by the steps in `embedded/schema.rs`; a change here is a step there.
-- `chaski.db` may be opened with any SQLite shell while chaski runs; write to it only through chaski.

-- The log: events that were stored together, see `embedded/log.rs`. A position is counted by the writer without gaps. It
-- must never be given twice: a cursor behind which the last event was pruned would otherwise skip the next one. So the
-- newest event is never pruned, and the next position is always one more than the greatest here.
CREATE TABLE batch (
    last     INTEGER PRIMARY KEY,           -- the positions it holds
    first    INTEGER NOT NULL,
    earliest INTEGER NOT NULL,              -- when its events were received
    latest   INTEGER NOT NULL,
    -- A CBOR sequence (RFC 8742), an array for each event: id, source, type, subject, time, received_at, content_type,
    -- traceparent, fingerprint, body, environment. Null, or nothing at the end, is what `event` has NULL for.
    events   BLOB    NOT NULL
);
CREATE INDEX batch_received_at ON batch (latest, earliest, first);
-- The log as versions before 4 wrote it, until it is pruned: `seq` is the position.
CREATE TABLE event (
    seq          INTEGER PRIMARY KEY,
    id           BLOB    NOT NULL,          -- the deduplication, see id_bucket
    source       TEXT    NOT NULL,
    type         TEXT    NOT NULL,
    subject      TEXT,
    time         INTEGER,                   -- when it happened, says the provider
    received_at  INTEGER NOT NULL,
    content_type TEXT,
    traceparent  TEXT,
    fingerprint  BLOB    NOT NULL,          -- same id and other fingerprint = conflict
    body         BLOB    NOT NULL,          -- the bytes received
    environment  TEXT                       -- of its source when it came; NULL before version 2: as its source is now
);
-- One event per id, for as long as it is kept; `embedded/ids.rs` says how. Where an id may be: of each 16 bytes of a row the
-- first 8 are the last of an id, the others a position, both with the highest byte first. Which row: `number` is a
-- generation, then in 12 bits each the sweep that wrote it and the bucket, which is the beginning of the id.
CREATE TABLE id_bucket (
    number  INTEGER PRIMARY KEY,
    entries BLOB    NOT NULL
);
-- About a million ids each. The last one is being written; the others have their filter.
CREATE TABLE generation (
    number INTEGER PRIMARY KEY,
    sweeps INTEGER NOT NULL DEFAULT 0,      -- those that have been around
    upto   INTEGER,                         -- no event behind this position is in it
    filter BLOB,
    by_bucket INTEGER NOT NULL DEFAULT 0    -- version 3's: the bucket stands above the sweep
);
INSERT INTO generation (number) VALUES (0);
-- The ids of all events up to this position are in `id_bucket`, or in `event_id`; the writer has the others in memory.
CREATE TABLE indexed (seq INTEGER NOT NULL);
INSERT INTO indexed (seq) VALUES (0);
-- What was written before version 3, until it is pruned.
CREATE TABLE event_id (
    id  BLOB    PRIMARY KEY,
    seq INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX event_received_at ON event (received_at);
-- Both. Where `events` is NULL, the columns behind it are the event.
CREATE VIEW log AS SELECT seq AS last, seq AS first, received_at AS earliest, received_at AS latest, CAST(NULL AS BLOB) AS events, id, source, type, subject, time, received_at, content_type, traceparent, fingerprint, body, environment FROM event UNION ALL SELECT last, first, earliest, latest, events, CAST(NULL AS BLOB), CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS INTEGER), CAST(NULL AS INTEGER), CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS BLOB), CAST(NULL AS BLOB), CAST(NULL AS TEXT) FROM batch;

CREATE TABLE destination (
    number INTEGER PRIMARY KEY,
    name   TEXT    NOT NULL UNIQUE,
    paused INTEGER NOT NULL DEFAULT 0
);

-- How far each reader is: all positions up to `mark` are settled. Replay 0 is the destination's own way
-- through the log; the others end at `until`.
CREATE TABLE cursor (
    destination INTEGER NOT NULL REFERENCES destination,
    replay      INTEGER NOT NULL,
    mark        INTEGER NOT NULL,
    until       INTEGER,
    PRIMARY KEY (destination, replay)
) WITHOUT ROWID;

CREATE TABLE delivered (
    destination INTEGER NOT NULL REFERENCES destination,
    seq         INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    PRIMARY KEY (destination, seq)
) WITHOUT ROWID;

-- Deliveries that wait for their next attempt. Each carries its event, so that it does not need the log.
CREATE TABLE parked (
    number        INTEGER PRIMARY KEY,
    destination   INTEGER NOT NULL REFERENCES destination,
    seq           INTEGER NOT NULL,
    due           INTEGER NOT NULL,
    attempts      INTEGER NOT NULL,
    first_attempt INTEGER,
    history       TEXT    NOT NULL,         -- JSON, the failures so far
    id            BLOB    NOT NULL,
    source        TEXT    NOT NULL,
    type          TEXT    NOT NULL,
    subject       TEXT,
    time          INTEGER,
    received_at   INTEGER NOT NULL,
    content_type  TEXT,
    traceparent   TEXT,
    fingerprint   BLOB    NOT NULL,
    body          BLOB    NOT NULL,
    environment   TEXT,
    UNIQUE (destination, id)
);
CREATE INDEX parked_due ON parked (destination, due);
CREATE INDEX parked_id ON parked (id);
CREATE INDEX parked_subject ON parked (destination, subject, seq);

-- Deliveries that ended without success, and events that were signed but cannot be used (destination NULL).
CREATE TABLE dead (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    destination  INTEGER REFERENCES destination,
    seq          INTEGER,
    reason       TEXT    NOT NULL,
    detail       TEXT    NOT NULL,
    at           INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    history      TEXT    NOT NULL,
    id           BLOB    NOT NULL,
    source       TEXT    NOT NULL,
    type         TEXT    NOT NULL,
    subject      TEXT,
    time         INTEGER,
    received_at  INTEGER NOT NULL,
    content_type TEXT,
    traceparent  TEXT,
    fingerprint  BLOB    NOT NULL,
    body         BLOB    NOT NULL,
    environment  TEXT
);
-- IFNULL, because SQL takes every NULL for a different value.
CREATE UNIQUE INDEX dead_letter ON dead (IFNULL(destination, 0), id, fingerprint);
CREATE INDEX dead_id ON dead (id);
CREATE INDEX dead_position ON dead (destination, seq);
CREATE INDEX dead_age ON dead (destination, at);
