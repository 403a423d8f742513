"""One piece of work for a model: what is asked, its address, and what came back."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

# Both vendors compile a schema into a grammar and answer 400 to bounds; Pydantic checks these on our side.
UNSUPPORTED_KEYWORDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minItems",
    "maxItems",
    "uniqueItems",
    "default",
    "title",
)
# Chat framing, the schema's own instructions and role markers that a vendor adds to what we send.
FRAMING_TOKENS = 1500


@dataclass(frozen=True)
class Request:
    """All that decides an answer. `prefix` is the stable part that the vendor may cache; `user` is what differs."""

    provider: str
    model: str
    prompt_version: str
    system: str
    prefix: str
    user: str
    schema: dict[str, Any]
    parameters: dict[str, Any]
    sample: int = 0


@dataclass(frozen=True)
class FollowUp:
    """A second attempt: the rejected answer and why, or more room for a cut one."""

    previous: str | None = None
    reason: str | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens as billed; `fresh` excludes everything that went through the cache."""

    fresh: int
    output: int
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    @property
    def input(self) -> int:
        """All input tokens."""
        return self.fresh + self.cache_read + self.cache_write_5m + self.cache_write_1h


@dataclass(frozen=True)
class Reply:
    """A vendor's answer in one shape. `stop` is end | length | refusal | anything else the vendor said."""

    stop: str
    text: str
    usage: Usage | None


@dataclass(frozen=True)
class Received:
    """What came over the wire. `status` is None when no complete answer arrived, so the request may have been paid."""

    status: int | None
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = ""


def address(request: Request) -> str:
    """sha256 of model, prompt, schema and parameters: the same question has the same address in every run."""
    parts = [
        request.provider,
        request.model,
        request.prompt_version,
        request.system,
        request.prefix,
        request.user,
        request.schema,
        request.parameters,
        request.sample,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def strict_schema(answer: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a Pydantic model in the subset that both vendors accept.

    References are inlined, every object is closed with all keys required, and bounds move into the description.
    """
    full = answer.model_json_schema()
    definitions = full.get("$defs", {})

    def narrow(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            return narrow(definitions[node["$ref"].rsplit("/", 1)[1]])
        bounds = [
            f"{key} {node[key]}" for key in UNSUPPORTED_KEYWORDS if key in node and key not in ("default", "title")
        ]
        result = {key: value for key, value in node.items() if key not in (*UNSUPPORTED_KEYWORDS, "$defs")}
        if bounds:
            result["description"] = "; ".join([*filter(None, [node.get("description")]), *bounds])
        if "properties" in node:
            result["properties"] = {key: narrow(value) for key, value in node["properties"].items()}
            result["required"] = list(node["properties"])
            result["additionalProperties"] = False
        if "items" in node:
            result["items"] = narrow(node["items"])
        if "anyOf" in node:
            result["anyOf"] = [narrow(option) for option in node["anyOf"]]
        return result

    return narrow(full)


def most_input_tokens(request: Request, follow_up: FollowUp | None) -> int:
    """An upper bound on input tokens: no byte-level tokenizer makes more tokens than there are UTF-8 bytes."""
    text = [request.system, request.prefix, request.user, json.dumps(request.schema)]
    if follow_up is not None and follow_up.previous is not None:
        text += [follow_up.previous, retry_message(follow_up.reason or "")]
    return sum(len(part.encode()) for part in text) + FRAMING_TOKENS


def likely_input_tokens(request: Request) -> int:
    """An estimate for plans: about 3.5 characters a token in English with mathematics."""
    text = (request.system, request.prefix, request.user, json.dumps(request.schema))
    return sum(len(part) for part in text) * 2 // 7 + 20


def most_output_tokens(request: Request, follow_up: FollowUp | None) -> int:
    """The limit that the vendor enforces, thinking included."""
    return (follow_up and follow_up.max_tokens) or request.parameters["max_tokens"]


def retry_message(reason: str) -> str:
    """What the model is told about a rejected answer."""
    return f"That answer was rejected: {reason}. Answer again in full, in the same format, with this corrected."
