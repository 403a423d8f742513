"""Sending through the vendors' batch endpoints, at half price, so that no item is ever paid for twice.

Order is everything: reserve items under a name of our own (durable), create the batch, save its id (durable). A crash in
between leaves a name without an id; before anything of it is sent again, the vendor's list is searched for it.
"""

import itertools
import json
import secrets as random_bits
import time
from collections.abc import Callable

from podium.errors import PodiumError
from podium.synthetic import batch_book
from podium.synthetic.job import Job, Verdict, cost, judge, record, unpaid_error
from podium.synthetic.ledger import Ledger
from podium.synthetic.records import Batch, Claim
from podium.synthetic.wire import BatchFacts, StatusError, refuse_if_fatal
from podium.synthetic.work import FollowUp

# Clocks differ; a batch listed as created a little before we asked for it may still be ours.
_CLOCK_SKEW_SECONDS = 900.0
_ITEM_LETTERS = 40
_LINES_A_COMMIT = 200


def run_batches(ledger: Ledger, job: Job, progress: Callable[[int], None], stopped: Callable[[], bool]) -> bool:
    """Send every wanted item in batches until all are settled, money is short, or `stopped`.

    Returns:
        whether the budget is what ended it.

    Raises:
        PodiumError: credentials, billing, model or a batch's format are refused.
    """
    client = job.vendor.client(job.endpoint)
    names: dict[str, set[str]] = {}
    failures = 0
    try:
        while True:
            open_batches = batch_book.open_batches(ledger)
            busy = short = False
            try:
                for batch in open_batches:
                    if batch.place != _place(job):
                        raise PodiumError(
                            f"{batch.count} items are in a batch at {batch.place.strip()}, not at {_place(job).strip()}; "
                            f"run with that endpoint until they are collected"
                        )
                    if batch.vendor_id is None:
                        busy |= _reconcile(ledger, job, client, batch, names)
                    else:
                        busy |= _collect(ledger, job, client, batch)
                    progress(len(open_batches))
                while not stopped() and len(batch_book.open_batches(ledger)) < job.pace.max_open_batches:
                    sent, short = _send(ledger, job, client)
                    progress(len(batch_book.open_batches(ledger)))
                    if not sent:
                        break
                    busy = True
                failures = 0
            except StatusError as error:
                _refuse(job, error)
                failures += 1
                if failures >= 4 * job.pace.max_errors:
                    raise PodiumError(f"{job.endpoint.provider} does not answer ({error}); run again later") from None
                asked = error.retry_after or 0.0
                own = min(job.pace.max_backoff_seconds, job.pace.first_backoff_seconds * 2 ** min(failures, 20))
                _wait(max(asked, own), stopped)
                if stopped():
                    return False
                continue
            waiting = bool(batch_book.open_batches(ledger)) or ledger.open_elsewhere() > 0
            if stopped() or not (busy or waiting):
                return short
            if waiting:
                _wait(job.pace.poll_seconds, stopped)
    finally:
        client.close()


def _wait(seconds: float, stopped: Callable[[], bool]) -> None:
    """Sleep, but no longer than a second beyond a signal."""
    end = time.monotonic() + seconds
    while not stopped() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))


def _refuse(job: Job, error: StatusError) -> None:
    refuse_if_fatal(error.status, str(error), f"{job.endpoint.provider} ({job.endpoint.model})")


def _place(job: Job) -> str:
    return f"{job.endpoint.provider} {job.endpoint.base_url or ''}"


def _custom_id(item: str, turn: int, batch: str) -> str:
    """At most 64 letters, of the alphabet that both vendors allow."""
    return f"{item[:_ITEM_LETTERS]}-{turn}-{batch}"


def _send(ledger: Ledger, job: Job, client: object) -> tuple[bool, bool]:
    """Fill and create one batch. Returns (whether one was sent, whether money was short)."""
    batch = random_bits.token_hex(8)
    most_requests = min(job.pace.max_batch_requests, job.vendor.MOST_BATCH_REQUESTS)
    most_bytes = min(job.pace.max_batch_bytes, job.vendor.MOST_BATCH_BYTES)
    lines: list[tuple[str, dict]] = []
    size = 0

    def fits(item: str, turn: int, follow_up: FollowUp | None) -> bool:
        nonlocal size
        content = job.vendor.body(job.requests[item], follow_up)
        size += len(json.dumps(content, ensure_ascii=False).encode()) + 300
        lines.append((_custom_id(item, turn, batch), content))
        return size <= most_bytes or len(lines) == 1

    claims, short = ledger.claim(
        job.cap_nano, most_requests, lambda i, f: cost(job, i, f), job.pace.resend_unknown, batch, _place(job), fits
    )
    if not claims:
        return False, short
    try:
        vendor_id = job.vendor.create_batch(client, job.endpoint.api, lines[: len(claims)], batch)
    except StatusError as error:
        if error.status is not None:
            batch_book.lost(ledger, batch, f"the batch was not accepted: {error}")
        if error.status in (400, 413, 422):
            _refuse(job, error)
            raise PodiumError(
                f"{_place(job).strip()} calls a batch malformed: {error}; nothing of it was billed"
            ) from None
        raise
    batch_book.created(ledger, batch, vendor_id)
    return True, short


def _reconcile(ledger: Ledger, job: Job, client: object, batch: Batch, names: dict[str, set[str]]) -> bool:
    """Find a batch whose creation was not confirmed. Returns whether something was settled.

    Where the vendor keeps our name (OpenAI metadata), the list alone tells. Where it does not (Anthropic), a batch of
    the right size that this ledger does not know may be ours until its results show only other custom ids.

    Args:
        ledger: where it is written down.
        job: the run.
        client: of the vendor's SDK.
        batch: prepared, without a vendor id.
        names: vendor id -> our names found in its results, so that nobody else's results are read twice.
    """
    known = batch_book.known_vendor_ids(ledger, batch.place)
    undecided = False
    for facts in job.vendor.list_batches(client, batch.created - _CLOCK_SKEW_SECONDS):
        if facts.vendor_id in known:
            continue
        if facts.batch is not None:
            if facts.batch == batch.batch:
                batch_book.created(ledger, batch.batch, facts.vendor_id)
                return True
            continue
        if facts.count != batch.count or not facts.readable:
            continue
        if not facts.ended:
            undecided = True
            continue
        if facts.vendor_id not in names:
            custom_ids = (line.custom_id for _, line in job.vendor.results(client, facts) if line is not None)
            names[facts.vendor_id] = {custom_id.rpartition("-")[2] for custom_id in custom_ids}
        if batch.batch in names[facts.vendor_id]:
            batch_book.created(ledger, batch.batch, facts.vendor_id)
            return True
    if undecided or time.time() < batch.created + job.pace.reconcile_grace_seconds:
        return False
    batch_book.lost(ledger, batch.batch, "the vendor does not list it")
    return True


def _collect(ledger: Ledger, job: Job, client: object, batch: Batch) -> bool:
    """Read a batch's results if it has ended. Returns whether something was settled."""
    try:
        facts: BatchFacts = job.vendor.get_batch(client, batch.vendor_id)
    except StatusError as error:
        if error.status != 404:
            raise
        raise PodiumError(
            f"{batch.place.strip()} has no batch {batch.vendor_id}, in which this ledger has {batch.count} items; "
            f"was it made with another account? Nothing is sent again until that is clear"
        ) from None
    if not facts.ended:
        return False
    if facts.refused is not None:
        batch_book.lost(ledger, batch.batch, f"the vendor refused the batch: {facts.refused}")
        raise PodiumError(
            f"{job.endpoint.provider} refused a batch: {facts.refused}; nothing of it was billed; "
            f"if a limit is the reason, lower pace.max_batch_requests or pace.max_open_batches, then run again"
        )
    if not facts.readable:
        batch_book.collected(ledger, batch.batch, "its batch was archived before the results were read")
        return True
    waiting = {item[:_ITEM_LETTERS]: claim for item, claim in batch_book.waiting_items(ledger, batch.batch).items()}
    results = job.vendor.results(client, facts)
    # one commit for many lines: a crash in between only means reading them again
    while lines := list(itertools.islice(results, _LINES_A_COMMIT)):
        with ledger.transaction():
            for raw, line in lines:
                prefix, _, name = line.custom_id.rpartition("-") if line is not None else ("", "", "")
                claim = waiting.pop(prefix.partition("-")[0], None) if name == batch.batch else None
                if line is None or claim is None:
                    ledger.receive("unmatched", raw, batch=batch.batch)
                else:
                    verdict = _verdict(job, claim, line.kind, line.payload, line.reason)
                    record(ledger, job, claim, verdict, raw, batch.batch)
    batch_book.collected(ledger, batch.batch, "its batch ended without a result for it")
    return True


def _verdict(job: Job, claim: Claim, kind: str, payload: dict | None, reason: str) -> Verdict:
    if kind == "answered":
        return judge(job, claim, payload)
    return unpaid_error(job, claim, reason, item_is_wrong=kind == "invalid")
