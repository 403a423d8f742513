import contextlib
import dataclasses
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from podium.errors import ArgumentError, DataError, MissingFileError, PodiumError, PrerequisiteError
from podium.synthetic import secrets as secrets_module
from podium.synthetic.costs import summarise
from podium.synthetic.ledger import Ledger
from podium.synthetic.pace import Throttle, exhausted_for
from podium.synthetic.prices import Price, actual_nano, most_nano, read_price
from podium.synthetic.projections import replay
from podium.synthetic.runner import PartialResult, finish, parameters, run_stage
from podium.synthetic.settings import Endpoint, Pace
from podium.synthetic.wire import retry_after_seconds
from podium.synthetic.work import Request, Usage, address, most_input_tokens, strict_schema

KEY = "sk-canary-7f3a9c51e2d84b60a7c9"
PRICE = {
    "input": 2.0,
    "output": 10.0,
    "cache_read": 0.2,
    "cache_write_5m": 2.5,
    "cache_write_1h": 4.0,
    "batch_factor": 0.5,
}


class Answer(BaseModel):
    text: str
    score: Annotated[int, Field(ge=0, le=10)]


@pytest.fixture(scope="session")
def server():
    script = Path(__file__).with_name("fake_llm_server.py")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().strip().removeprefix("listening on ")
    process.terminate()
    process.wait()


def call(server, world, what, value=None):
    data = None if value is None else json.dumps(value).encode()
    with urllib.request.urlopen(f"{server}/n/{world}/{what}", data) as response:
        return json.load(response)


def prices_file(folder):
    if (folder / "prices.yaml").exists():
        return folder / "prices.yaml"
    rows = [
        {"provider": p, "model": "m-1", **PRICE, "source": "test", "date": "2026-11-20"}
        for p in ("anthropic", "openai")
    ]
    (folder / "prices.yaml").write_text(json.dumps(rows))
    return folder / "prices.yaml"


def endpoint(server, world, provider="anthropic", api="messages", **more):
    base = f"{server}/n/{world}" + ("" if provider == "anthropic" else "/v1")
    values = dict(
        provider=provider, model="m-1", api=api, api_key_env="PODIUM_TEST_KEY", base_url=base, timeout_seconds=0.4
    )
    return Endpoint(**{**values, "max_tokens": 200, "max_tokens_limit": 800, **more})


def pace(**more):
    quick = dict(first_backoff_seconds=0.005, max_backoff_seconds=0.02, poll_seconds=0.01, reconcile_grace_seconds=0.3)
    return Pace(**{**quick, **more})


def requests(point, count=6):
    return {
        f"item-{n}": Request(
            point.provider,
            "m-1",
            "1",
            "You answer.",
            "",
            f"Question {n}",
            strict_schema(Answer),
            parameters(point, "k"),
        )
        for n in range(count)
    }


def accept(request, answer):
    return None


def run(folder, point, mode="realtime", count=6, max_usd=5.0, plan=False, check=accept, **more):
    """run_stage on a few plain items."""
    return run_stage(
        "test",
        requests(point, count),
        Answer,
        check,
        endpoint=point,
        pace=pace(**more),
        mode=mode,
        max_usd=max_usd,
        plan=plan,
        ledger_path=folder / "ledger.sqlite",
        prices_path=prices_file(folder),
        quiet=not plan,
    )


@pytest.fixture(autouse=True)
def api_key(monkeypatch):
    monkeypatch.setenv("PODIUM_TEST_KEY", KEY)


WAYS = [
    ("anthropic", "messages", "realtime"),
    ("anthropic", "messages", "batch"),
    ("openai", "responses", "realtime"),
    ("openai", "responses", "batch"),
    ("openai", "chat", "realtime"),
    ("openai", "chat", "batch"),
]


@pytest.mark.parametrize(("provider", "api", "mode"), WAYS)
def test_every_way_answers_once_and_the_bill_is_the_vendors(server, tmp_path, provider, api, mode):
    world = f"plain-{provider}-{api}-{mode}"
    call(server, world, "_config", {"prices": PRICE, "key": KEY})
    point = endpoint(server, world, provider, api)
    first = run(tmp_path, point, mode)
    assert first.counts == {"succeeded": 6} and len(first.answers) == 6
    again = run(tmp_path, point, mode)
    stats = call(server, world, "_stats")
    assert again.answers == first.answers
    assert stats["answers"] == 6 and not stats["paid_twice"]
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        assert ledger.bill() == stats["paid_nano"] > 0
        held, owners = ledger.connection.execute("SELECT sum(held), count(owner) FROM current").fetchone()
        assert (held, owners) == (0, 0)
        assert replay(ledger.connection) == []


def books(folder):
    with contextlib.closing(Ledger(folder / "ledger.sqlite")) as ledger:
        assert replay(ledger.connection) == []
        states = dict(ledger.connection.execute("SELECT state, count(*) FROM current GROUP BY state").fetchall())
        return states, ledger.bill(), ledger.connection.execute("SELECT state, nano, reason FROM events").fetchall()


@pytest.mark.parametrize("mode", ["realtime", "batch"])
def test_the_cap_is_hard_and_raising_it_goes_on(server, tmp_path, mode):
    world = f"cap-{mode}"
    call(server, world, "_config", {"prices": PRICE})
    point = endpoint(server, world)
    one = cost_of_one(point, mode)
    first = run(tmp_path, point, mode, 6, max_usd=2.5 * one / 1e9, max_concurrency=8, first_concurrency=8)
    states, bill, events = books(tmp_path)
    running = peak = 0
    for _, nano, _ in events:
        running += nano
        peak = max(peak, running)
    assert peak <= 2.5 * one and bill == call(server, world, "_stats")["paid_nano"]
    # an answer costs a fiftieth of what is reserved for it, so money comes back and the run gets on, two at a time
    assert first.counts["succeeded"] == 6
    other = tmp_path / "tight"
    other.mkdir()
    short = run(other, point, mode, 6, max_usd=0.9 * one / 1e9)
    assert short.short_of_money and short.counts == {"planned": 6}
    with pytest.raises(PartialResult, match="max_usd reached with 6 of 6 items unsent"):
        finish(short, "test", pace())
    assert run(other, point, mode, 6, max_usd=5.0).counts == {"succeeded": 6}


def cost_of_one(point, mode):
    request = requests(point, 1)["item-0"]
    price = Price("anthropic", "m-1", **PRICE, source="", date="")
    return most_nano(price, most_input_tokens(request, None), 200, mode == "batch")


def test_two_ledger_stages_share_one_cap(server, tmp_path):
    world = "shared-cap"
    call(server, world, "_config", {"prices": PRICE})
    point = endpoint(server, world)
    run(tmp_path, point, count=3)
    spent = books(tmp_path)[1]
    again = run(tmp_path, point, count=9, max_usd=(spent + 100) / 1e9)
    assert again.short_of_money and again.counts == {"succeeded": 3, "planned": 6}


def test_the_vendor_never_counts_more_input_than_we_reserve(server, tmp_path):
    texts = ["x", "é" * 500, "日本語" * 300, "\\frac{1}{2} " * 200, "a b " * 1000]
    for text in texts:
        request = Request("anthropic", "m-1", "1", text, "", text, strict_schema(Answer), {"max_tokens": 1})
        assert most_input_tokens(request, None) >= 2 * len(text.encode()) + 1000


def test_an_unknown_or_null_price_refuses_to_start_and_says_how_to_add_it(tmp_path):
    rows = [{"provider": "anthropic", "model": "m-2", **PRICE, "output": None, "source": "vendor.example", "date": "d"}]
    rows.append({"provider": "openai", "model": "m-3", **PRICE, "batch_factor": None, "source": "s", "date": "d"})
    (tmp_path / "p.yaml").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="has no price for anthropic/m-1.*add one row with provider"):
        read_price(tmp_path / "p.yaml", "anthropic", "m-1", False)
    with pytest.raises(DataError, match="output of anthropic/m-2 is not known; look it up at vendor.example"):
        read_price(tmp_path / "p.yaml", "anthropic", "m-2", False)
    assert read_price(tmp_path / "p.yaml", "openai", "m-3", False).input == 2.0
    with pytest.raises(DataError, match="batch_factor"):
        read_price(tmp_path / "p.yaml", "openai", "m-3", True)
    with pytest.raises(MissingFileError, match="conf/synthetic/prices.yaml"):
        read_price(tmp_path / "none.yaml", "openai", "m-3", True)


def test_prices_round_up_in_whole_nano_dollars():
    price = Price("openai", "m", 0.075, 0.3, 0.01, 0.1, 0.1, 0.5, "s", "d")
    assert actual_nano(price, Usage(1, 0), False) == 75
    assert actual_nano(price, Usage(1, 0), True) == 38
    assert actual_nano(price, Usage(10, 7, 100, 3, 2), False) == 750 + 2100 + 1000 + 500


def test_a_plan_sends_nothing_and_says_what_would_happen(server, tmp_path, capsys):
    call(server, "plan", "_config", {"prices": PRICE})
    point = endpoint(server, "plan")
    assert run(tmp_path, point, count=6, plan=True) is None
    said = capsys.readouterr().err
    assert "6 items (6 new; 6 planned), 6 to send" in said and "at most $0.05" in said and "tokens about" in said
    assert call(server, "plan", "_stats")["requests"] == 0


@pytest.mark.parametrize(("provider", "api", "mode"), WAYS)
@pytest.mark.parametrize("trouble", ["wrong key", "no credit"])
def test_credentials_and_billing_stop_the_run_with_one_line(server, tmp_path, provider, api, mode, trouble, capsys):
    world = f"stop-{provider}-{api}-{mode}-{trouble.replace(' ', '-')}"
    config = {"key": "another key"} if trouble == "wrong key" else {"rates": {"http_402": 1.0, "batch_create_402": 1.0}}
    call(server, world, "_config", config | {"prices": PRICE})
    with pytest.raises(PodiumError, match="refuses our credentials" if trouble == "wrong key" else "billing") as caught:
        run(tmp_path, endpoint(server, world, provider, api), mode)
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    assert books(tmp_path)[1] == 0
    assert call(server, world, "_stats")["requests"] <= 4
    for path in tmp_path.rglob("*"):
        if path.is_file():
            for start in range(len(KEY) - 8):  # the server echoes the key in its answer
                assert KEY[start : start + 9].encode() not in path.read_bytes(), path
    said = capsys.readouterr()
    assert KEY not in said.out + said.err


def test_the_received_error_is_kept_without_the_key(server, tmp_path):
    call(server, "kept", "_config", {"key": "another key"})
    with pytest.raises(PodiumError):
        run(tmp_path, endpoint(server, "kept"))
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        bodies = [zlib.decompress(b).decode() for (b,) in ledger.connection.execute("SELECT body FROM received")]
    assert bodies and all("Incorrect API key provided: [key]" in body for body in bodies)


def test_a_missing_key_is_a_missing_prerequisite(server, tmp_path, monkeypatch):
    monkeypatch.delenv("PODIUM_TEST_KEY")
    with pytest.raises(PrerequisiteError, match="PODIUM_TEST_KEY is not set"):
        run(tmp_path, endpoint(server, "nokey"))


def test_a_key_in_place_of_a_variable_name_is_not_repeated(server, tmp_path):
    with pytest.raises(PrerequisiteError, match="name of an environment variable") as caught:
        run(tmp_path, endpoint(server, "nokey", api_key_env="sk-real-looking-0123456789"))
    assert "sk-real" not in str(caught.value)


def test_a_masked_key_is_scrubbed_too():
    secrets_module.read_key("PODIUM_TEST_KEY")
    assert secrets_module.scrub(f"key {KEY[:14]}********{KEY[-10:]} is wrong").count(KEY[-6:]) == 0
    assert secrets_module.scrub("nothing here") == "nothing here"


@pytest.mark.parametrize(("provider", "api", "mode"), WAYS)
def test_an_invalid_answer_is_asked_again_with_the_reason_then_fails(server, tmp_path, provider, api, mode):
    world = f"reason-{provider}-{api}-{mode}"
    call(server, world, "_config", {"prices": PRICE, "keep_prompts": True})

    def refuse(request, answer):
        raise ValueError("the score is not to my taste")

    result = run(tmp_path, endpoint(server, world, provider, api), mode, 2, check=refuse)
    stats = call(server, world, "_stats")
    assert result.counts == {"failed": 2} and result.answers == {}
    assert stats["answers"] == 6 and not stats["paid_twice"]
    retries = [prompt for prompt in stats["prompts"] if "rejected: the score is not to my taste" in prompt]
    assert len(retries) == 4
    assert books(tmp_path)[1] == stats["paid_nano"]


def test_answers_are_checked_on_our_side_too():
    with pytest.raises(ValueError):
        Answer.model_validate_json('{"text": "x", "score": 11}')


@pytest.mark.parametrize(("provider", "api"), [("anthropic", "messages"), ("openai", "responses"), ("openai", "chat")])
@pytest.mark.parametrize(("fault", "state", "answers"), [("refusal", "refused", 1), ("max_tokens", "failed", 3)])
def test_stop_reasons_come_before_parsing(server, tmp_path, provider, api, fault, state, answers):
    world = f"{fault}-{provider}-{api}"
    call(server, world, "_config", {"prices": PRICE, "rates": {fault: 1.0}})
    result = run(tmp_path, endpoint(server, world, provider, api), count=1)
    assert result.counts == {state: 1}
    stats = call(server, world, "_stats")
    assert stats["answers"] == answers and stats["paid_nano"] == books(tmp_path)[1]
    if fault == "max_tokens":  # 200, then 400, then 800 tokens
        assert "800 tokens" in result.outcomes[0].reason
        assert stats["usage"]["output"] == 200 + 400 + 800


def test_a_request_of_unknown_fate_is_sent_once_more_and_stays_charged(server, tmp_path):
    call(server, "unknown", "_config", {"prices": PRICE, "rates": {"reset_mid_paid": 1.0}})
    result = run(tmp_path, endpoint(server, "unknown"), count=2)
    stats = call(server, "unknown", "_stats")
    assert result.counts == {"unknown": 2} and stats["answers"] == 4
    assert books(tmp_path)[1] == 4 * cost_of_one(endpoint(server, "unknown"), "realtime") > stats["paid_nano"]
    rerun = run(tmp_path, endpoint(server, "unknown"), count=2)
    assert rerun.counts == {"unknown": 2} and call(server, "unknown", "_stats")["answers"] == 4


def test_an_outage_stops_the_run_and_fails_no_item(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(PodiumError, match="errors in a row"):
        run(tmp_path, endpoint(url, "down"), count=50, max_errors=3)
    states, bill, _ = books(tmp_path)
    assert bill == 0 and set(states) <= {"planned", "failed"} and states.get("failed", 0) <= 6


def test_failed_items_are_tried_again_when_asked(server, tmp_path):
    call(server, "again", "_config", {"prices": PRICE, "rates": {"http_400": 1.0}})
    first = run(tmp_path, endpoint(server, "again"), count=3)
    assert first.counts == {"failed": 3}
    call(server, "again", "_config", {"rates": {}})
    assert run(tmp_path, endpoint(server, "again"), count=3).counts == {"failed": 3}
    assert run(tmp_path, endpoint(server, "again"), count=3, retry_failed=True).counts == {"succeeded": 3}


def test_realtime_refuses_items_that_wait_in_a_batch(server, tmp_path):
    call(server, "switch", "_config", {"prices": PRICE, "batch_seconds": 60})
    point = endpoint(server, "switch")
    child = os.fork()
    if not child:
        os.setpgrp()
        with contextlib.suppress(BaseException):
            run(tmp_path, point, "batch")
        os._exit(0)
    while call(server, "switch", "_stats")["batches"] < 1:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)  # an orderly stop leaves the batch with the vendor
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(PodiumError, match="run with mode=batch until they are collected"):
        run(tmp_path, point, "realtime")
    with pytest.raises(PodiumError, match="6 items are in a batch at anthropic .*/n/switch, not at"):
        run(tmp_path, endpoint(server, "elsewhere"), "batch")
    call(server, "switch", "_forget")
    with pytest.raises(PodiumError, match="has no batch batch-0000.*another account"):
        run(tmp_path, point, "batch")
    assert call(server, "switch", "_stats")["batches"] == 0


def test_a_signal_ends_a_run_that_says_so_and_goes_on_later(server, tmp_path):
    call(server, "signal", "_config", {"prices": PRICE, "latency": 0.05})
    point = endpoint(server, "signal")
    child = os.fork()
    if not child:
        code = 1
        try:
            run(tmp_path, point, "realtime", 60, max_concurrency=2)
        except PodiumError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    while call(server, "signal", "_stats")["answers"] < 3:
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    states = books(tmp_path)[0]
    assert set(states) == {"succeeded", "planned"}  # what was under way has been waited for
    assert run(tmp_path, point, "realtime", 60).counts == {"succeeded": 60}
    stats = call(server, "signal", "_stats")
    assert stats["answers"] == 60 and not stats["paid_twice"]


def test_concurrency_adapts(server, tmp_path):
    call(server, "wide", "_config", {"prices": PRICE, "latency": 0.03})
    run(tmp_path, endpoint(server, "wide"), count=60, first_concurrency=2, max_concurrency=6)
    assert 4 <= call(server, "wide", "_stats")["most_at_once"] <= 6
    throttle = Throttle(8, 16, 1.0, 60.0)
    throttle.error({"retry-after": "3"}, 0.0, limited=True)
    assert int(throttle.width) == 4 and 3.0 <= throttle.wait(0.0) <= 3.1 and throttle.room(0, 1.0) == 0
    assert throttle.room(1, 4.0) == 3
    for _ in range(200):
        throttle.success({}, 5.0)
    assert int(throttle.width) == 16


def test_limits_are_read_from_headers():
    soon = (datetime.now(UTC) + timedelta(seconds=20)).isoformat().replace("+00:00", "Z")
    headers = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": soon}
    assert 18 < exhausted_for(headers, 0.0) <= 20
    assert exhausted_for({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}, 0.0) == 62.5
    assert exhausted_for({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "250ms"}, 0.0) == 0.25
    assert exhausted_for({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "9s"}, 0.0) == 0.0
    assert exhausted_for({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, 0.0) == 0.0
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < retry_after_seconds({"retry-after": date}) <= 30
    assert retry_after_seconds({"retry-after": "2"}) == 2.0 and retry_after_seconds({}) is None


def test_a_stable_prefix_is_cached_and_the_rate_reported(server, tmp_path):
    for provider, api in (("anthropic", "messages"), ("openai", "responses")):
        folder = tmp_path / provider
        folder.mkdir()
        call(server, f"cache-{provider}", "_config", {"prices": PRICE})
        point = endpoint(server, f"cache-{provider}", provider, api)
        some = {
            f"i{n}": Request(
                provider, "m-1", "1", "S", "shared " * 2000, f"Q{n}", strict_schema(Answer), parameters(point, "k")
            )
            for n in range(5)
        }
        run_stage(
            "test",
            some,
            Answer,
            accept,
            endpoint=point,
            pace=pace(max_concurrency=1),
            mode="realtime",
            max_usd=5.0,
            plan=False,
            ledger_path=folder / "ledger.sqlite",
            prices_path=prices_file(folder),
            quiet=True,
        )
        found = summarise(folder / "ledger.sqlite")
        assert found["cache_hit_rate"] > 0.7
        assert round(found["usd_total"] * 1e9) == call(server, f"cache-{provider}", "_stats")["paid_nano"]


def test_addresses_depend_on_everything_that_decides_an_answer():
    base = Request("anthropic", "m", "1", "s", "p", "u", {"a": 1}, {"max_tokens": 5}, 0)
    names = ("provider", "model", "prompt_version", "system", "prefix", "user", "schema", "parameters", "sample")
    values = ("openai", "n", "2", "t", "q", "v", {"a": 2}, {"max_tokens": 6}, 1)
    others = [dataclasses.replace(base, **{name: value}) for name, value in zip(names, values)]
    assert len({address(request) for request in [base, *others]}) == len(names) + 1
    assert address(base) == address(dataclasses.replace(base))


def test_the_ledger_only_grows(server, tmp_path):
    call(server, "grow", "_config", {"prices": PRICE})
    run(tmp_path, endpoint(server, "grow"), "batch", count=2)
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    for table in ("events", "items", "received", "answers", "usage", "batch_events", "blobs"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            connection.execute(f"DELETE FROM {table}")
    with pytest.raises(sqlite3.DatabaseError, match="append-only"):
        connection.execute("UPDATE events SET nano = 0")
    assert connection.execute("SELECT state FROM events WHERE item = (SELECT min(item) FROM items) ORDER BY seq").fetchall() == [
        ("planned",), ("reserved",), ("submitted",), ("succeeded",)
    ]  # fmt: skip


def test_replay_notices_a_tampered_bill(server, tmp_path):
    call(server, "tamper", "_config", {"prices": PRICE})
    run(tmp_path, endpoint(server, "tamper"), count=2)
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        ledger.connection.execute("UPDATE bill SET nano = nano - 1")
        assert replay(ledger.connection)


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "l.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="not a usable ledger"):
        Ledger(tmp_path / "l.sqlite")


def test_schemas_are_what_the_vendors_accept(server, tmp_path):
    schema = strict_schema(Answer)
    assert (
        "maximum" not in schema["properties"]["score"] and "maximum 10" in schema["properties"]["score"]["description"]
    )
    call(server, "schema", "_config", {"prices": PRICE})
    point = endpoint(server, "schema")
    bad = {"i": dataclasses.replace(requests(point, 1)["item-0"], schema=Answer.model_json_schema())}
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite")):
        pass
    result = run_stage(
        "test",
        bad,
        Answer,
        accept,
        endpoint=point,
        pace=pace(),
        mode="realtime",
        max_usd=5.0,
        plan=False,
        ledger_path=tmp_path / "ledger.sqlite",
        prices_path=prices_file(tmp_path),
        quiet=True,
    )
    assert result.counts == {"failed": 1} and "objects need additionalProperties" in result.outcomes[0].reason


@pytest.mark.parametrize(("provider", "api"), [("anthropic", "messages"), ("openai", "chat")])
def test_a_batch_that_is_too_large_stops_the_run_and_can_be_cut(server, tmp_path, provider, api):
    call(server, f"large-{provider}", "_config", {"prices": PRICE, "rates": {"batch_most": 4}})
    point = endpoint(server, f"large-{provider}", provider, api)
    with pytest.raises(PodiumError, match="calls a batch malformed.*too many requests"):
        run(tmp_path, point, "batch", 6)
    assert books(tmp_path)[:2] == ({"planned": 6}, 0)
    assert run(tmp_path, point, "batch", 6, max_batch_requests=4).counts == {"succeeded": 6}


@pytest.mark.parametrize(("provider", "api"), [("anthropic", "messages"), ("openai", "responses")])
def test_a_batch_that_is_listed_late_is_waited_for(server, tmp_path, provider, api):
    world = f"late-{provider}"
    rates = {"batch_create_late": 1.0, "late_seconds": 0.5}
    call(server, world, "_config", {"prices": PRICE, "rates": rates, "fault_limit": 1})
    # the client gives up on its request long before the vendor has made the batch
    point = endpoint(server, world, provider, api, timeout_seconds=0.15)
    assert run(tmp_path, point, "batch", reconcile_grace_seconds=1.5).counts == {"succeeded": 6}
    stats = call(server, world, "_stats")
    assert stats["batches"] == 1 and stats["answers"] == 6 and not stats["paid_twice"]
    assert books(tmp_path)[1] == stats["paid_nano"]


def test_a_batch_under_way_that_may_be_ours_is_waited_for_whatever_the_grace(server, tmp_path):
    config = {"prices": PRICE, "rates": {"batch_create_500_made": 1.0}, "fault_limit": 1, "batch_seconds": 0.7}
    call(server, "undecided", "_config", config)
    result = run(tmp_path, endpoint(server, "undecided"), "batch", reconcile_grace_seconds=0.0)
    stats = call(server, "undecided", "_stats")
    assert result.counts == {"succeeded": 6} and stats["batches"] == 1 and stats["answers"] == 6


def test_a_batch_that_never_came_to_be_is_sent_again(server, tmp_path):
    config = {"prices": PRICE, "rates": {"batch_create_500_unmade": 1.0}, "fault_limit": 1}
    call(server, "unmade", "_config", config)
    started = time.monotonic()
    result = run(tmp_path, endpoint(server, "unmade"), "batch", reconcile_grace_seconds=0.4)
    assert time.monotonic() - started >= 0.4
    stats = call(server, "unmade", "_stats")
    assert result.counts == {"succeeded": 6} and stats["batches"] == 1 and stats["answers"] == 6


def test_batches_are_cut_by_size(server, tmp_path):
    call(server, "bytes", "_config", {"prices": PRICE})
    point = endpoint(server, "bytes")
    assert run(tmp_path, point, "batch", 9, max_batch_bytes=2500, max_open_batches=2).counts == {"succeeded": 9}
    assert call(server, "bytes", "_stats")["batches"] >= 3


def test_settings_that_todays_api_refuses_are_refused_here(server, tmp_path):
    with pytest.raises(ArgumentError, match="refuses sampling parameters"):
        run(tmp_path, endpoint(server, "t", temperature=0.5))
    with pytest.raises(ArgumentError, match="effort up to high"):
        run(tmp_path, endpoint(server, "t", thinking="between_tools", effort="max"))
    with pytest.raises(ArgumentError, match="Anthropic's"):
        run(tmp_path, endpoint(server, "t", "openai", "chat", thinking="adaptive"))
    with pytest.raises(ArgumentError, match="has only `messages`"):
        run(tmp_path, endpoint(server, "t", api="chat"))
    with pytest.raises(ArgumentError, match="`responses` and `chat`"):
        run(tmp_path, endpoint(server, "t", "openai", "messages"))


@pytest.mark.long
def test_fifty_thousand_items_in_five_minutes_and_a_gigabyte(server, tmp_path):
    call(server, "many", "_config", {"prices": PRICE})
    point = endpoint(server, "many", timeout_seconds=300.0)
    child = os.fork()
    if not child:
        started = time.monotonic()
        inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # what earlier tests left in this process
        result = run(tmp_path, point, "batch", 50_000, max_usd=10_000.0, poll_seconds=0.2)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - inherited) * 1024
        figures = {"seconds": time.monotonic() - started, "bytes": grown, "good": result.counts.get("succeeded")}
        (tmp_path / "figures.json").write_text(json.dumps(figures))
        os._exit(0)
    os.waitpid(child, 0)
    figures = json.loads((tmp_path / "figures.json").read_text())
    print(figures)
    assert figures["good"] == 50_000 and figures["seconds"] <= 300
    assert figures["bytes"] <= 0.8e9, "the interpreter and its modules are the rest of the gigabyte"
    assert call(server, "many", "_stats")["answers"] == 50_000
