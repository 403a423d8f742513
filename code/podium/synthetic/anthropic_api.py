"""Anthropic's Messages and Message Batches through the vendor's SDK: what to send, how to read what comes back.

The SDK's own retries are off: the ledger must know of every request. Sampling parameters are not sent (the API answers
400 to them). Message Batches carry no metadata, so a batch whose id was lost is known by its custom ids alone.
"""

import json
from collections.abc import Iterator
from typing import Any

import anthropic

from podium.errors import ArgumentError
from podium.synthetic.secrets import read_key
from podium.synthetic.settings import Endpoint
from podium.synthetic.wire import BatchFacts, BatchLine, send_raw, status_error, timestamp
from podium.synthetic.work import FollowUp, Received, Reply, Request, Usage, most_output_tokens, retry_message

MOST_BATCH_REQUESTS = 100_000
MOST_BATCH_BYTES = 256_000_000


def check_endpoint(endpoint: Endpoint) -> None:
    """Refuse settings that today's API answers 400 to.

    Raises:
        ArgumentError: naming the key and the remedy.
    """
    if endpoint.temperature is not None:
        raise ArgumentError("endpoint.temperature: Anthropic's API refuses sampling parameters; set it to null")
    if endpoint.thinking == "between_tools" and endpoint.effort in ("xhigh", "max"):
        raise ArgumentError("endpoint.thinking=between_tools goes with effort up to high; lower endpoint.effort")
    if endpoint.api != "messages":
        raise ArgumentError(f"endpoint.api is {endpoint.api!r}: provider anthropic has only `messages`")


def client(endpoint: Endpoint) -> anthropic.Anthropic:
    """A synchronous client (batches)."""
    return anthropic.Anthropic(
        api_key=read_key(endpoint.api_key_env),
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=endpoint.timeout_seconds,
    )


def async_client(endpoint: Endpoint) -> anthropic.AsyncAnthropic:
    """An asynchronous client (realtime)."""
    return anthropic.AsyncAnthropic(
        api_key=read_key(endpoint.api_key_env),
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=endpoint.timeout_seconds,
    )


def body(request: Request, follow_up: FollowUp | None) -> dict[str, Any]:
    """The request as the API takes it. System and prefix are cached; what differs comes after them."""
    parameters = request.parameters
    cache = {"type": "ephemeral", "ttl": parameters["cache_ttl"]} if parameters.get("cache_ttl") else None
    first: list[dict[str, Any]] = []
    system: dict[str, Any] = {"type": "text", "text": request.system}
    if request.prefix:
        first.append({"type": "text", "text": request.prefix} | ({"cache_control": cache} if cache else {}))
    elif cache:
        system["cache_control"] = cache
    first.append({"type": "text", "text": request.user})
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
    if follow_up is not None and follow_up.previous is not None:
        messages.append({"role": "assistant", "content": follow_up.previous})
        messages.append({"role": "user", "content": retry_message(follow_up.reason or "")})
    output: dict[str, Any] = {"format": {"type": "json_schema", "schema": request.schema}}
    if parameters.get("effort"):
        output["effort"] = parameters["effort"]
    result = {
        "model": request.model,
        "max_tokens": most_output_tokens(request, follow_up),
        "system": [system],
        "messages": messages,
        "output_config": output,
    }
    if parameters.get("thinking"):
        result["thinking"] = {"type": parameters["thinking"]}
    return result


async def send(opened: anthropic.AsyncAnthropic, api: str, content: dict[str, Any], request_id: str) -> Received:
    """Send one realtime request."""
    return await send_raw(
        anthropic,
        opened.messages.with_raw_response.create(**content, extra_headers={"X-Client-Request-Id": request_id}),
    )


def read(api: str, payload: dict[str, Any]) -> Reply:
    """Read a message: stop reason first, then text, then usage."""
    reasons = {"end_turn": "end", "stop_sequence": "end", "max_tokens": "length", "refusal": "refusal"}
    stop = str(payload["stop_reason"])
    text = "".join(block["text"] for block in payload["content"] if block["type"] == "text")
    raw = payload.get("usage")
    usage = None
    if raw is not None:
        written = raw.get("cache_creation_input_tokens") or 0
        split = raw.get("cache_creation") or {}
        hour = split.get("ephemeral_1h_input_tokens") or 0
        usage = Usage(
            fresh=raw["input_tokens"],
            output=raw["output_tokens"],
            cache_read=raw.get("cache_read_input_tokens") or 0,
            cache_write_5m=written - hour,
            cache_write_1h=hour,
        )
    return Reply(reasons.get(stop, stop), text, usage)


def create_batch(opened: anthropic.Anthropic, api: str, lines: list[tuple[str, dict[str, Any]]], batch: str) -> str:
    """Create a batch of (custom id, body) and return its id."""
    requests = [{"custom_id": custom_id, "params": content} for custom_id, content in lines]
    with status_error(anthropic):
        return opened.messages.batches.create(requests=requests).id  # type: ignore[arg-type]


def list_batches(opened: anthropic.Anthropic, since: float) -> Iterator[BatchFacts]:
    """Batches created since a moment, newest first."""
    with status_error(anthropic):
        for found in opened.messages.batches.list(limit=100):
            if timestamp(found.created_at) < since:
                return
            yield _facts(found)


def get_batch(opened: anthropic.Anthropic, vendor_id: str) -> BatchFacts:
    """A batch's state."""
    with status_error(anthropic):
        return _facts(opened.messages.batches.retrieve(vendor_id))


def _facts(found: Any) -> BatchFacts:
    counts = found.request_counts
    return BatchFacts(
        vendor_id=found.id,
        ended=found.processing_status == "ended",
        count=counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired,
        batch=None,
        refused=None,
        readable=found.archived_at is None,
    )


def results(opened: anthropic.Anthropic, facts: BatchFacts) -> Iterator[tuple[str, BatchLine | None]]:
    """(raw line, what it says) for every result; None for a line that cannot be read."""
    with status_error(anthropic), opened.messages.batches.with_streaming_response.results(facts.vendor_id) as response:
        for raw in response.iter_lines():
            if raw.strip():
                yield raw, _line(raw)


def _line(raw: str) -> BatchLine | None:
    try:
        line = json.loads(raw)
        result = line["result"]
        kind = result["type"]
        if kind == "succeeded":
            return BatchLine(line["custom_id"], "answered", result["message"], "")
        if kind == "errored":
            error = result["error"].get("error", result["error"])
            wrong = error["type"] in ("invalid_request_error", "request_too_large", "not_found_error")
            return BatchLine(
                line["custom_id"], "invalid" if wrong else "error", None, f"{error['type']}: {error['message']}"
            )
        return BatchLine(line["custom_id"], "expired", None, kind)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
