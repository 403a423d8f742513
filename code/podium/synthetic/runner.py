"""Running a stage: plan, send in either mode, and say how it went."""

import asyncio
import importlib
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from podium.errors import InterruptedRun, PodiumError, PrerequisiteError
from podium.synthetic import batch_book
from podium.synthetic.batch import run_batches
from podium.synthetic.job import Check, Job, cost
from podium.synthetic.ledger import Ledger
from podium.synthetic.prices import NANO, dollars, most_nano, read_price
from podium.synthetic.realtime import run_realtime
from podium.synthetic.records import Outcome
from podium.synthetic.settings import Endpoint, Pace
from podium.synthetic.work import Request, address, likely_input_tokens

VENDORS = {"anthropic": "podium.synthetic.anthropic_api", "openai": "podium.synthetic.openai_api"}


class PartialResult(PodiumError):
    """The run ended with work undone or too much of it failed; what there is has been written."""

    exit_code = 7


@dataclass(frozen=True)
class Run:
    """How a stage ended: the accepted answers by label, every item's state, and the bill."""

    answers: dict[str, Any]
    counts: dict[str, int]
    outcomes: list[Outcome]
    short_of_money: bool
    bill_usd: float


def parameters(endpoint: Endpoint, cache_key: str) -> dict[str, Any]:
    """The part of an endpoint that decides an answer, as it enters a request and its address."""
    values: dict[str, Any] = {
        "api": endpoint.api,
        "max_tokens": endpoint.max_tokens,
        "effort": endpoint.effort,
        "thinking": endpoint.thinking,
        "temperature": endpoint.temperature,
    }
    if endpoint.provider == "anthropic":
        values["cache_ttl"] = endpoint.cache_ttl
    elif endpoint.cache_ttl is not None:
        values["cache_key"] = cache_key
    return values


def run_stage(
    stage: str,
    requests: dict[str, Request],
    answer: type[BaseModel],
    check: Check,
    *,
    endpoint: Endpoint,
    pace: Pace,
    mode: str,
    max_usd: float,
    plan: bool,
    ledger_path: str | Path,
    prices_path: str | Path,
    quiet: bool = False,
) -> Run | None:
    """Get an answer for every request, from the ledger where there is one, else from the vendor.

    Args:
        stage: name under which the ledger keeps the items.
        requests: label -> request; equal requests share one item, and its one answer.
        answer: Pydantic model of the answer.
        check: raises ValueError for answers that break a rule of the stage.
        endpoint: which model, where.
        pace: how fast, how often.
        mode: "batch" or "realtime".
        max_usd: the most the ledger's whole bill may reach.
        plan: print counts, tokens, dollars and time, and send nothing.
        ledger_path: SQLite file.
        prices_path: prices.yaml.
        quiet: no progress on stderr.

    Returns:
        the run, or None after a plan.

    Raises:
        InterruptedRun: SIGINT or SIGTERM; what was under way is settled or in the ledger.
        PodiumError: prices, credentials, billing or format stand in the way.
    """
    vendor = _vendor(endpoint)
    vendor.check_endpoint(endpoint)
    price = read_price(prices_path, endpoint.provider, endpoint.model, mode == "batch")
    addresses = {label: address(request) for label, request in requests.items()}
    by_item = {addresses[label]: request for label, request in requests.items()}
    job = Job(stage, vendor, endpoint, pace, price, mode == "batch", round(max_usd * NANO), by_item, answer, check)
    ledger = Ledger(ledger_path)
    try:
        new = ledger.plan(stage, ((addresses[label], label, request) for label, request in requests.items()))
        ledger.want(addresses.values())
        if pace.retry_failed and not plan:
            ledger.retry_failed()
        lost = (0, 0) if plan else ledger.recover()
        if mode == "realtime" and (waiting := batch_book.open_batches(ledger)):
            count = sum(batch.count for batch in waiting)
            raise PodiumError(
                f"{stage}: up to {count} of these items are in {len(waiting)} batches at {endpoint.provider}; "
                f"run with mode=batch until they are collected, then switch to realtime"
            )
        _print_plan(ledger, job, new, max_usd, lost, quiet and not plan)
        if plan:
            return None
        short = _send_all(ledger, job, quiet)
        outcomes = list(ledger.outcomes())
        by_address = {outcome.item: outcome for outcome in outcomes if outcome.answer is not None}
        answers = {
            label: answer.model_validate_json(by_address[item].answer or "")
            for label, item in addresses.items()
            if item in by_address
        }
        return Run(answers, ledger.counts(), outcomes, short, dollars(ledger.bill()))
    except sqlite3.Error as error:
        raise PodiumError(f"ledger {ledger_path}: {error}; mend that (disk space, permissions) and run again") from None
    finally:
        ledger.close()


def _vendor(endpoint: Endpoint) -> ModuleType:
    """The vendor's module; only its SDK is imported, and only when a run needs it.

    Raises:
        PrerequisiteError: the SDK is not installed.
    """
    try:
        return importlib.import_module(VENDORS[endpoint.provider])
    except ModuleNotFoundError as error:
        raise PrerequisiteError(f"package {error.name} is not installed; pip install anthropic openai") from None


def _send_all(ledger: Ledger, job: Job, quiet: bool) -> bool:
    progress = _progress(ledger, job, quiet)
    with _stop_signals() as stopped:
        if job.batch:
            short = run_batches(ledger, job, progress, stopped)
        else:
            short = asyncio.run(run_realtime(ledger, job, progress, stopped))
        progress(-1)
        if stopped():
            left = sum(ledger.counts().get(state, 0) for state in ("planned", "reserved", "submitted"))
            raise InterruptedRun(
                f"{job.stage}: interrupted with {left} items to go; the same command goes on from here"
            )
    return short


def finish(run: Run, stage: str, pace: Pace) -> None:
    """After the outputs are written: exit code 7 if work is undone or too much of it failed.

    Raises:
        PartialResult: saying what is missing and how to get it.
    """
    total = sum(run.counts.values())
    undone = sum(run.counts.get(state, 0) for state in ("planned", "reserved", "submitted"))
    if run.short_of_money and undone:
        raise PartialResult(
            f"{stage}: max_usd reached with {undone} of {total} items unsent (bill ${run.bill_usd:.4f}, requests under way "
            f"and unknown ones included); raise max_usd and run again to go on"
        )
    bad = sum(run.counts.get(state, 0) for state in ("failed", "refused", "unknown"))
    if total and bad / total > pace.max_failed_share:
        reasons = sorted(
            {f"{o.state}: {o.reason}" for o in run.outcomes if o.state in ("failed", "refused", "unknown")}
        )
        raise PartialResult(
            f"{stage}: {bad} of {total} items have no answer ({'; '.join(reasons[:3])[:400]}); see the ledger, set "
            f"pace.retry_failed=true to try again, or allow more with pace.max_failed_share"
        )


def _print_plan(ledger: Ledger, job: Job, new: int, max_usd: float, lost: tuple[int, int], quiet: bool) -> None:
    if quiet:
        return
    counts = ledger.counts()
    todo = [outcome.item for outcome in ledger.outcomes() if outcome.state in ("planned", "reserved", "submitted")]
    tokens_in = sum(likely_input_tokens(job.requests[item]) for item in todo)
    tokens_out = len(todo) * job.endpoint.max_tokens // 3
    likely = most_nano(job.price, tokens_in, tokens_out, job.batch)
    most = sum(cost(job, item, None) for item in todo)
    if job.batch:
        hours = "minutes to 24 h (vendors' promise for a batch)"
    else:
        hours = f"about {len(todo) * 15 / job.pace.max_concurrency / 60:.0f} min at 15 s a request"
    print(
        f"{job.stage}: {len(job.requests)} items ({new} new; {', '.join(f'{v} {k}' for k, v in sorted(counts.items()))}), "
        f"{len(todo)} to send to {job.endpoint.provider}/{job.endpoint.model} in {'batch' if job.batch else 'realtime'} mode\n"
        f"  tokens about {tokens_in:,} in, {tokens_out:,} out; about ${dollars(likely):.2f}, at most ${dollars(most):.2f}; "
        f"bill so far ${dollars(ledger.bill()):.4f} of max_usd ${max_usd:.2f}; {hours}"
        + (f"\n  taken over from dead processes: {lost[0]} unsent, {lost[1]} of unknown fate" if any(lost) else ""),
        file=sys.stderr,
        flush=True,
    )


def _progress(ledger: Ledger, job: Job, quiet: bool) -> Callable[[int], None]:
    started = time.monotonic()
    last = [0.0]
    counts = ledger.counts()
    done_before = sum(counts.values()) - counts.get("planned", 0)
    on_screen = sys.stderr.isatty()

    def show(under_way: int) -> None:
        now = time.monotonic()
        if quiet or (under_way >= 0 and now - last[0] < (0.5 if on_screen else 15.0)):
            return
        last[0] = now
        states = ledger.counts()
        total = sum(states.values())
        done = total - sum(states.get(state, 0) for state in ("planned", "reserved", "submitted"))
        fresh = done - done_before
        eta = f"{(total - done) / fresh * (now - started) / 60:.1f} min left" if fresh > 0 else "time left unknown"
        bill = dollars(ledger.bill())
        line = (
            f"{job.stage}: {done}/{total} done, {states.get('succeeded', 0)} good, {max(under_way, 0)} under way, "
            f"${bill:.4f} of ${dollars(job.cap_nano):.2f}, {eta}"
        )
        end = "\n" if under_way < 0 or not on_screen else ""
        print(("\r\x1b[2K" if on_screen else "") + line, end=end, file=sys.stderr, flush=True)

    return show


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """While open, the first SIGINT or SIGTERM asks for an orderly stop, the second is taken at its word."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it handles signals
        old = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
