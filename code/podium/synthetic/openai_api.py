"""OpenAI's Responses and Chat Completions, in realtime and through batch files, and any server that speaks them.

The SDK's own retries are off: the ledger must know of every request. A batch's metadata carries our name for it, so one
whose id was lost is found again by listing.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

import openai

from podium.errors import ArgumentError
from podium.synthetic.secrets import read_key
from podium.synthetic.settings import Endpoint
from podium.synthetic.wire import BatchFacts, BatchLine, send_raw, status_error
from podium.synthetic.work import FollowUp, Received, Reply, Request, Usage, most_output_tokens, retry_message

MOST_BATCH_REQUESTS = 50_000
MOST_BATCH_BYTES = 200_000_000
_URL = {"responses": "/v1/responses", "chat": "/v1/chat/completions"}
_OURS = "podium_batch"


def check_endpoint(endpoint: Endpoint) -> None:
    """Refuse settings that do not go together.

    Raises:
        ArgumentError: naming the key and the remedy.
    """
    if endpoint.api not in _URL:
        raise ArgumentError(f"endpoint.api is {endpoint.api!r}: provider openai has `responses` and `chat`")
    if endpoint.thinking is not None:
        raise ArgumentError("endpoint.thinking is Anthropic's; for provider openai set endpoint.effort instead")


def client(endpoint: Endpoint) -> openai.OpenAI:
    """A synchronous client (batches)."""
    return openai.OpenAI(
        api_key=read_key(endpoint.api_key_env),
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=endpoint.timeout_seconds,
    )


def async_client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """An asynchronous client (realtime)."""
    return openai.AsyncOpenAI(
        api_key=read_key(endpoint.api_key_env),
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=endpoint.timeout_seconds,
    )


def body(request: Request, follow_up: FollowUp | None) -> dict[str, Any]:
    """The request as the API takes it: stable text first, so that the vendor's prefix cache can hit."""
    parameters = request.parameters
    messages = [{"role": "user", "content": "\n\n".join(filter(None, [request.prefix, request.user]))}]
    if follow_up is not None and follow_up.previous is not None:
        messages.append({"role": "assistant", "content": follow_up.previous})
        messages.append({"role": "user", "content": retry_message(follow_up.reason or "")})
    schema = {"name": "answer", "schema": request.schema, "strict": True}
    limit = most_output_tokens(request, follow_up)
    result: dict[str, Any] = {"model": request.model}
    if parameters.get("cache_key"):
        result["prompt_cache_key"] = parameters["cache_key"]
    if parameters.get("temperature") is not None:
        result["temperature"] = parameters["temperature"]
    if parameters["api"] == "responses":
        result |= {"instructions": request.system, "input": messages, "max_output_tokens": limit, "store": False}
        result["text"] = {"format": {"type": "json_schema", **schema}}
        if parameters.get("effort"):
            result["reasoning"] = {"effort": parameters["effort"]}
        return result
    result |= {"messages": [{"role": "system", "content": request.system}, *messages], "max_completion_tokens": limit}
    result["response_format"] = {"type": "json_schema", "json_schema": schema}
    if parameters.get("effort"):
        result["reasoning_effort"] = parameters["effort"]
    return result


async def send(opened: openai.AsyncOpenAI, api: str, content: dict[str, Any], request_id: str) -> Received:
    """Send one realtime request."""
    headers = {"X-Client-Request-Id": request_id}
    if api == "responses":
        return await send_raw(openai, opened.responses.with_raw_response.create(**content, extra_headers=headers))
    return await send_raw(openai, opened.chat.completions.with_raw_response.create(**content, extra_headers=headers))


def read(api: str, payload: dict[str, Any]) -> Reply:
    """Read a response or a chat completion: stop reason first, then text, then usage."""
    raw = payload.get("usage")
    if api == "responses":
        parts = [part for item in payload["output"] if item["type"] == "message" for part in item["content"]]
        text = "".join(part["text"] for part in parts if part["type"] == "output_text")
        detail = str((payload.get("incomplete_details") or {}).get("reason") or payload["status"])
        if payload["status"] == "completed":
            stop = "refusal" if any(part["type"] == "refusal" for part in parts) else "end"
        else:
            stop = {"max_output_tokens": "length", "content_filter": "refusal"}.get(detail, detail)
        usage = raw and _usage(raw["input_tokens"], raw["output_tokens"], raw.get("input_tokens_details") or {})
        return Reply(stop, text, usage)
    choice = payload["choices"][0]
    reasons = {"stop": "end", "length": "length", "content_filter": "refusal"}
    stop = (
        "refusal" if choice["message"].get("refusal") else reasons.get(choice["finish_reason"], choice["finish_reason"])
    )
    usage = raw and _usage(raw["prompt_tokens"], raw["completion_tokens"], raw.get("prompt_tokens_details") or {})
    return Reply(stop, choice["message"].get("content") or "", usage)


def _usage(total: int, output: int, details: dict[str, Any]) -> Usage:
    cached, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    return Usage(fresh=total - cached - written, output=output, cache_read=cached, cache_write_5m=written)


def create_batch(opened: openai.OpenAI, api: str, lines: list[tuple[str, dict[str, Any]]], batch: str) -> str:
    """Upload (custom id, body) lines and create a batch that carries our name for it; returns its id."""
    handle = io.BytesIO()
    for custom_id, content in lines:
        line = {"custom_id": custom_id, "method": "POST", "url": _URL[api], "body": content}
        handle.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    handle.seek(0)
    with status_error(openai):
        file = opened.files.create(file=(f"{batch}.jsonl", handle), purpose="batch")
        created = opened.batches.create(
            input_file_id=file.id,
            endpoint=_URL[api],  # type: ignore[arg-type]
            completion_window="24h",
            metadata={_OURS: batch},
        )
        return created.id


def list_batches(opened: openai.OpenAI, since: float) -> Iterator[BatchFacts]:
    """Batches created since a moment, newest first."""
    with status_error(openai):
        for found in opened.batches.list(limit=100):
            if found.created_at < since:
                return
            yield _facts(found)


def get_batch(opened: openai.OpenAI, vendor_id: str) -> BatchFacts:
    """A batch's state."""
    with status_error(openai):
        return _facts(opened.batches.retrieve(vendor_id))


def _facts(found: Any) -> BatchFacts:
    errors = [f"{error.code}: {error.message}" for error in (found.errors.data or [])] if found.errors else []
    files = tuple(name for name in (found.output_file_id, found.error_file_id) if name)
    return BatchFacts(
        vendor_id=found.id,
        ended=found.status in ("completed", "failed", "expired", "cancelled"),
        count=found.request_counts.total if found.request_counts else 0,
        batch=(found.metadata or {}).get(_OURS, ""),
        refused="; ".join(errors) or "no reason given" if found.status == "failed" else None,
        readable=True,
        files=files,
    )


def results(opened: openai.OpenAI, facts: BatchFacts) -> Iterator[tuple[str, BatchLine | None]]:
    """(raw line, what it says) for every result in the output and error files; None for an unreadable line."""
    for name in facts.files:
        with status_error(openai), opened.files.with_streaming_response.content(name) as response:
            for raw in response.iter_lines():
                if raw.strip():
                    yield raw, _line(raw)


def _line(raw: str) -> BatchLine | None:
    try:
        line = json.loads(raw)
        response, error = line.get("response"), line.get("error")
        if response and response["status_code"] == 200:
            return BatchLine(line["custom_id"], "answered", response["body"], "")
        if response:
            wrong = response["status_code"] in (400, 404, 413, 422)
            message = json.dumps(response.get("body"))[:500]
            return BatchLine(
                line["custom_id"], "invalid" if wrong else "error", None, f"{response['status_code']} {message}"
            )
        return BatchLine(line["custom_id"], "expired", None, str(error["code"]))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
