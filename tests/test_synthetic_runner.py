import contextlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from podium.synthetic.ledger import Ledger, replay
from podium.synthetic.runner import parameters, run_stage
from podium.synthetic.settings import Endpoint, Pace
from podium.synthetic.work import Request, strict_schema

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
        quiet=True,
    )


@pytest.fixture(autouse=True)
def key(monkeypatch):
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
        assert replay(ledger) == []
