"""What a ledger's events amount to: the state of every item and batch, and the bill.

Called in the transaction that adds the event, and again by `replay`, which proves that the events tell it all.
"""

import json
import sqlite3

from podium.errors import PodiumError

OPEN_STATES = ("planned", "reserved", "submitted")
FINAL_STATES = ("succeeded", "failed", "refused", "unknown")
MOVES = {
    None: {"planned"},
    "planned": {"reserved", "failed"},
    "reserved": {"submitted", "planned", "unknown"},
    "submitted": {"planned", "succeeded", "failed", "refused", "unknown"},
    "unknown": {"reserved"},
    "failed": {"planned"},
    "refused": set(),
    "succeeded": set(),
}


def project_item(
    connection: sqlite3.Connection,
    item: str,
    state: str,
    nano: int,
    owner: str,
    batch: str | None,
    reason: str | None,
    follow_up: str | None,
    unpaid: bool,
) -> None:
    """Move an item in `current`, and the bill. Raises PodiumError for a move that cannot be."""
    row = connection.execute("SELECT state, held FROM current WHERE item = ?", (item,)).fetchone()
    before, held = row or (None, 0)
    if state not in MOVES[before]:
        raise PodiumError(f"ledger: item {item[:12]} cannot go from {before} to {state}; please report this")
    if nano:
        connection.execute("UPDATE bill SET nano = nano + ?", (nano,))
    if before is None:
        stage = connection.execute("SELECT stage FROM items WHERE item = ?", (item,)).fetchone()[0]
        connection.execute(
            "INSERT INTO current VALUES (?, ?, 'planned', NULL, NULL, 0, 0, 0, 0, 0, NULL, NULL)", (item, stage)
        )
        return
    holds = state in ("reserved", "submitted")
    answered = before == "submitted" and not unpaid and state in ("planned", "succeeded", "failed", "refused")
    restarted = before == "failed"
    connection.execute(
        "UPDATE current SET state = ?, owner = ?, batch = ?, nano = nano + ?, held = ?, turn = turn + ?, "
        "errors = CASE WHEN ? THEN 0 ELSE errors + ? END, losses = losses + ?, reason = ?, "
        "follow_up = CASE WHEN ? THEN NULL ELSE coalesce(?, follow_up) END WHERE item = ?",
        (
            state,
            owner if holds else None,
            batch if holds else None,
            nano,
            held + nano if holds else 0,
            int(answered),
            restarted,
            int(unpaid),
            int(state == "unknown"),
            reason,
            restarted,
            follow_up,
            item,
        ),
    )


def project_batch(
    connection: sqlite3.Connection, moment: float, batch: str, state: str, value: str | None, owner: str
) -> None:
    """Move a batch in `batches`."""
    if state == "prepared":
        facts = json.loads(value or "{}")
        connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, 'prepared', NULL)",
            (batch, facts["stage"], facts["place"], owner, moment, facts["count"]),
        )
    elif state == "adopted":
        connection.execute("UPDATE batches SET owner = ? WHERE batch = ?", (owner, batch))
    else:
        connection.execute(
            "UPDATE batches SET state = ?, vendor_id = coalesce(?, vendor_id) WHERE batch = ?",
            (state, value, batch),
        )


def replay(live: sqlite3.Connection) -> list[str]:
    """Rebuild the projections from the events, list every difference and undo it; [] is a sound ledger."""
    tables = ("current", "batches", "bill")
    before = {table: sorted(map(repr, live.execute(f"SELECT * FROM {table}"))) for table in tables}
    live.execute("BEGIN IMMEDIATE")
    try:
        live.execute("DELETE FROM current")
        live.execute("DELETE FROM batches")
        live.execute("UPDATE bill SET nano = 0")
        events = live.execute(
            "SELECT item, state, nano, owner, batch, reason, follow_up, unpaid FROM events ORDER BY seq"
        )
        for item, state, nano, owner, batch, reason, follow_up, unpaid in events.fetchall():
            project_item(live, item, state, nano, owner, batch, reason, follow_up, bool(unpaid))
        for moment, batch, state, value, owner in live.execute(
            "SELECT time, batch, state, value, owner FROM batch_events ORDER BY seq"
        ).fetchall():
            project_batch(live, moment, batch, state, value, owner)
        after = {table: sorted(map(repr, live.execute(f"SELECT * FROM {table}"))) for table in tables}
    finally:
        live.execute("ROLLBACK")
    return [f"{table}: {row}" for table in tables for row in set(before[table]) ^ set(after[table])]
