"""Seeded schedules of faults, kills and rival processes, run against the fake server; the books are checked after each."""

import contextlib
import os
import signal
import sys
from collections import Counter
from random import Random

import pytest
from test_synthetic_runner import KEY, PRICE, WAYS, accept, api_key, call, endpoint, prices_file, run, server  # noqa: F401

from podium.errors import PodiumError
from podium.synthetic import anthropic_api, openai_api  # noqa: F401 - imported once here, not in every forked run
from podium.synthetic.ledger import Ledger
from podium.synthetic.projections import FINAL_STATES, replay

REALTIME = (
    "http_429_after http_429 http_500 http_503 http_529 http_400 http_401 http_402 http_504_paid timeout_paid reset_before "
    "reset_mid_paid truncated_paid wrong_schema refusal max_tokens no_usage no_content_shape"
).split()
BATCH = (
    "batch_create_429 batch_create_500_unmade batch_create_500_made batch_create_reset_made batch_create_late batch_list_500 "
    "batch_get_500 upload_500 batch_refused results_reset results_500 line_expired line_canceled line_errored line_invalid "
    "line_missing line_duplicate line_unknown line_garbage wrong_schema refusal max_tokens"
).split()
RARE = {"http_401": 0.01, "http_402": 0.01, "http_400": 0.02, "timeout_paid": 0.03, "batch_refused": 0.03}


def die_at_commit(number, before):
    """Make this process kill itself, as kill -9 would, before or after its n-th commit."""
    plain = Ledger.transaction
    seen = [0]

    @contextlib.contextmanager
    def counted(self):
        with plain(self):
            yield
            seen[0] += 1
            if seen[0] == number and before:
                os.kill(os.getpid(), signal.SIGKILL)
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger.transaction = counted


def start(folder, point, mode, count, max_usd, doom):
    """Fork a run. The child ends with 0, a PodiumError's exit code, or by its doom."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        sys.stderr = open(folder / "stderr.txt", "a")
        if doom and doom[0] == "commit":
            die_at_commit(doom[1], doom[2])
        elif doom:
            signal.setitimer(signal.ITIMER_REAL, doom[1])  # SIGALRM's default action ends the process at once
        run(folder, point, mode, count, max_usd, max_batch_requests=3, max_errors=6)
        code = 0
    except PodiumError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def play(server, folder, seed):  # noqa: F811
    """Play one schedule to its end and return what happened, for the assertions and for their own guard."""
    rng = Random(seed)
    provider, api, mode = WAYS[seed % len(WAYS)]
    names = REALTIME if mode == "realtime" else BATCH
    chosen = rng.sample(names, rng.randint(1, 6))
    rates = {name: RARE.get(name, rng.choice([0.05, 0.15, 0.4])) for name in chosen}
    world = f"schedule-{seed}"
    count = rng.randint(2, 9)
    tight = rng.random() < 0.2
    config = {"seed": seed, "rates": rates, "prices": PRICE, "key": KEY, "fault_limit": rng.randint(1, 12)}
    call(server, world, "_config", config | {"batch_seconds": rng.choice([0.0, 0.0, 0.1])})
    point = endpoint(server, world, provider, api, timeout_seconds=0.25)
    # a realtime request reserves $0.009 here and costs a fiftieth of it: a tight cap stops some runs half way
    max_usd = rng.uniform(0.004, 0.03) if tight else 5.0
    dooms = []
    for _ in range(rng.randint(0, 3)):
        kind = rng.choice(["commit", "commit", "clock"])
        dooms.append(
            ("commit", rng.randint(1, 14), rng.random() < 0.5)
            if kind == "commit"
            else ("clock", rng.uniform(0.02, 0.4))
        )
    rivals = rng.random() < 0.25
    prices_file(folder)
    ends = Counter()
    for attempt in range(40):
        doom = dooms[attempt] if attempt < len(dooms) else None
        children = [start(folder, point, mode, count, max_usd, doom)]
        if rivals:
            children.append(start(folder, point, mode, count, max_usd, None))
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        ends.update(codes)
        assert all(code in (0, 6, -signal.SIGKILL, -signal.SIGALRM) for code in codes), (
            folder / "stderr.txt"
        ).read_text()
        if not any(codes):
            break
    else:
        raise AssertionError(f"schedule {seed} did not end: {ends} {(folder / 'stderr.txt').read_text()[-2000:]}")
    return mode, max_usd, count, ends, call(server, world, "_stats"), call(server, world, "_forget")


def check_books(folder, mode, max_usd, count, stats):
    with contextlib.closing(Ledger(folder / "ledger.sqlite")) as ledger:
        rows = ledger.connection.execute("SELECT item, state, losses, nano FROM current").fetchall()
        events = ledger.connection.execute("SELECT item, state, nano FROM events ORDER BY seq").fetchall()
        answered = {item for (item,) in ledger.connection.execute("SELECT item FROM answers")}
        bill = ledger.bill()
        assert replay(ledger.connection) == []
    assert len(rows) == count
    assert bill == sum(nano for _, _, nano in events) == sum(nano for *_, nano in rows)
    # the cap holds, and nothing that the vendor billed is missing from our books
    running = 0
    for _, _, nano in events:
        running += nano
        assert running <= round(max_usd * 1e9)
    assert stats["paid_nano"] <= bill <= round(max_usd * 1e9)
    # exactly one final state, unless the money ran out before an item's turn
    final = [
        item for item, state, losses, _ in rows if state in FINAL_STATES and not (state == "unknown" and losses < 2)
    ]
    money_left = round(max_usd * 1e9) - bill
    assert len(final) == count or money_left < (17_000_000 if mode == "realtime" else 9_000_000), rows
    assert not any(state in ("reserved", "submitted") for _, state, _, _ in rows), rows
    assert answered == {item for item, state, _, _ in rows if state == "succeeded"}
    # paid again only where an earlier payment could not be known, and then once
    losses = Counter(item[:40] for item, state, _ in events if state == "unknown")
    assert max(losses.values(), default=0) <= 2
    for name, times in stats["paid_twice"].items():
        assert times <= 2 and losses[name.split("-")[0]] >= 1, (name, times)
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes() and KEY[:12].encode() not in path.read_bytes(), path
    return dict(Counter(state for _, state, _, _ in rows))


def play_all(server, tmp_path, seeds):  # noqa: F811
    ends, states, faults, batches_twice = Counter(), Counter(), Counter(), 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        mode, max_usd, count, codes, stats, _ = play(server, folder, seed)
        try:
            states.update(check_books(folder, mode, max_usd, count, stats))
        except AssertionError as error:
            raise AssertionError(f"schedule {seed} ({mode}): {error}") from error
        ends.update(codes)
        faults.update(stats["faults"])
        blind = stats["faults"].keys() & {"line_missing", "line_garbage"}
        if mode == "batch" and not blind:
            batches_twice += len(stats["paid_twice"])
    # a batch is never paid twice, however it was interrupted, unless the vendor itself withholds a result
    assert batches_twice == 0
    return ends, states, faults


def test_fifty_schedules(server, tmp_path):  # noqa: F811
    ends, states, faults = play_all(server, tmp_path, range(50))
    assert ends[-signal.SIGKILL] >= 10 and ends[-signal.SIGALRM] >= 3, ends
    assert states["succeeded"] >= 100 and len(faults) >= 25, (states, faults)


@pytest.mark.long
def test_a_thousand_schedules(server, tmp_path):  # noqa: F811
    ends, states, faults = play_all(server, tmp_path, range(1000, 2000))
    print(ends, states, faults)
    assert ends[-signal.SIGKILL] >= 300 and ends[-signal.SIGALRM] >= 100, ends
    assert set(REALTIME) | set(BATCH) == set(faults), set(REALTIME) ^ set(faults)
