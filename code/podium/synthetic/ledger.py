"""The ledger: what was asked, sent, paid and received, in an append-only SQLite file.

`events` is the truth: rows are only ever added, triggers refuse anything else, and every row carries the change it makes
to the bill. `current`, `batches` and `bill` are projections kept in the same transaction; `replay` rebuilds them.

An item moves: planned → reserved → submitted → succeeded | failed | refused | unknown. A request that was certainly not
paid puts its item back to planned. Every commit is fsynced before anything is sent, so a crash can lose an answer's
arrival, never the knowledge that it may have been paid.
"""

import fcntl
import hashlib
import json
import os
import secrets as random_bits
import socket
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from podium.errors import DataError
from podium.synthetic.ledger_tables import APPEND_ONLY, TABLES, VERSION
from podium.synthetic.projections import project_batch, project_item
from podium.synthetic.records import Claim, Outcome
from podium.synthetic.secrets import scrub
from podium.synthetic.work import FollowUp, Request, Usage


class Ledger:
    """One process's connection, and the lock that tells other processes that this one is alive."""

    def __init__(self, path: str | Path):
        """Open or create a ledger.

        Raises:
            DataError: the file is not a ledger, or one of another version.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        workers = self.path.with_name(self.path.name + ".workers")
        workers.mkdir(exist_ok=True)
        nonce = random_bits.token_hex(8)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{nonce}"
        self._workers = workers
        self._lock = open(workers / f"{nonce}.lock", "w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            # two processes that switch a new file to WAL at once are told "locked", whatever the time-out
            with open(workers / "opening", "w") as gate:
                fcntl.flock(gate, fcntl.LOCK_EX)
                self.connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
                self.connection.execute("PRAGMA journal_mode = WAL")
                self.connection.execute("PRAGMA synchronous = FULL")
                self.connection.execute("CREATE TEMP TABLE wanted (place INTEGER PRIMARY KEY, item TEXT UNIQUE)")
                self._create()
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path}: not a usable ledger ({error}); move it away to start a new one") from None

    def _create(self) -> None:
        with self.transaction():
            version = self.connection.execute("PRAGMA user_version").fetchone()[0]
            if version == VERSION:
                return
            if version != 0:
                raise DataError(
                    f"{self.path}: ledger version {version}, this code reads {VERSION}; use another ledger=FILE"
                )
            for statement in TABLES.split(";\n"):
                if statement.strip():
                    self.connection.execute(statement)
            for table in APPEND_ONLY:
                for verb in ("UPDATE", "DELETE"):
                    self.connection.execute(
                        f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
                        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                    )
            self.connection.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Close the connection and give up the life sign."""
        self.connection.close()
        Path(self._lock.name).unlink(missing_ok=True)
        self._lock.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and durable when it returns; other writers wait."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def is_alive(self, owner: str | None) -> bool:
        """Whether the process that signs as `owner` still runs (on this machine: life signs are file locks)."""
        if owner is None:
            return False
        if owner == self.owner:
            return True
        path = self._workers / f"{owner.rsplit(':', 1)[1]}.lock"
        try:
            with open(path) as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    # --- items -------------------------------------------------------------------------------------------------------

    def want(self, items: Iterable[str]) -> None:
        """Limit `claim`, `counts` and the rest to these items, in this order of preference."""
        self.connection.execute("DELETE FROM temp.wanted")
        rows = enumerate(items)
        with self.transaction():
            self.connection.executemany("INSERT OR IGNORE INTO temp.wanted VALUES (?, ?)", rows)

    def plan(self, stage: str, requests: Iterable[tuple[str, str, Request]]) -> int:
        """Add (item, label, request) rows that are not there yet; returns how many were new."""
        added = 0
        shared: dict[int, tuple[Any, str]] = {}
        now = time.time()
        with self.transaction():
            for item, label, request in requests:
                values = dict(vars(request))
                for part in ("system", "prefix", "schema"):  # the same object in thousands of requests
                    value = values[part]
                    # the value is kept beside its sha, so that its id cannot be another object's later
                    _, values[part] = shared.get(id(value)) or shared.setdefault(id(value), (value, self._blob(value)))
                values["user"] = self._blob(values["user"])
                cursor = self.connection.execute(
                    "INSERT OR IGNORE INTO items VALUES (?, ?, ?, ?, ?)", (item, stage, label, json.dumps(values), now)
                )
                if cursor.rowcount:
                    added += 1
                    self.append(item, "planned", 0)
        return added

    def _blob(self, value: Any) -> str:
        body = json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
        sha = hashlib.sha256(body).hexdigest()
        self.connection.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (sha, zlib.compress(body, 1)))
        return sha

    def append(
        self,
        item: str,
        state: str,
        nano: int,
        *,
        batch: str | None = None,
        reason: str | None = None,
        follow_up: FollowUp | None = None,
        unpaid: bool = False,
    ) -> None:
        """Add one event and move the projections with it. `nano` is the change to the bill."""
        reason = scrub(reason)[:2000] if reason else None
        follow = scrub(json.dumps(asdict(follow_up))) if follow_up else None
        self.connection.execute(
            "INSERT INTO events (time, item, state, nano, owner, batch, reason, follow_up, unpaid) VALUES (?,?,?,?,?,?,?,?,?)",
            (time.time(), item, state, nano, self.owner, batch, reason, follow, int(unpaid)),
        )
        project_item(self.connection, item, state, nano, self.owner, batch, reason, follow, unpaid)

    def claim(
        self,
        cap_nano: int,
        limit: int,
        cost: Callable[[str, FollowUp | None], int],
        resend_unknown: int,
        batch: str | None = None,
        place: str = "",
        fits: Callable[[str, int, FollowUp | None], bool] = lambda item, turn, follow_up: True,
    ) -> tuple[list[Claim], bool]:
        """Reserve wanted items for sending, as far as the bill stays within the cap.

        Args:
            cap_nano: the most that the whole ledger's bill may reach, in-flight and unknown included.
            limit: the most items to reserve.
            cost: the most that sending an item can cost.
            resend_unknown: how often an item of unknown fate may be sent again.
            batch: name of the batch they will travel in.
            place: where that batch will go.
            fits: false ends the selection (a batch is full).

        Returns:
            the claims, and whether money was what stopped it.
        """
        claims: list[Claim] = []
        short = False
        with self.transaction():
            rows = self.connection.execute(
                "SELECT c.item, c.turn, c.errors, c.losses, c.follow_up FROM temp.wanted w JOIN current c USING (item) "
                "WHERE c.state = 'planned' OR (c.state = 'unknown' AND c.losses <= ?) ORDER BY w.place LIMIT ?",
                (resend_unknown, limit),
            ).fetchall()
            for item, turn, errors, losses, raw in rows:
                follow_up = FollowUp(**json.loads(raw)) if raw else None
                if not fits(item, turn, follow_up):
                    break
                nano = cost(item, follow_up)
                if self.bill() + nano > cap_nano:
                    short = True
                    break
                self.append(item, "reserved", nano, batch=batch)
                claims.append(Claim(item, turn, errors, losses, nano, follow_up))
            if batch is not None and claims:
                stage = self.connection.execute("SELECT stage FROM items WHERE item = ?", (claims[0].item,)).fetchone()[
                    0
                ]
                self.batch_event(batch, "prepared", json.dumps({"stage": stage, "place": place, "count": len(claims)}))
        return claims, short

    def submit(self, items: Iterable[str], batch: str | None = None) -> None:
        """Say, durably, that these items are about to be sent (or, in a batch, that the vendor has them)."""
        with self.transaction():
            for item in items:
                self.append(item, "submitted", 0, batch=batch)

    def settle(
        self,
        item: str,
        state: str,
        *,
        paid: int | None,
        batch: str | None = None,
        reason: str | None = None,
        answer: str | None = None,
        follow_up: FollowUp | None = None,
    ) -> bool:
        """End a sent item's attempt. `paid` None leaves the greatest cost charged; 0 says that nothing was billed.

        Returns:
            False, and changes nothing, if the attempt is not ours to end: settled before, or taken over.
        """
        row = self.connection.execute(
            "SELECT state, owner, batch, held FROM current WHERE item = ?", (item,)
        ).fetchone()
        if row is None or row[0] not in ("reserved", "submitted") or row[2] != batch:
            return False
        if batch is None and row[1] != self.owner:
            return False
        if row[0] == "reserved" and state in ("succeeded", "failed", "refused"):
            self.append(item, "submitted", 0, batch=batch)
        nano = 0 if paid is None else paid - row[3]
        if answer is not None:
            self.connection.execute("INSERT INTO answers VALUES (?, ?)", (item, scrub(answer)))
        unpaid = paid == 0 and state in ("planned", "failed")
        self.append(item, state, nano, reason=reason, follow_up=follow_up, unpaid=unpaid)
        return True

    def give_up(self, item: str, reason: str) -> None:
        """End a planned item as failed without sending it."""
        with self.transaction():
            self.append(item, "failed", 0, reason=reason)

    def receive(self, kind: str, body: str, item: str | None = None, batch: str | None = None) -> None:
        """Keep what arrived, as it arrived (less our own keys), before anything is made of it."""
        packed = zlib.compress(scrub(body).encode(errors="surrogatepass"), 1)
        self.connection.execute(
            "INSERT INTO received (time, item, batch, kind, body) VALUES (?, ?, ?, ?, ?)",
            (time.time(), item, batch, kind, packed),
        )

    def count_usage(self, item: str, mode: str, usage: Usage | None, nano: int) -> None:
        """Record what one answer used; None where the vendor did not say and the greatest cost was charged."""
        tokens = asdict(usage) if usage else {}
        names = ("fresh", "output", "cache_read", "cache_write_5m", "cache_write_1h")
        self.connection.execute(
            "INSERT INTO usage (item, mode, fresh, output, cache_read, cache_write_5m, cache_write_1h, nano) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (item, mode, *(tokens.get(name) for name in names), nano),
        )

    def recover(self) -> tuple[int, int]:
        """Take wanted realtime items over from dead processes: never sent → planned, perhaps sent → unknown."""
        with self.transaction():
            rows = self.connection.execute(
                "SELECT c.item, c.state, c.owner, c.held FROM temp.wanted w JOIN current c USING (item) "
                "WHERE c.state IN ('reserved', 'submitted') AND c.batch IS NULL"
            ).fetchall()
            dead = {owner for _, _, owner, _ in rows if not self.is_alive(owner)}
            released = unknown = 0
            for item, state, owner, held in rows:
                if owner in dead and state == "reserved":
                    self.append(item, "planned", -held, reason="its process died before sending")
                    released += 1
                elif owner in dead:
                    self.append(item, "unknown", 0, reason="its process died while the request was under way")
                    unknown += 1
        return released, unknown

    def retry_failed(self) -> int:
        """Plan wanted failed items anew; what they cost stays on the bill."""
        with self.transaction():
            rows = self.connection.execute(
                "SELECT c.item FROM temp.wanted w JOIN current c USING (item) WHERE c.state = 'failed'"
            ).fetchall()
            for (item,) in rows:
                self.append(item, "planned", 0, reason="retry asked for")
        return len(rows)

    def batch_event(self, batch: str, state: str, value: str | None = None) -> None:
        """Add one event of a batch, inside the caller's transaction."""
        moment = time.time()
        self.connection.execute(
            "INSERT INTO batch_events (time, batch, state, value, owner) VALUES (?, ?, ?, ?, ?)",
            (moment, batch, state, value, self.owner),
        )
        project_batch(self.connection, moment, batch, state, value, self.owner)

    # --- reading -----------------------------------------------------------------------------------------------------

    def bill(self) -> int:
        """Nano-dollars charged: paid, in flight and unknown, over all stages of this ledger."""
        return self.connection.execute("SELECT nano FROM bill").fetchone()[0]

    def open_elsewhere(self) -> int:
        """Wanted items that another living process has reserved or sent."""
        return self.connection.execute(
            "SELECT count(*) FROM temp.wanted w JOIN current c USING (item) LEFT JOIN batches b ON b.batch = c.batch "
            "WHERE c.state IN ('reserved', 'submitted') AND coalesce(b.owner, c.owner) != ?",
            (self.owner,),
        ).fetchone()[0]

    def counts(self) -> dict[str, int]:
        """State -> number of wanted items."""
        rows = self.connection.execute(
            "SELECT c.state, count(*) FROM temp.wanted w JOIN current c USING (item) GROUP BY c.state"
        )
        return dict(rows.fetchall())

    def outcomes(self) -> Iterator[Outcome]:
        """Wanted items in order, with the accepted answers."""
        rows = self.connection.execute(
            "SELECT c.item, i.label, c.state, c.reason, a.body, c.nano FROM temp.wanted w JOIN current c USING (item) "
            "JOIN items i USING (item) LEFT JOIN answers a USING (item) ORDER BY w.place"
        )
        for row in rows:
            yield Outcome(*row)
