"""The ledger's SQL: append-only tables first, then the projections kept beside them."""

VERSION = 1

TABLES = """
CREATE TABLE blobs (sha TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
  item TEXT PRIMARY KEY, stage TEXT NOT NULL, label TEXT NOT NULL, request TEXT NOT NULL, time REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, time REAL NOT NULL, item TEXT NOT NULL, state TEXT NOT NULL, nano INTEGER NOT NULL,
  owner TEXT, batch TEXT, reason TEXT, follow_up TEXT, unpaid INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE received (
  seq INTEGER PRIMARY KEY, time REAL NOT NULL, item TEXT, batch TEXT, kind TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE answers (item TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE usage (
  seq INTEGER PRIMARY KEY, item TEXT NOT NULL, mode TEXT NOT NULL, fresh INTEGER, output INTEGER, cache_read INTEGER,
  cache_write_5m INTEGER, cache_write_1h INTEGER, nano INTEGER NOT NULL
);
CREATE TABLE batch_events (
  seq INTEGER PRIMARY KEY, time REAL NOT NULL, batch TEXT NOT NULL, state TEXT NOT NULL, value TEXT, owner TEXT
);
CREATE TABLE current (
  item TEXT PRIMARY KEY, stage TEXT NOT NULL, state TEXT NOT NULL, owner TEXT, batch TEXT, nano INTEGER NOT NULL,
  held INTEGER NOT NULL, turn INTEGER NOT NULL, errors INTEGER NOT NULL, losses INTEGER NOT NULL, reason TEXT,
  follow_up TEXT
) WITHOUT ROWID;
CREATE INDEX current_by_state ON current (state, owner);
CREATE INDEX current_by_batch ON current (batch) WHERE batch IS NOT NULL;
CREATE TABLE batches (
  batch TEXT PRIMARY KEY, stage TEXT NOT NULL, place TEXT NOT NULL, owner TEXT NOT NULL, created REAL NOT NULL, count INTEGER NOT NULL,
  state TEXT NOT NULL, vendor_id TEXT
) WITHOUT ROWID;
CREATE TABLE bill (one INTEGER PRIMARY KEY CHECK (one = 1), nano INTEGER NOT NULL);
INSERT INTO bill VALUES (1, 0);
"""
APPEND_ONLY = ("blobs", "items", "events", "received", "answers", "usage", "batch_events")
