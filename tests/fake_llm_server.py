"""A server on 127.0.0.1 that speaks both vendors' protocols, misbehaves on a seeded schedule, and counts what was paid.

    python tests/fake_llm_server.py --port 0 [--author bank]      prints `listening on http://127.0.0.1:PORT`

Everything lives below /n/NAME, one world per name: POST /n/NAME/_config sets its faults, GET /n/NAME/_stats returns what
it has seen. Base URLs are http://127.0.0.1:PORT/n/NAME for Anthropic and …/n/NAME/v1 for OpenAI.

It offers what the vendors document and no more: no idempotency keys; equal requests are served and billed each time.
What a client was billed for is decided here, apart from whether the client ever learns of it.
"""

import argparse
import hashlib
import importlib
import json
import re
import socket
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

UNSUPPORTED = {
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "multipleOf",
    "format",
}
CACHE_MINIMUM_TOKENS = 1024
NANO = 1_000_000_000


@dataclass
class World:
    """The state of one name."""

    seed: int = 0
    rates: dict = field(default_factory=dict)
    """Fault name -> probability a request (or, for batch_* and line_* faults, a call or a line)."""
    latency: float = 0.0
    batch_seconds: float = 0.0
    key: str | None = None
    prices: dict = field(default_factory=dict)
    """Dollars per million: input, output, cache_read, cache_write_5m, cache_write_1h, batch_factor."""
    author: str = "filler"
    fault_limit: int = 10**9
    requests: int = 0
    calls: int = 0
    paid_nano: int = 0
    paid: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    usage: Counter = field(default_factory=Counter)
    prefixes: set = field(default_factory=set)
    files: dict = field(default_factory=dict)
    batches: dict = field(default_factory=dict)
    prompts: list = field(default_factory=list)
    keep_prompts: bool = False
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def draw(self, *names: str) -> str | None:
        """The fault of this call, one draw a call, as a pure function of seed and call number."""
        self.calls += 1
        point = Random(f"{self.seed}:{self.calls}").random()
        for name in names:
            point -= self.rates.get(name, 0.0)
            if point < 0 and sum(self.faults.values()) < self.fault_limit:
                self.faults[name] += 1
                return name
        return None


def tokens(text: str) -> int:
    return max(1, len(text) // 4)


def identity_of(name: str) -> str:
    """What is one purchase: the item and which answer of it this is (an answer that broke the rules is bought anew)."""
    return "-".join(name.split("-")[:2])


def author_of(world: World):
    return importlib.import_module("fake_llm_author").AUTHORS[world.author]


def fill(schema: dict, rng: Random):
    """Any value that fits a schema."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "anyOf" in schema:
        return fill(schema["anyOf"][0], rng)
    kind = schema["type"]
    if kind == "object":
        return {key: fill(value, rng) for key, value in schema["properties"].items()}
    if kind == "array":
        return [fill(schema["items"], rng)]
    return {
        "string": f"text {rng.random():.6f}",
        "integer": rng.randint(0, 10),
        "number": rng.random(),
        "boolean": True,
    }[kind]


def bad_schema(node) -> str | None:
    if isinstance(node, dict):
        if found := UNSUPPORTED & set(node):
            return f"property '{sorted(found)[0]}' is not supported"
        if node.get("type") == "object" and (
            node.get("additionalProperties") is not False or set(node.get("required", [])) != set(node["properties"])
        ):
            return "objects need additionalProperties: false and every key required"
        return next(filter(None, (bad_schema(value) for key, value in node.items() if key != "enum")), None)
    if isinstance(node, list):
        return next(filter(None, map(bad_schema, node)), None)
    return None


def understand(api: str, body: dict) -> tuple[str, str, str, dict, int] | str:
    """(model, cacheable text, other text, schema, output limit) of a request, or what is wrong with it."""
    try:
        if api == "messages":
            for name in ("temperature", "top_p", "top_k"):
                if name in body:
                    return f"{name}: Extra inputs are not permitted"
            thinking, effort = body.get("thinking", {}).get("type"), body["output_config"].get("effort")
            if thinking == "disabled" and body["model"].endswith("-5-5"):
                return "thinking.type: `disabled` is not supported; use `between_tools`"
            if thinking == "between_tools" and effort in ("xhigh", "max"):
                return "thinking.type: `between_tools` is not supported at this effort"
            if "tool_choice" in body or body["messages"][-1]["role"] != "user":
                return "forced tool_choice and assistant prefill are not supported"
            cached, rest, seen = "", "", []
            for block in body["system"]:
                seen.append(block["text"])
                if "cache_control" in block:
                    cached = "\n".join(seen)
            for message in body["messages"]:
                blocks = message["content"]
                for block in [{"text": blocks}] if isinstance(blocks, str) else blocks:
                    seen.append(block["text"])
                    if "cache_control" in block:
                        cached = "\n".join(seen)
            rest = "\n".join(seen)[len(cached) :]
            schema, limit = body["output_config"]["format"]["schema"], body["max_tokens"]
        elif api == "responses":
            cached, rest = body["instructions"], "\n".join(m["content"] for m in body["input"])
            schema, limit = body["text"]["format"]["schema"], body["max_output_tokens"]
        else:
            cached = body["messages"][0]["content"]
            rest = "\n".join(m["content"] for m in body["messages"][1:])
            schema, limit = body["response_format"]["json_schema"]["schema"], body["max_completion_tokens"]
        if api != "messages":
            head, _, tail = rest.partition("\n\n")
            cached, rest = f"{cached}\n{head}", tail
    except (KeyError, TypeError) as error:
        return f"missing or malformed field {error}"
    problem = bad_schema(schema)
    return problem or (body["model"], cached, rest, schema, limit)


def answer(world: World, api: str, body: dict, identity: str, batch: bool, fault: str | None) -> dict:
    """Answer a well-formed request, bill it, and return the vendor's JSON."""
    model, cached, rest, schema, limit = understand(api, body)
    canonical = json.dumps(body, sort_keys=True)
    rng = Random(hashlib.sha256(f"{identity}{canonical}".encode()).hexdigest())
    value = fill(schema, rng) if world.author == "filler" else author_of(world)(f"{cached}\n{rest}", schema, rng)
    text = json.dumps(value, ensure_ascii=False)
    stop = "end"
    if fault == "wrong_schema":
        text = rng.choice(['{"unexpected": 1}', "[]", "not json", text[: len(text) // 2], '{"score": 99}'])
    elif fault == "refusal":
        stop, text = "refusal", ""
    elif fault == "max_tokens" or tokens(text) > limit:
        stop, text = "length", text[: min(limit * 4, len(text) // 2)]
    out = limit if stop == "length" else min(limit, tokens(text))
    with world.lock:
        read = written = 0
        if tokens(cached) >= CACHE_MINIMUM_TOKENS:
            key = (model, hashlib.sha256(cached.encode()).hexdigest())
            if key in world.prefixes:
                read = tokens(cached)
            else:
                world.prefixes.add(key)
                written = tokens(cached) if api == "messages" else 0
        fresh = tokens(cached) + tokens(rest) + tokens(json.dumps(schema)) - read - written
        price = world.prices
        factor = price.get("batch_factor", 0.5) if batch else 1.0
        world.paid_nano += -int(
            -1000
            * factor
            * (
                fresh * price.get("input", 0)
                + out * price.get("output", 0)
                + read * price.get("cache_read", 0)
                + written * price.get("cache_write_5m", 0)
            )
            // 1
        )
        world.paid[f"{identity}:{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"] += 1
        world.usage.update(fresh=fresh, output=out, cache_read=read, cache_write=written, answers=1)
        if world.keep_prompts:
            world.prompts.append(f"{cached}\n{rest}")
        number = world.usage["answers"]
    if api == "messages":
        usage = {
            "input_tokens": fresh,
            "output_tokens": out,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
        }
        reason = {"end": "end_turn", "length": "max_tokens", "refusal": "refusal"}[stop]
        result = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": model, "stop_reason": reason}
        result |= {"stop_sequence": None, "content": [{"type": "text", "text": text}] if text else [], "usage": usage}
    elif api == "responses":
        part = {"type": "refusal", "refusal": "no"} if stop == "refusal" else {"type": "output_text", "text": text}
        message = {"type": "message", "id": f"m{number}", "role": "assistant", "status": "completed", "content": [part]}
        result = {"id": f"resp_{number}", "object": "response", "created_at": time.time(), "model": model}
        result |= {"status": "incomplete" if stop == "length" else "completed", "output": [message]}
        result["incomplete_details"] = {"reason": "max_output_tokens"} if stop == "length" else None
        details = {"cached_tokens": read, "cache_write_tokens": 0}
        result["usage"] = {"input_tokens": fresh + read, "output_tokens": out, "input_tokens_details": details}
    else:
        message = {"role": "assistant", "content": text or None, "refusal": "no" if stop == "refusal" else None}
        reason = {"end": "stop", "length": "length", "refusal": "stop"}[stop]
        result = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": int(time.time()), "model": model}
        result["choices"] = [{"index": 0, "finish_reason": reason, "message": message}]
        details = {"cached_tokens": read}
        result["usage"] = {"prompt_tokens": fresh + read, "completion_tokens": out, "prompt_tokens_details": details}
    if fault == "no_usage":
        del result["usage"]
    return result


def error_body(api: str, kind: str, message: str) -> dict:
    if api == "messages":
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": {"type": kind, "code": kind, "message": message, "param": None}}


REALTIME_FAULTS = (
    "http_429_after",
    "http_429",
    "http_500",
    "http_503",
    "http_529",
    "http_400",
    "http_401",
    "http_402",
    "http_504_paid",
    "timeout_paid",
    "reset_before",
    "reset_mid_paid",
    "truncated_paid",
    "wrong_schema",
    "refusal",
    "max_tokens",
    "no_usage",
    "no_content_shape",
)
LINE_FAULTS = (
    "line_expired",
    "line_canceled",
    "line_errored",
    "line_invalid",
    "line_missing",
    "line_duplicate",
    "line_unknown",
    "line_garbage",
    "wrong_schema",
    "refusal",
    "max_tokens",
)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    connection_closed = False
    worlds: dict[str, World] = {}
    guard = threading.Lock()

    def log_message(self, *arguments) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reply(self, status: int, value, headers: dict | None = None, cut: str | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if cut == "truncated":
            data = data[: len(data) // 2]
        self.send_header("content-length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if cut == "reset":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.hang_up()
            return
        self.wfile.write(data)

    def hang_up(self) -> None:
        """Close with RST, as a crashed peer would."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection_closed = True
        self.connection.close()
        self.rfile.close()

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, ValueError):
            self.close_connection = True

    def read_body(self) -> bytes:
        wanted = int(self.headers.get("content-length") or 0)
        data = self.rfile.read(wanted)
        if len(data) < wanted:
            raise ConnectionError("the client died while sending")
        return data

    def do_GET(self) -> None:
        self.route(b"")

    def do_POST(self) -> None:
        self.route(self.read_body())

    def route(self, data: bytes) -> None:
        match = re.fullmatch(r"/n/([^/]+)(/[^?]*)(\?.*)?", self.path)
        if not match:
            self.reply(404, error_body("messages", "not_found_error", self.path))
            return
        name, path, query = match.groups()
        with self.guard:
            world = self.worlds.setdefault(name, World())
        if path == "/_config":
            for key, value in json.loads(data).items():
                setattr(world, key, value)
            self.reply(200, {})
            return
        if path == "/_stats":
            twice = {key: count for key, count in world.paid.items() if count > 1}
            stats = {"paid_nano": world.paid_nano, "paid_items": len(world.paid), "answers": sum(world.paid.values())}
            stats |= {"paid_twice": twice, "faults": world.faults, "requests": world.requests, "usage": world.usage}
            stats |= {"batches": len(world.batches), "prompts": world.prompts, "most_at_once": world.most_at_once}
            self.reply(200, stats)
            return
        if path == "/_forget":
            with self.guard:
                self.worlds.pop(name, None)
            self.reply(200, {})
            return
        with world.lock:
            world.requests += 1
            world.at_once += 1
            world.most_at_once = max(world.most_at_once, world.at_once)
        try:
            if not self.allowed(world, path):
                return
            self.serve(world, path, query or "", data)
        except (KeyError, TypeError, ValueError, StopIteration):
            if not self.connection_closed:  # after a planned hang-up, writing fails as it should
                traceback.print_exc()
                self.reply(
                    400,
                    error_body("messages", "invalid_request_error", "the fake server itself failed; see its stderr"),
                )
        finally:
            with world.lock:
                world.at_once -= 1

    def allowed(self, world: World, path: str) -> bool:
        sent = self.headers.get("authorization", "").removeprefix("Bearer ") or self.headers.get("x-api-key", "")
        if world.key is not None and sent != world.key:
            api = "messages" if "messages" in path else "chat"
            self.reply(401, error_body(api, "authentication_error", f"Incorrect API key provided: {sent}."))
            return False
        return True

    def serve(self, world: World, path: str, query: str, data: bytes) -> None:
        if path == "/v1/messages":
            self.realtime(world, "messages", data)
        elif path == "/v1/responses":
            self.realtime(world, "responses", data)
        elif path == "/v1/chat/completions":
            self.realtime(world, "chat", data)
        elif path == "/v1/messages/batches" and self.command == "POST":
            self.create_batch(
                world, "messages", [(r["custom_id"], r["params"]) for r in json.loads(data)["requests"]], {}
            )
        elif path == "/v1/files" and self.command == "POST":
            self.upload(world, data)
        elif path == "/v1/batches" and self.command == "POST":
            wanted = json.loads(data)
            api = {"/v1/responses": "responses", "/v1/chat/completions": "chat"}[wanted["endpoint"]]
            lines = [json.loads(line) for line in world.files[wanted["input_file_id"]].split(b"\n") if line.strip()]
            self.create_batch(world, api, [(line["custom_id"], line["body"]) for line in lines], wanted)
        elif path in ("/v1/messages/batches", "/v1/batches"):
            self.list_batches(world, path, query)
        elif match := re.fullmatch(r"/v1/(messages/)?batches/([^/]+)", path):
            if self.flaky(world, "batch_get_500"):
                return
            if match[2] not in world.batches:
                self.reply(404, error_body("messages", "not_found_error", match[2]))
                return
            self.reply(200, self.describe(world, world.batches[match[2]]))
        elif match := re.fullmatch(r"/v1/messages/batches/([^/]+)/results", path):
            self.results(world, world.batches[match[1]]["lines"])
        elif match := re.fullmatch(r"/v1/files/([^/]+)/content", path):
            self.results(world, world.files[match[1]].decode().splitlines())
        else:
            self.reply(404, error_body("messages", "not_found_error", path))

    def realtime(self, world: World, api: str, data: bytes) -> None:
        body = json.loads(data)
        with world.lock:
            fault = world.draw(*REALTIME_FAULTS)
        if world.latency:
            time.sleep(world.latency)
        if fault == "reset_before":
            self.hang_up()
            return
        if fault and fault.startswith("http_") and not fault.endswith("_paid"):
            status = int(fault[5:8])
            headers = {"retry-after": "0.02"} if fault == "http_429_after" else {}
            self.reply(status, error_body(api, f"error_{status}", f"seeded fault {fault}"), headers)
            return
        problem = understand(api, body)
        if isinstance(problem, str):
            self.reply(400, error_body(api, "invalid_request_error", problem))
            return
        identity = identity_of(self.headers.get("x-client-request-id", ""))
        result = answer(world, api, body, identity, False, fault)
        if fault == "timeout_paid":
            time.sleep(world.rates.get("timeout_seconds", 0.6))
        if fault == "http_504_paid":
            self.reply(504, error_body(api, "timeout_error", "upstream timed out"))
        elif fault == "no_content_shape":
            self.reply(200, {"surprise": True})
        elif fault == "reset_mid_paid":
            self.reply(200, result, cut="reset")
        elif fault == "truncated_paid":
            self.reply(200, result, cut="truncated")
        else:
            self.reply(200, result, self.limits(api))

    def limits(self, api: str) -> dict[str, str]:
        if api == "messages":
            reset = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            return {"anthropic-ratelimit-requests-remaining": "99", "anthropic-ratelimit-requests-reset": reset}
        return {"x-ratelimit-remaining-requests": "99", "x-ratelimit-reset-requests": "12ms"}

    def flaky(self, world: World, name: str) -> bool:
        with world.lock:
            fault = world.draw(name)
        if fault:
            self.reply(500, error_body("messages", "api_error", f"seeded fault {name}"))
        return bool(fault)

    def upload(self, world: World, data: bytes) -> None:
        if self.flaky(world, "upload_500"):
            return
        boundary = self.headers["content-type"].split("boundary=")[1].encode()
        part = next(p for p in data.split(b"--" + boundary) if b'name="file"' in p)
        content = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
        with world.lock:
            name = f"file-{len(world.files)}"
            world.files[name] = content
        self.reply(200, {"id": name, "object": "file", "bytes": len(content), "created_at": 0, "purpose": "batch"})

    def create_batch(self, world: World, api: str, lines: list, wanted: dict) -> None:
        with world.lock:
            fault = world.draw(
                "batch_create_402",
                "batch_create_429",
                "batch_create_500_unmade",
                "batch_create_500_made",
                "batch_create_reset_made",
                "batch_create_late",
            )
        if fault == "batch_create_402":
            self.reply(402, error_body(api, "billing_error", "your credit balance is too low"))
            return
        if fault in ("batch_create_429", "batch_create_500_unmade"):
            self.reply(
                429 if "429" in fault else 500,
                error_body(api, "error", f"seeded fault {fault}"),
                {"retry-after": "0.01"},
            )
            return
        if len(lines) > world.rates.get("batch_most", 10**6):
            self.reply(413, error_body(api, "request_too_large", "too many requests in a batch"))
            return
        ids = [custom_id for custom_id, _ in lines]
        if len(set(ids)) != len(ids) or not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids):
            self.reply(
                400, error_body(api, "invalid_request_error", "custom_id must be unique, 1 to 64 of [a-zA-Z0-9_-]")
            )
            return
        if (
            fault == "batch_create_late"
        ):  # the request lingers in a gateway: listed only some time after the client died
            time.sleep(world.rates.get("late_seconds", 0.15))
        with world.lock:
            name = f"batch-{len(world.batches):04d}"
            now = time.time()
            batch = {"id": name, "api": api, "created": now, "ends": now + world.batch_seconds, "count": len(lines)}
            batch |= {"metadata": wanted.get("metadata") or {}, "input": wanted.get("input_file_id"), "requests": lines}
            batch |= {"lines": None, "refused": None, "endpoint": wanted.get("endpoint")}
            if api != "messages" and world.draw("batch_refused"):
                batch["refused"] = "token_limit_exceeded"
            world.batches[name] = batch
        if fault == "batch_create_500_made":
            self.reply(500, error_body(api, "api_error", "made, but you will not know"))
        elif fault == "batch_create_reset_made":
            self.hang_up()
        else:
            self.reply(200, self.describe(world, batch))

    def run_batch(self, world: World, batch: dict) -> None:
        """Answer a batch's requests, with the lines' own faults, in another order than they came."""
        api, lines, errors = batch["api"], [], []
        for custom_id, body in batch["requests"]:
            fault = world.draw(*LINE_FAULTS)
            problem = understand(api, body)
            if isinstance(problem, str):
                fault = "line_invalid"
            kind = {"line_expired": "expired", "line_canceled": "canceled"}.get(fault)
            if kind:
                code = "batch_expired" if kind == "expired" else "batch_cancelled"
                line = {"result": {"type": kind}} if api == "messages" else {"response": None, "error": {"code": code}}
            elif fault in ("line_errored", "line_invalid"):
                error = "api_error" if fault == "line_errored" else "invalid_request_error"
                content = error_body(api, error, str(problem) if isinstance(problem, str) else f"seeded fault {fault}")
                status = 500 if fault == "line_errored" else 400
                if api == "messages":
                    line = {"result": {"type": "errored", "error": content}}
                else:
                    line = {"response": {"status_code": status, "body": content}, "error": None}
            else:
                result = answer(world, api, body, identity_of(custom_id), True, fault)
                if api == "messages":
                    line = {"result": {"type": "succeeded", "message": result}}
                else:
                    line = {"response": {"status_code": 200, "request_id": "r", "body": result}, "error": None}
            text = json.dumps({"id": f"l{len(lines)}", "custom_id": custom_id, **line})
            target = errors if api != "messages" and (kind or fault in ("line_errored", "line_invalid")) else lines
            if fault == "line_missing":
                continue
            target.append(text)
            if fault == "line_duplicate":
                target.append(text)
            if fault == "line_unknown":
                target.append(json.dumps({"id": "x", "custom_id": f"nobody-{len(lines)}", **line}))
            if fault == "line_garbage":
                target[-1] = text[: len(text) // 2]
        Random(f"{world.seed}:{batch['id']}").shuffle(lines)
        batch["lines"] = lines
        batch["requests"] = []
        if api != "messages":
            for kind, content in (("output", lines), ("error", errors)):
                if content:
                    batch[kind] = f"file-{batch['id']}-{kind}"
                    world.files[batch[kind]] = "\n".join(content).encode()

    def describe(self, world: World, batch: dict) -> dict:
        with world.lock:
            ended = time.time() >= batch["ends"]
            if ended and batch["lines"] is None and not batch["refused"]:
                self.run_batch(world, batch)
        if batch["api"] == "messages":
            stamp = datetime.fromtimestamp(batch["created"], UTC).isoformat()
            counts = {"processing": 0 if ended else batch["count"], "succeeded": batch["count"] if ended else 0}
            counts |= {"errored": 0, "canceled": 0, "expired": 0}
            result = {"id": batch["id"], "type": "message_batch", "created_at": stamp, "expires_at": stamp}
            result |= {"processing_status": "ended" if ended else "in_progress", "request_counts": counts}
            root = f"http://{self.headers['host']}{self.path.split('/v1/')[0]}"
            url = f"{root}/v1/messages/batches/{batch['id']}/results" if ended else None
            return result | {"archived_at": None, "cancel_initiated_at": None, "ended_at": stamp, "results_url": url}
        status = "failed" if batch["refused"] else "completed" if ended else "in_progress"
        errors = {"object": "list", "data": [{"code": batch["refused"], "message": "no"}]} if batch["refused"] else None
        result = {"id": batch["id"], "object": "batch", "created_at": int(batch["created"]), "status": status}
        result |= {"endpoint": batch["endpoint"], "input_file_id": batch["input"], "completion_window": "24h"}
        result |= {"output_file_id": batch.get("output"), "error_file_id": batch.get("error"), "errors": errors}
        counts = {"total": batch["count"], "completed": batch["count"] if ended else 0, "failed": 0}
        return result | {"metadata": batch["metadata"], "request_counts": counts}

    def list_batches(self, world: World, path: str, query: str) -> None:
        if self.flaky(world, "batch_list_500"):
            return
        limit = min(int((re.search(r"limit=(\d+)", query) or ["", "20"])[1]), 3)  # small pages, so that paging is used
        after = re.search(r"after(?:_id)?=([^&]+)", query)
        with world.lock:
            names = sorted(world.batches, reverse=True)
        if after:
            names = names[names.index(after[1]) + 1 :]
        page = [self.describe(world, world.batches[name]) for name in names[:limit]]
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        self.reply(
            200, {"object": "list", "data": page, "has_more": len(names) > limit, "first_id": first, "last_id": last}
        )

    def results(self, world: World, lines: list[str]) -> None:
        with world.lock:
            fault = world.draw("results_reset", "results_500")
        if fault == "results_500":
            self.reply(500, error_body("messages", "api_error", "seeded fault"))
            return
        self.reply(200, "".join(line + "\n" for line in lines).encode(), cut="reset" if fault else None)


class Server(ThreadingHTTPServer):
    """Daemon threads, a long queue."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address) -> None:
        kind = sys.exc_info()[0]
        if kind is not None and not issubclass(kind, (OSError, ValueError)):
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    server = Server(("127.0.0.1", arguments.port), Handler)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever(poll_interval=0.05)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
