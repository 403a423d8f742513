"""Sending one request at a time, many at once."""

import asyncio
import time
from collections.abc import Callable

from podium.errors import PodiumError
from podium.synthetic.job import Job, cost, judge, parse, record, unpaid_error
from podium.synthetic.ledger import Ledger
from podium.synthetic.pace import Throttle
from podium.synthetic.records import Claim
from podium.synthetic.wire import refuse_if_fatal

# Requests that the server calls malformed, with no success in between: the fault is ours, not an item's.
_WRONG_IN_A_ROW = 5


async def run_realtime(ledger: Ledger, job: Job, progress: Callable[[int], None], stopped: Callable[[], bool]) -> bool:
    """Send every wanted item until all are settled, money is short, or `stopped`.

    Returns:
        whether the budget is what ended it.

    Raises:
        PodiumError: credentials, billing, model or request format are refused; answers under way are settled first.
    """
    pace = job.pace
    throttle = Throttle(
        pace.first_concurrency, pace.max_concurrency, pace.first_backoff_seconds, pace.max_backoff_seconds
    )
    under_way: set[asyncio.Task[None]] = set()
    fatal: list[PodiumError] = []
    wrong_in_a_row = [0]
    short = False
    client = job.vendor.async_client(job.endpoint)

    def stop_if_down() -> None:
        """An outage must not turn every item into a failed one."""
        if throttle.errors_in_a_row >= 4 * pace.max_errors:
            where = job.endpoint.base_url or job.endpoint.provider
            fatal.append(PodiumError(f"{where}: {throttle.errors_in_a_row} errors in a row; run again when it answers"))

    async def one(claim: Claim) -> None:
        request_id = f"{claim.item[:40]}-{claim.turn}-{claim.losses}-{claim.errors}"
        content = job.vendor.body(job.requests[claim.item], claim.follow_up)
        received = await job.vendor.send(client, job.endpoint.api, content, request_id)
        now = time.monotonic()
        payload = parse(received.body) if received.status == 200 else None
        if received.status == 200 and payload is not None:
            verdict = judge(job, claim, payload)
            throttle.success(received.headers, now)
            wrong_in_a_row[0] = 0
            with ledger.transaction():
                record(ledger, job, claim, verdict, received.body)
            return
        if received.status is None or received.status == 200:
            reason = received.reason or "the answer is cut off"
            _settle(ledger, claim, "unknown", None, reason, received.body)
            throttle.error(received.headers, now, limited=False)
            stop_if_down()
            return
        status = received.status
        wrong = status in (400, 413, 422)
        try:
            refuse_if_fatal(status, received.body, f"{job.endpoint.provider} ({job.endpoint.model})")
            wrong_in_a_row[0] += wrong
            if wrong_in_a_row[0] >= _WRONG_IN_A_ROW:
                raise PodiumError(f"{job.endpoint.provider} calls every request malformed: {received.body[:300]}")
        except PodiumError as error:
            fatal.append(error)
            _settle(ledger, claim, "planned", 0, f"HTTP {status}", received.body)
            return
        verdict = unpaid_error(job, claim, f"HTTP {status or 'no connection'}: {received.body[:300]}", wrong)
        _settle(ledger, claim, verdict.state, 0, verdict.reason, received.body)
        if not wrong:
            throttle.error(received.headers, now, limited=status in (429, 529, 503))
            stop_if_down()

    try:
        while not fatal:
            claims: list[Claim] = []
            room = 0 if stopped() else throttle.room(len(under_way), time.monotonic())
            if room:
                claims, short = ledger.claim(job.cap_nano, room, lambda i, f: cost(job, i, f), pace.resend_unknown)
                ledger.submit(claim.item for claim in claims)
                under_way |= {asyncio.create_task(one(claim)) for claim in claims}
            if under_way:
                done, under_way = await asyncio.wait(
                    under_way,
                    timeout=max(0.01, throttle.wait(time.monotonic())) if room == 0 else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    task.result()
                progress(len(under_way))
            elif stopped():
                break
            elif (pause := throttle.wait(time.monotonic())) > 0:
                await asyncio.sleep(min(pause, 1.0))
            elif not claims:
                if not ledger.open_elsewhere():
                    break
                progress(0)
                await asyncio.sleep(min(job.pace.poll_seconds, 1.0))
                ledger.recover()
        if under_way:
            await asyncio.wait(under_way)
            for task in under_way:
                task.result()
    finally:
        await client.close()
    if fatal:
        raise fatal[0]
    return short


def _settle(ledger: Ledger, claim: Claim, state: str, paid: int | None, reason: str | None, body: str) -> None:
    with ledger.transaction():
        ledger.receive("error", body, item=claim.item)
        ledger.settle(claim.item, state, paid=paid, reason=reason)
