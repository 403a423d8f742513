"""A run of one stage as plain values, and what each answer amounts to."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from podium.synthetic.ledger import Ledger
from podium.synthetic.prices import Price, actual_nano, most_nano
from podium.synthetic.records import Claim
from podium.synthetic.settings import Endpoint, Pace
from podium.synthetic.work import FollowUp, Request, Usage, most_input_tokens, most_output_tokens

Check = Callable[[Request, Any], None]
"""Raises ValueError with the reason if a well-formed answer breaks a rule of its stage."""


@dataclass(frozen=True)
class Job:
    """Everything the senders need. `vendor` is anthropic_api or openai_api; `requests` maps address to request."""

    stage: str
    vendor: ModuleType
    endpoint: Endpoint
    pace: Pace
    price: Price
    batch: bool
    cap_nano: int
    requests: dict[str, Request]
    answer: type[BaseModel]
    check: Check


@dataclass(frozen=True)
class Verdict:
    """What an answer does to its item. `paid` None: the vendor did not say, so the greatest cost stays charged."""

    state: str
    paid: int | None
    usage: Usage | None = None
    reason: str | None = None
    answer: str | None = None
    follow_up: FollowUp | None = None


def cost(job: Job, item: str, follow_up: FollowUp | None) -> int:
    """The most that sending an item now can cost, in nano-dollars."""
    request = job.requests[item]
    tokens = most_input_tokens(request, follow_up), most_output_tokens(request, follow_up)
    return most_nano(job.price, *tokens, batch=job.batch)


def judge(job: Job, claim: Claim, payload: Any) -> Verdict:
    """Read a complete answer: stop reason, then text, then schema, then the stage's own rules."""
    request = job.requests[claim.item]
    try:
        reply = job.vendor.read(job.endpoint.api, payload)
    except (KeyError, TypeError, IndexError, AttributeError):
        return Verdict("unknown", None, reason="the answer has not the vendor's shape")
    paid = None if reply.usage is None else actual_nano(job.price, reply.usage, job.batch)

    room = most_output_tokens(request, claim.follow_up)
    widened = claim.follow_up.max_tokens if claim.follow_up is not None else None

    def again(reason: str, follow_up: FollowUp) -> Verdict:
        if claim.turn >= job.pace.max_invalid_retries:
            return Verdict("failed", paid, reply.usage, f"{reason} (after {claim.turn + 1} answers)")
        return Verdict("planned", paid, reply.usage, reason, follow_up=follow_up)

    if reply.stop == "refusal":
        return Verdict("refused", paid, reply.usage, "the model refused")
    if reply.stop == "length":
        more = min(2 * room, job.endpoint.max_tokens_limit)
        if more <= room:
            return Verdict("failed", paid, reply.usage, f"cut off at {room} tokens; raise endpoint.max_tokens_limit")
        before = claim.follow_up or FollowUp()
        return again(f"cut off at {room} tokens", FollowUp(before.previous, before.reason, more))
    if reply.stop != "end":
        return Verdict("failed", paid, reply.usage, f"stopped for {reply.stop}")
    try:
        answer = job.answer.model_validate_json(reply.text)
        job.check(request, answer)
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'answer'}: {p['msg']}" for p in error.errors()[:3])
        return again(f"invalid: {reason}", FollowUp(reply.text, reason, widened))
    except ValueError as error:
        reason = str(error)
        return again(f"invalid: {reason}", FollowUp(reply.text, reason, widened))
    return Verdict("succeeded", paid, reply.usage, answer=answer.model_dump_json())


def record(ledger: Ledger, job: Job, claim: Claim, verdict: Verdict, raw: str, batch: str | None = None) -> bool:
    """Write an arrival and its verdict, inside the caller's transaction; False if the item is not ours to settle."""
    ledger.receive("answer", raw, item=claim.item, batch=batch)
    settled = ledger.settle(
        claim.item,
        verdict.state,
        paid=verdict.paid,
        batch=batch,
        reason=verdict.reason,
        answer=verdict.answer,
        follow_up=verdict.follow_up,
    )
    billed = verdict.paid != 0 or verdict.usage is not None
    if settled and billed and verdict.state != "unknown":
        charged = claim.held if verdict.paid is None else verdict.paid
        ledger.count_usage(claim.item, "batch" if job.batch else "realtime", verdict.usage, charged)
    return settled


def unpaid_error(job: Job, claim: Claim, reason: str, item_is_wrong: bool) -> Verdict:
    """An attempt that was answered with an error and not billed: try again later, or fail for good."""
    if item_is_wrong:
        return Verdict("failed", 0, reason=reason)
    if claim.errors + 1 >= job.pace.max_errors:
        return Verdict("failed", 0, reason=f"{reason} ({claim.errors + 1} times)")
    return Verdict("planned", 0, reason=reason)


def parse(body: str) -> Any | None:
    """The JSON object in a body, or None."""
    try:
        value = json.loads(body)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
