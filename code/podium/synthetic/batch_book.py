"""The ledger's pages on batches: prepared under a name of ours, created with the vendor's id, collected or lost."""

import json

from podium.synthetic.ledger import Ledger
from podium.synthetic.records import Batch, Claim
from podium.synthetic.work import FollowUp


def created(ledger: Ledger, batch: str, vendor_id: str) -> None:
    """Save a batch's id, and that its items are with the vendor, in one commit."""
    with ledger.transaction():
        ledger.batch_event(batch, "created", vendor_id)
        rows = ledger.connection.execute(
            "SELECT item FROM current WHERE batch = ? AND state = 'reserved'", (batch,)
        ).fetchall()
        for (item,) in rows:
            ledger.append(item, "submitted", 0, batch=batch)


def lost(ledger: Ledger, batch: str, reason: str) -> None:
    """The vendor never had this batch: its items are planned again, nothing is charged."""
    with ledger.transaction():
        _release(ledger, batch, reason)
        ledger.batch_event(batch, "lost", None)


def collected(ledger: Ledger, batch: str, missing: str) -> None:
    """Every result has been read; items without one are unknown, their greatest cost stays charged."""
    with ledger.transaction():
        rows = ledger.connection.execute("SELECT item, state FROM current WHERE batch = ?", (batch,)).fetchall()
        for item, _ in rows:
            ledger.append(item, "unknown", 0, reason=missing)
        ledger.batch_event(batch, "collected", None)


def _release(ledger: Ledger, batch: str, reason: str) -> None:
    rows = ledger.connection.execute("SELECT item, held FROM current WHERE batch = ?", (batch,)).fetchall()
    for item, held in rows:
        ledger.append(item, "planned", -held, reason=reason, unpaid=True)


def open_batches(ledger: Ledger) -> list[Batch]:
    """Batches of wanted items that are not collected, ours or of dead processes, which we adopt here."""
    with ledger.transaction():
        rows = ledger.connection.execute(
            "SELECT DISTINCT b.* FROM batches b JOIN current c ON c.batch = b.batch JOIN temp.wanted w USING (item) "
            "WHERE b.state IN ('prepared', 'created') ORDER BY b.created"
        ).fetchall()
        batches = [Batch(*row) for row in rows]
        mine = [batch for batch in batches if not ledger.is_alive(batch.owner) or batch.owner == ledger.owner]
        for batch in mine:
            if batch.owner != ledger.owner:
                ledger.batch_event(batch.batch, "adopted", None)
    return mine


def known_vendor_ids(ledger: Ledger, place: str) -> set[str]:
    """Vendor ids of every batch this ledger knows at a place; two places may well use the same ids."""
    rows = ledger.connection.execute(
        "SELECT vendor_id FROM batches WHERE vendor_id IS NOT NULL AND place = ?", (place,)
    )
    return {vendor_id for (vendor_id,) in rows}


def waiting_items(ledger: Ledger, batch: str) -> dict[str, Claim]:
    """Items of a batch that have no result yet."""
    rows = ledger.connection.execute(
        "SELECT item, turn, errors, losses, held, follow_up FROM current WHERE batch = ?", (batch,)
    )
    return {
        item: Claim(item, turn, errors, losses, held, FollowUp(**json.loads(raw)) if raw else None)
        for item, turn, errors, losses, held, raw in rows
    }
