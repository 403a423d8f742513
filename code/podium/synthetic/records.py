"""Rows of the ledger as values."""

from dataclasses import dataclass

from podium.synthetic.work import FollowUp


@dataclass(frozen=True)
class Claim:
    """An item reserved for sending. `turn` counts paid answers so far, `losses` requests of unknown fate."""

    item: str
    turn: int
    errors: int
    losses: int
    held: int
    follow_up: FollowUp | None


@dataclass(frozen=True)
class Batch:
    """A batch at a vendor, or (no vendor_id) one that may have reached it. `place` is the vendor and its address."""

    batch: str
    stage: str
    place: str
    owner: str
    created: float
    count: int
    state: str
    vendor_id: str | None


@dataclass(frozen=True)
class Outcome:
    """The end of one item; `answer` is the accepted JSON text of a succeeded one."""

    item: str
    label: str
    state: str
    reason: str | None
    answer: str | None
    nano: int
