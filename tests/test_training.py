"""The one loop: what it computes does not depend on how it is cut into micro-batches, processes or sittings."""

import errno
import json
import math
import os
import pickle
import resource
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import running
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from podium import checkpoint, config, contracts, losses, metrics, modeling, optim, rng, stage, training
from podium.errors import DataError, InterruptedRun, PodiumError
from podium.pairwise import measures

LORA = (
    "model.lora={rank: 4, alpha: 8, dropout: 0.2, target_modules: [q_proj, v_proj, down_proj], modules_to_save: null}"
)
REFRESH = "hard_negatives={candidates: null, per_query: 2, top: 6, refresh_every_steps: 2}"
RANKER = ["topic_dropout=0.5", "max_tokens_per_micro_batch=600", "candidates_per_group=[3]", "validation_depth=4"]
PAIRWISE = ["max_length_tokens=128", "max_tokens_per_micro_batch=256"]
HEAD = "head={pooling: mean, with_features: true, feature_width: 8, hidden_size: 16, dropout: 0.2, lr: 1e-3}"
KINDS = {
    "reasoner": (
        "train_llm_reasoner",
        ["sample_generations=0", "loop.eval_every_steps=3", "max_tokens_per_micro_batch=400"],
    ),
    "reasoner-lora": ("train_llm_reasoner", ["sample_generations=0", "max_tokens_per_micro_batch=400", LORA]),
    "retriever": ("train_llm_embedding", ["topic_dropout=0.5", "loop.eval_every_steps=3", REFRESH]),
    "retriever-lora": ("train_llm_embedding", ["topic_dropout=0.5", LORA]),
    "pointwise": ("train_ranker_pointwise", [*RANKER, "loop.eval_every_steps=3"]),
    "pointwise-lora": ("train_ranker_pointwise", [*RANKER, LORA]),
    "listwise": ("train_ranker_listwise", [*RANKER, "loop.eval_every_steps=3"]),
    "listwise-lora": ("train_ranker_listwise", [*RANKER, LORA]),
    "pairwise": ("train_ranker_pairwise", [*PAIRWISE, "orders=alternate", "loop.eval_every_steps=3"]),
    "pairwise-lora": ("train_ranker_pairwise", [*PAIRWISE, LORA]),
    "pairwise-head": ("train_ranker_pairwise", [*PAIRWISE, HEAD, "orders=alternate", LORA]),
}
STEPS = 9


def kinds(*short):
    """All kinds of run as parameters, those not named marked long."""
    return [pytest.param(kind, marks=() if kind in short else pytest.mark.long) for kind in sorted(KINDS)]


@pytest.fixture(scope="module")
def still_backbone(tmp_path_factory, backbone_dir):
    """The tiny backbone without dropout, for comparisons of sums."""
    folder = tmp_path_factory.mktemp("still") / "backbone"
    shutil.copytree(backbone_dir, folder)
    values = json.loads((folder / "config.json").read_text()) | {"attention_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def lines(folder, *without):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", *without)} for line in found]


def tensors(path):
    return {key: value.numpy().tobytes() for key, value in load_file(path).items()}


def outcome(folder):
    """Everything that must be bit-identical: weights, optimizer, losses, sample ids, exported model."""
    last = checkpoint.latest(folder / "state")
    progress = json.loads((last / "progress.json").read_text())["progress"]
    exported = [path for path in (folder / "model.safetensors", folder / "adapter_model.safetensors") if path.is_file()]
    return {
        "step": progress["step"], "samples": progress["samples_sha256"], "best": progress["best_step"],
        "weights": tensors(last / "weights.safetensors"), "optimizer": tensors(last / "optimizer.safetensors"),
        "lines": lines(folder), "model": [tensors(path) for path in exported],
    }  # fmt: skip


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert one[key] == two[key], f"{key} differs"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, questions_dir, backbone_dir, groups_dir, generated_dir, pairs_dir):
    """Uninterrupted runs, one of each kind and number of processes: (script, folder, overrides without output_dir)."""
    made = {}

    def get(kind, processes=1):
        if (kind, processes) not in made:
            script, more = KINDS[kind]
            pairs = script == "train_ranker_pairwise"
            overrides = [
                f"data.pairs_dir={pairs_dir}/pairs" if pairs else f"data.questions_dir={questions_dir}",
                f"model.backbone={pairs_dir / 'qwen2' if pairs else backbone_dir}", "device=cpu", "data.validation_rows=8",
                "loop.epochs=null", f"loop.max_steps={STEPS}", "loop.batch_size=6", "loop.save_every_steps=1", *more,
            ]  # fmt: skip
            if not pairs and script != "train_llm_reasoner":
                overrides += [f"rationales={generated_dir}"]
            if not pairs and "ranker" in script:
                overrides += [f"groups={groups_dir}"]
            folder = tmp_path_factory.mktemp(kind)
            if processes == 1:
                running.run(script, *overrides, f"output_dir={folder}")
            else:
                assert running.two_processes(lambda: running.run(script, *overrides, f"output_dir={folder}")) == [0, 0]
            made[kind, processes] = (script, folder, overrides)
        return made[kind, processes]

    return get


# --- interrupted and resumed -----------------------------------------------------------------------------------------


def nth_call(owner, name, count, before=True):
    """Make the `count`-th call of a function kill the process, before or after its work."""
    real, calls = getattr(owner, name), 0

    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count and before:
            running.kill_self()
        result = real(*arguments, **options)
        if calls == count:
            running.kill_self()
        return result

    setattr(owner, name, wrapped)


KILLS = {
    "before a step": lambda: nth_call(optim, "set_learning_rate", 2),
    "in the middle of accumulation": lambda: (nth_call(losses, "token_sum", 4), nth_call(losses, "info_nce", 2, before=False), nth_call(losses, "group_softmax", 3), nth_call(running.script("train_ranker_pairwise"), "preference", 3)),
    "after the optimizer moved": lambda: nth_call(torch.optim.AdamW, "step", 2, before=False),
    "while tensors are written": lambda: nth_call(checkpoint, "save_file", 4, before=False),
    "before the state is published": lambda: nth_call(contracts, "publish_folder", 2),
    "when the state is published": lambda: nth_call(contracts, "publish_folder", 2, before=False),
    "before it is verified": lambda: nth_call(checkpoint, "verify", 2),
    "while old states are deleted": lambda: nth_call(shutil, "rmtree", 1, before=False),
    "during evaluation": lambda: (nth_call(training, "mean_loss", 1, before=False), nth_call(metrics, "report", 1), nth_call(metrics, "list_figures", 1), nth_call(measures, "margin_figures", 1)),
    "before the export": lambda: nth_call(contracts, "write_meta", 1),
    "before the manifest": lambda: nth_call(contracts, "write_manifest", 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", kinds("reasoner", "retriever", "pointwise-lora", "listwise", "pairwise-head"))
def test_killed_again_and_again_it_ends_as_if_never_killed(kind, whole, tmp_path):
    """kill -9 at eleven points of one run, each followed by the same command, twice in one epoch included."""
    script, reference, overrides = whole(kind)
    deaths = []
    for name, plant in KILLS.items():

        def work(plant=plant):
            plant()
            running.run(script, *overrides, f"output_dir={tmp_path}")

        code = running.forked(work)
        assert code in (-9, 0), name
        deaths += [name] if code else []
    assert len(deaths) >= 8, deaths
    running.run(script, *overrides, f"output_dir={tmp_path}")
    assert_same(outcome(tmp_path), outcome(reference))


@pytest.mark.parametrize("kind", kinds("reasoner-lora", "retriever"))
def test_resumed_at_every_step(kind, whole, tmp_path):
    script, reference, overrides = whole(kind)
    for _ in range(STEPS):

        def one_step():
            nth_call(contracts, "publish_folder", 1, before=False)
            running.run(script, *overrides, f"output_dir={tmp_path}")

        assert running.forked(one_step) == -9
    running.run(script, *overrides, f"output_dir={tmp_path}")
    assert_same(outcome(tmp_path), outcome(reference))


EVENTS = [
    (optim, "set_learning_rate"), (training, "to_device"), (torch.Tensor, "backward"), (torch.optim.AdamW, "step"),
    (checkpoint, "save_file"), (checkpoint, "verify"), (contracts, "publish_folder"), (os, "fsync"), (os, "replace"),
    (metrics, "report"), (metrics, "list_figures"), (measures, "margin_figures"), (contracts, "write_meta"), (contracts, "write_manifest"),
]  # fmt: skip


def at_event(action, number):
    """Do `action` when the functions of EVENTS have been called `number` times in all."""
    seen = [0]
    for owner, name in EVENTS:
        original = getattr(owner, name)

        def wrapped(*arguments, real=original, **options):
            seen[0] += 1
            if seen[0] == number:
                action()
            return real(*arguments, **options)

        setattr(owner, name, wrapped)
    return seen


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "seed"), [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_killed_at_five_random_points(kind, processes, seed, whole, tmp_path):
    """11 kinds × (5 seeds alone, 1 with two processes) × 5 kills, anywhere: forward, writer, evaluation, export."""
    script, reference, overrides = whole(kind, processes)
    generator = np.random.default_rng(seed)

    def go(before, victim):
        def work():
            is_victim = int(os.environ.get("RANK", "0")) == victim
            after = before() if is_victim else None
            running.run(script, *overrides, f"output_dir={tmp_path}")
            if after is not None:
                after()

        if processes == 1:
            return running.forked(work)
        codes = running.two_processes(work)
        return -9 if -9 in codes else max(codes)

    def count_events():
        seen = at_event(lambda: None, -1)
        return lambda: (tmp_path / "events").write_text(str(seen[0]))

    victims = [int(generator.integers(processes)) for _ in range(5)]
    events = {}
    for victim in set(victims):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        assert go(count_events, victim) == 0
        events[victim] = int((tmp_path / "events").read_text())
    shutil.rmtree(tmp_path)
    for victim in victims:
        # a fifth of the run at most, so that each of the five is sure to come before the end
        number = int(generator.integers(1, max(2, events[victim] // 5)))
        assert go(lambda number=number: at_event(running.kill_self, number), victim) == -9
    assert go(lambda: None, 0) == 0
    assert_same(outcome(tmp_path), outcome(reference))


def test_dropout_and_random_negatives_were_on(whole, still_backbone, tmp_path):
    script, reference, overrides = whole("retriever")
    still = [f"model.backbone={still_backbone}" if one.startswith("model.backbone") else one for one in overrides]
    running.run(script, *still, f"output_dir={tmp_path}")
    assert lines(tmp_path)[0]["loss"] != lines(reference)[0]["loss"], "attention dropout changes the loss"
    assert len(list((reference / "hard_negatives").glob("step-*"))) == 4


def test_workers_do_not_change_the_run(whole, tmp_path):
    script, reference, overrides = whole("retriever-lora")
    running.run(script, *overrides, f"output_dir={tmp_path}", "loop.num_workers=2")
    assert_same(outcome(tmp_path), outcome(reference))


def interrupted_state(whole, tmp_path, kind="reasoner"):
    """A run killed after some steps, with two states on disk."""
    script, reference, overrides = whole(kind)

    def work():
        nth_call(contracts, "publish_folder", 4, before=False)
        running.run(script, *overrides, f"output_dir={tmp_path}")

    assert running.forked(work) == -9
    states = sorted((tmp_path / "state").glob("step-*"))
    assert len(states) >= 2
    return script, reference, overrides, states


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest"])
def test_a_damaged_state_is_detected_and_the_one_before_taken(damage, whole, tmp_path, capsys):
    script, reference, overrides, states = interrupted_state(whole, tmp_path)
    victim = states[-1] / ("manifest.json" if damage == "manifest" else "optimizer.safetensors")
    raw = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "flip":
        raw[len(raw) // 2] ^= 1
        victim.write_bytes(raw)
    else:
        victim.write_bytes(raw[: len(raw) // 2])
    assert checkpoint.latest(tmp_path / "state") == states[-2]
    running.run(script, *overrides, f"output_dir={tmp_path}")
    assert "taking the state before it" in capsys.readouterr().out
    assert_same(outcome(tmp_path), outcome(reference))


def borders(raw):
    """Offsets at which a safetensors file's header and tensors end."""
    header = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + header])
    ends = {
        8 + header + one for name, entry in entries.items() if name != "__metadata__" for one in entry["data_offsets"]
    }
    return sorted({0, 7, 8, 8 + header - 1} | ends)


def test_every_cut_and_flip_of_a_state_is_detected(whole, tmp_path):
    """Cuts at every tensor border and at 1,000 random offsets, and as many single bits flipped."""
    _, reference, _ = whole("retriever")
    state = tmp_path / "step-00000001"
    shutil.copytree(checkpoint.latest(reference / "state"), state)
    assert checkpoint.verify(state) is None
    generator, tried = np.random.default_rng(0), 0
    for path in sorted(state.iterdir()):
        if path.name == "manifest.json":
            continue
        raw = path.read_bytes()
        cuts = set(generator.integers(0, len(raw), 600).tolist())
        if path.suffix == ".safetensors":
            cuts |= {one for one in borders(raw) if one < len(raw)}
            assert len(borders(raw)) > 10
        for offset in sorted(cuts):
            path.write_bytes(raw[:offset])
            assert checkpoint.verify(state) is not None, (path.name, offset)
            bit = 1 << int(generator.integers(8))
            path.write_bytes(raw[:offset] + bytes([raw[offset] ^ bit]) + raw[offset + 1 :])
            assert checkpoint.verify(state) is not None, (path.name, offset, bit)
            tried += 2
        path.write_bytes(raw)
    assert tried >= 2000 and checkpoint.verify(state) is None


def test_a_damaged_manifest_never_passes_for_a_good_state(whole, tmp_path):
    _, reference, _ = whole("retriever")
    state = tmp_path / "step-00000001"
    shutil.copytree(checkpoint.latest(reference / "state"), state)
    raw = (state / "manifest.json").read_bytes()
    for offset in range(len(raw)):
        (state / "manifest.json").write_bytes(raw[:offset])
        assert checkpoint.verify(state) is not None, offset
        for bit in range(8):
            flipped = raw[:offset] + bytes([raw[offset] ^ (1 << bit)]) + raw[offset + 1 :]
            (state / "manifest.json").write_bytes(flipped)
            assert checkpoint.verify(state) is not None, (offset, bit)


@pytest.mark.parametrize("kind", ["reasoner", "reasoner-lora"])
def test_cut_weights_of_a_finished_run_are_refused_with_our_error(kind, whole, tmp_path):
    """Every border, and random offsets: full weights and adapters, loaded as inference and merging load them."""
    _, reference, _ = whole(kind)
    name = "adapter_model.safetensors" if kind.endswith("lora") else "model.safetensors"
    folder = tmp_path / "checkpoint"
    shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("state"))
    raw = (folder / name).read_bytes()
    offsets = [one for one in borders(raw) if one < len(raw)]
    random = np.random.default_rng(0).integers(0, len(raw), 5).tolist()
    for offset in [*offsets[:: max(1, len(offsets) // 12)], *random]:
        (folder / name).write_bytes(raw[:offset])
        with pytest.raises(PodiumError, match="checkpoint"):
            modeling.load_checkpoint(folder, "causal_lm")
    (folder / name).write_bytes(raw)
    modeling.load_checkpoint(folder, "causal_lm")


def test_pickled_weights_are_not_loaded(whole, backbone_dir, tmp_path):
    """A pickle runs code when it is read: folders that hold nothing else are refused before anything is opened."""
    _, reference, _ = whole("reasoner-lora")

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for kind, source, weights in (("full", backbone_dir, "model"), ("adapter", reference, "adapter_model")):
        folder = tmp_path / kind
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("state", "*.safetensors"))
        names = {"model": "pytorch_model.bin", "adapter_model": "adapter_model.bin"}
        (folder / names[weights]).write_bytes(pickle.dumps({"weight": Trap()}))
        with pytest.raises(DataError, match="pickles only"):
            modeling.load_checkpoint(folder, "causal_lm")
    assert not (tmp_path / "sprung").exists()


def test_prompts_longer_than_the_positions_are_refused(trainer, tmp_path):
    with pytest.raises(DataError, match="max_length_tokens=513 is more than the 512 positions"):
        running.run("train_llm_reasoner", *trainer(tmp_path, "max_length_tokens=513"))


def test_the_line_that_says_how_to_resume_can_be_pasted(monkeypatch):
    given = ["code/train.py", "++model.lora={rank: 4, alpha: 8}", "++output_dir=a b", *config.QUIET_HYDRA]
    monkeypatch.setattr("sys.argv", given)
    line = stage.command_line()
    assert shlex.split(line) == ["python", "code/train.py", "model.lora={rank: 4, alpha: 8}", "output_dir=a b"]


def test_a_new_state_outlives_newer_damaged_ones(tmp_path):
    model, optimizer = linear()
    for step in (1, 2):
        checkpoint.save(tmp_path, step, model, optimizer, {}, keep=2)
    (tmp_path / "step-00000002" / "weights.safetensors").write_bytes(b"damaged")
    resumed = checkpoint.save(tmp_path, 1, model, optimizer, {}, keep=1)
    assert checkpoint.latest(tmp_path) == resumed


def test_old_states_go_and_the_best_stays(tmp_path):
    model, optimizer = linear()
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, model, optimizer, {}, keep=2, protect=3 if step >= 3 else None)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000003", "step-00000005", "step-00000006"]


def test_the_best_of_a_kept_state_is_kept_too(tmp_path):
    model, optimizer = linear()
    for step, best in ((1, 1), (2, 1), (3, 3)):
        checkpoint.save(tmp_path, step, model, optimizer, {}, keep=2, protect=best)
    assert (tmp_path / "step-00000001").is_dir(), "state 2 may be resumed from, and it needs state 1"


def failing_once(real, nth, error):
    """A function whose `nth` use fails."""
    calls = 0

    def call(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise error
        return real(*arguments, **options)

    return call


WRITES = [
    (checkpoint, "save_file", 2), (Path, "mkdir", 1), (Path, "write_text", 2), (os, "fsync", 6), (os, "replace", 1),
    (contracts, "sha256", 3),
]  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize(("owner", "call", "uses"), WRITES)
def test_a_disk_that_fails_once_anywhere_leaves_a_good_state(owner, call, uses, number, tmp_path, monkeypatch):
    """Four files, their folder and its parent are made durable, and the folder is renamed once."""
    error = OSError(number, os.strerror(number))
    if call == "save_file":  # its writer is not Python's
        error = SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    model, optimizer = linear()
    checkpoint.save(tmp_path, 1, model, optimizer, {}, keep=1)
    for nth in range(1, uses + 1):
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, failing_once(getattr(owner, call), nth, error))
            with pytest.raises(PodiumError, match=rf"the state of step {nth + 1} .*{os.strerror(number)}.*is whole"):
                checkpoint.save(tmp_path, nth + 1, model, optimizer, {}, keep=1)
        left = checkpoint.latest(tmp_path)
        assert left is not None and checkpoint.load(left, model, optimizer) == {}
    last = checkpoint.save(tmp_path, 99, model, optimizer, {}, keep=1)
    assert checkpoint.latest(tmp_path) == last


def assert_one_line(text):
    """An error message without a traceback."""
    assert "Traceback" not in text and len([one for one in text.splitlines() if one.startswith("error: ")]) == 1, text


@pytest.mark.parametrize("events", [(1, 4, 9, 23), pytest.param(tuple(range(1, 90)), marks=pytest.mark.long)])
def test_a_run_on_a_disk_that_fails_once_says_so_and_goes_on_when_called_again(events, whole, tmp_path, capfd):
    script, reference, overrides = whole("retriever")
    failed = 0
    for number in events:

        def work(number=number):
            seen = [0]
            for owner, name, _ in WRITES:
                original = getattr(owner, name)

                def call(*arguments, real=original, name=name, **options):
                    seen[0] += 1
                    if seen[0] == number:
                        text = "I/O error: No space left on device (os error 28)"
                        raise SafetensorError(text) if name == "save_file" else OSError(errno.ENOSPC, "No space left")
                    return real(*arguments, **options)

                setattr(owner, name, call)
            running.run(script, *overrides, f"output_dir={tmp_path}")

        code = running.forked(work)
        said = capfd.readouterr().err
        assert code in (0, 6), said
        if code:
            failed += 1
            assert_one_line(said)
            assert "No space left" in said
    assert failed >= min(len(events) - 1, 9), "a finished run has nothing left to fail"
    running.run(script, *overrides, f"output_dir={tmp_path}")
    assert_same(outcome(tmp_path), outcome(reference))


def test_a_real_disk_quota_is_one_line_and_the_run_goes_on_with_more(whole, tmp_path, capfd):
    """Nothing replaced: the system itself refuses files above 30 kB, weights first."""
    script, reference, overrides = whole("retriever")

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        running.run(script, *overrides, f"output_dir={tmp_path}")

    assert running.forked(work) == 6
    said = capfd.readouterr().err
    assert_one_line(said)
    assert "the state of step 1 could not be written" in said and "no state was saved yet" in said
    running.run(script, *overrides, f"output_dir={tmp_path}")
    assert_same(outcome(tmp_path), outcome(reference))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_saves_and_exits_75(number, whole, tmp_path, capfd):
    script, reference, overrides = whole("reasoner-lora")

    def work():
        real, calls = optim.set_learning_rate, iter(range(100))
        optim.set_learning_rate = lambda *a: os.kill(os.getpid(), number) if next(calls) == 2 else real(*a)
        running.run(
            script,
            *[o for o in overrides if "save_every" not in o],
            "loop.save_every_steps=1",
            f"output_dir={tmp_path}",
        )

    assert running.forked(work) == 75
    message = capfd.readouterr().err
    assert signal.Signals(number).name in message and "run the same command again to resume" in message
    assert checkpoint.latest(tmp_path / "state").name == "step-00000003"


def test_a_stop_between_saves_does_not_delete_a_good_state(monkeypatch, tmp_path):
    removed = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, *a, **k: removed.append(str(path)))
    step = stepper(tmp_path, max_steps=4, save_every_steps=1, keep=9)
    step["micro_step"] = sending(step["micro_step"], at=2)
    with pytest.raises(InterruptedRun):
        training.train(**step)
    assert removed == [], "the state of one step is written once"


def test_changed_settings_or_data_on_resume_are_refused(whole, tmp_path, questions_dir):
    script, _, overrides, _ = interrupted_state(whole, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(DataError, match=r"settings\.optimizer\.lr: 0.002 -> 0.001"):
        running.run(script, *overrides, f"output_dir={tmp_path}", "optimizer.lr=0.001")
    other = tmp_path.parent / f"{tmp_path.name}-questions"
    shutil.copytree(questions_dir, other)
    table = contracts.read_table(other / "questions.parquet", contracts.QUESTIONS)
    contracts.write_table(table.iloc[1:], other / "questions.parquet", contracts.QUESTIONS)
    contracts.write_manifest(other, stage="s", config_digest="", inputs={})
    with pytest.raises(DataError, match=r"inputs\.questions"):
        running.run(
            script,
            *[f"data.questions_dir={other}" if "questions_dir" in o else o for o in overrides],
            f"output_dir={tmp_path}",
        )
    assert before == {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"
    }


# --- accumulation, schedule, clipping, refusal -----------------------------------------------------------------------


def largest_difference(one, two):
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


def compare_losses(one, two, tolerance):
    keys = ("loss", "grad_norm", "token_accuracy", "accuracy")
    pairs = list(zip(lines(one), lines(two), strict=True))
    assert pairs
    for a, b in pairs:
        assert all(a[key] == pytest.approx(b[key], abs=tolerance, rel=tolerance) for key in keys if key in a)


def test_accumulation_is_a_large_batch(trainer, still_backbone, tmp_path):
    for budget in ("1", "100000"):
        running.run(
            "train_llm_reasoner",
            *trainer(
                tmp_path / budget,
                f"model.backbone={still_backbone}",
                f"max_tokens_per_micro_batch={budget}",
                "sample_generations=0",
            ),
        )
    compare_losses(tmp_path / "1", tmp_path / "100000", 1e-5)
    assert largest_difference(tmp_path / "1" / "model.safetensors", tmp_path / "100000" / "model.safetensors") < 1e-4
    assert lines(tmp_path / "1")[0]["loss"] > 1


def linear():
    """A model whose parameters land in several groups, and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = optim.make_optimizer(model, name="adamw", betas=[0.9, 0.95], eps=1e-8, lr=0.1, weight_decay=0.01)
    return model, optimizer


DATA = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))


def stepper(folder, loss=None, collate=None, **changes):
    """Arguments of a small `training.train` run."""
    from accelerate import Accelerator

    model, optimizer = linear()
    accelerator = Accelerator(cpu=True)

    def squared(model, batch):
        error = (model(DATA[batch["ids"]])[:, 0] - DATA[batch["ids"]].sum(1)) ** 2
        return error.sum(), float(len(error)), {}

    given = dict(
        accelerator=accelerator, model=model, optimizer=optimizer, count=10, output_dir=folder,
        collate=collate or (lambda epoch, ids: [{"ids": torch.tensor(ids), "weight": float(len(ids))}]),
        micro_step=training.plain(loss or squared, accelerator), seed=0, epochs=None, max_steps=6, batch_size=4,
        warmup_fraction=0.5, final_lr_fraction=0.1, max_grad_norm=1e9, eval_every_steps=None, save_every_steps=None,
        keep=2, num_workers=0,
    )  # fmt: skip
    return given | changes


def sending(micro_step, at):
    def wrapped(model, batch, scale):
        if batch["step"] == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return micro_step(model, batch, scale)

    return wrapped


def test_a_step_is_torch_by_hand(tmp_path):
    """Six steps of the loop against six steps written out: order, mean, clipping, schedule, AdamW."""
    given = stepper(tmp_path, max_grad_norm=0.5)
    training.train(**given)
    model, _ = linear()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    flat = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": flat, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.01}],
        lr=0.1,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for step in range(6):
        epoch, position = divmod(step, 3)
        ids = rng.permutation(10, 0, "order", epoch)[position * 4 : position * 4 + 4]
        loss = ((model(DATA[ids])[:, 0] - DATA[ids].sum(1)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scale = (step + 1) / 3 if step < 3 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 3))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * scale
        optimizer.step()
        line = lines(tmp_path)[step]
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-6) and line["lr_scale"] == pytest.approx(scale)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5) and line["grad_norm"] > 0.5
    for mine, theirs in zip(given["model"].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_the_schedule_warms_up_and_falls_to_its_floor(total, warmup):
    scales = [optim.learning_rate_scale(step, total, warmup, 0.1) for step in range(total)]
    peak = max(1, math.ceil(total * warmup))
    assert all(0 < scale <= 1 for scale in scales)
    assert scales[peak - 1] == pytest.approx(1.0)
    assert scales[:peak] == sorted(scales[:peak]) and scales[peak:] == sorted(scales[peak:], reverse=True)
    if total > 1:
        assert optim.learning_rate_scale(total, total, 0.0, 0.1) == pytest.approx(0.1)


def test_a_rate_of_zero_is_zero_and_null_takes_lr():
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(3, 2), "rest": nn.Linear(2, 2)})
    groups = optim.parameter_groups(model, lr=0.5, weight_decay=0.1, lr_embeddings=0.0)
    assert {group["name"]: group["lr"] for group in groups} == {"embeddings": 0.0, "no_decay": 0.5, "matrices": 0.5}
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "embeddings": 0.1,
        "no_decay": 0.0,
        "matrices": 0.1,
    }


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_refused_before_the_optimizer_moves(where, tmp_path):
    def bad(model, batch):
        out = model(DATA[batch["ids"]]).sum()
        value = out * float("nan") if where == "loss" else torch.sqrt(out * 0)
        return (value if batch["step"] == 2 else out), 4.0, {}

    given = stepper(tmp_path, loss=bad)
    states = []
    real = given["optimizer"].step
    given["optimizer"].step = lambda *a, **k: (
        real(*a, **k),
        states.append([p.clone() for p in given["model"].parameters()]),
    )
    with pytest.raises(DataError, match=r"step 2: .*not finite, nothing was updated.*samples"):
        training.train(**given)
    assert len(states) == 2
    assert all(torch.equal(a, b) for a, b in zip(states[-1], given["model"].parameters(), strict=True))


class Adapted(nn.Module):
    """A trained fp32 adapter before a frozen layer held in `dtype`."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.adapter = nn.Linear(DATA.shape[1], 8)
        self.frozen = nn.Linear(8, 1).to(dtype).requires_grad_(False)

    def forward(self, rows):
        return self.frozen(self.adapter(rows).to(self.frozen.weight.dtype)).float()[:, 0]


def adapted(folder, dtype, small, **changes):
    """Six steps of `Adapted` with losses as small as a large batch makes them."""
    model = Adapted(dtype)

    def loss(model, batch):
        return (model(DATA[batch["ids"]]) ** 2).sum() * small, float(len(batch["ids"])), {}

    folder.mkdir(exist_ok=True)
    given = stepper(folder, loss=loss, **changes)
    optimizer = optim.make_optimizer(model, name="adamw", betas=[0.9, 0.95], eps=1e-12, lr=0.01, weight_decay=0.0)
    return given | {"model": model, "optimizer": optimizer}


def test_gradients_in_half_precision_do_not_vanish(tmp_path, monkeypatch):
    norms = {}
    for name, dtype, first in (
        ("single", torch.float32, 2.0**16),
        ("half", torch.float16, 2.0**16),
        ("bare", torch.float16, 1.0),
    ):
        monkeypatch.setattr(training, "FIRST_LOSS_SCALE", first)
        progress = training.train(**adapted(tmp_path / name, dtype, small=1e-7))
        assert progress.loss_scale == (1.0 if name == "single" else first)
        norms[name] = np.array([line["grad_norm"] for line in lines(tmp_path / name)])
    assert np.allclose(norms["half"], norms["single"], rtol=0.02)
    assert np.abs(norms["bare"] / norms["single"] - 1).max() > 0.2  # the case is one in which they do vanish


def test_a_loss_scale_that_overflows_is_halved_and_no_step_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "FIRST_LOSS_SCALE", 2.0**40)
    monkeypatch.setattr(training, "LOSS_SCALE_DOUBLES_AFTER", 2)
    whole = training.train(**adapted(tmp_path / "whole", torch.float16, small=1.0))
    assert whole.step == 6 and 1.0 < whole.loss_scale < 2.0**40
    training.train(**adapted(tmp_path / "single", torch.float32, small=1.0))
    for half, single in zip(lines(tmp_path / "whole"), lines(tmp_path / "single"), strict=True):
        assert half["grad_norm"] == pytest.approx(single["grad_norm"], rel=0.02)
    given = adapted(tmp_path / "cut", torch.float16, small=1.0)
    with pytest.raises(InterruptedRun):
        training.train(**given | {"micro_step": sending(given["micro_step"], 3)})
    again = adapted(tmp_path / "cut", torch.float16, small=1.0)
    assert training.train(**again).loss_scale == whole.loss_scale
    for one, two in zip(lines(tmp_path / "cut"), lines(tmp_path / "whole"), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_trained_weights_in_half_precision_are_refused(tmp_path):
    given = adapted(tmp_path, torch.float16, small=1.0)
    given["model"].adapter.half()
    with pytest.raises(DataError, match=r"2 trained tensors are held in fp16 \(e\.g\. adapter\.weight\)"):
        training.train(**given)


def test_the_best_weights_are_returned(tmp_path):
    figures = iter([3.0, 1.0, 2.0, 5.0])
    given = stepper(tmp_path, max_steps=4, eval_every_steps=1, keep=1)
    snapshots = []

    def evaluate(model):
        snapshots.append([p.clone() for p in model.parameters()])
        assert not model.training
        return {"loss": next(figures)}

    progress = training.train(**given, evaluate=evaluate, best_metric="loss", lower_is_better=True)
    assert (progress.best_step, progress.best_value, progress.step) == (2, 1.0, 4)
    assert all(torch.equal(a, b) for a, b in zip(snapshots[1], given["model"].parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(snapshots[3], given["model"].parameters(), strict=True))


def test_a_damaged_best_state_is_refused_not_exported(tmp_path):
    figures = iter([1.0, 2.0, 3.0])

    def evaluate(_):
        if (best := tmp_path / "state" / "step-00000001").is_dir():
            (best / "weights.safetensors").write_bytes(b"cut")
        return {"loss": next(figures)}

    with pytest.raises(DataError, match="step-00000001.*damaged"):
        training.train(
            **stepper(tmp_path, max_steps=3, eval_every_steps=1),
            evaluate=evaluate,
            best_metric="loss",
            lower_is_better=True,
        )


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "steps"), [(10, 4, 2, 6), (10, 4, 1, 3), (8, 4, 2, 4), (10, 4, 0.5, 2), (3, 64, 3, 3)]
)
def test_whole_epochs_visit_every_sample(count, batch, epochs, steps):
    assert training.total_steps(count, batch, epochs, None) == steps
    batches = training.StepBatches(count, batch, lambda epoch, ids: [], seed=0, steps=steps)
    if float(epochs).is_integer():
        visits = np.concatenate([batches.sample_ids(step)[1] for step in range(steps)])
        assert np.bincount(visits, minlength=count).tolist() == [epochs] * count


def test_steps_are_the_shorter_of_both():
    assert training.total_steps(100, 10, 2, 5) == 5 and training.total_steps(100, 10, 2, 500) == 20
    assert training.total_steps(100, 10, None, 7) == 7


def test_no_rows_is_refused():
    with pytest.raises(DataError, match="no training rows"):
        training.StepBatches(0, 4, lambda epoch, ids: [], seed=0, steps=3)


def test_a_cut_log_line_is_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    training._log_upto(path, 1)
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n'


# --- two processes ---------------------------------------------------------------------------------------------------


def test_two_processes_are_really_two(tmp_path):
    def work():
        from podium import stage

        accelerator = stage.make_accelerator("cpu")
        (tmp_path / f"{accelerator.process_index}-of-{accelerator.num_processes}").touch()

    assert running.two_processes(work) == [0, 0]
    assert sorted(os.listdir(tmp_path)) == ["0-of-2", "1-of-2"]


@pytest.fixture(scope="module")
def candidates_dir(tmp_path_factory, tables):
    """Hard negatives that many queries share, and a teacher that scores them."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("negatives")
    labelled = tables.questions[tables.questions["misconception_id"].notna()]["query_id"]
    frame = pd.DataFrame(
        [(query, rank, one) for query in labelled for rank, one in enumerate((3, 7, 11, 19), start=1)],
        columns=["query_id", "rank", "misconception_id"],
    ).assign(score=0.0, source="test")
    contracts.write_table(frame, folder / "candidates.parquet", contracts.CANDIDATES)
    scores = frame.drop(columns=["rank", "source"]).assign(model="t", score=lambda f: f["misconception_id"] / 7)
    contracts.write_table(scores, folder / "scores.parquet", contracts.SCORES)
    return folder


@pytest.mark.parametrize("kind", ["reasoner", "retriever", "retriever-hard", "retriever-taught", "retriever-cached"])
def test_two_processes_are_one(kind, trainer, still_backbone, candidates_dir, tmp_path):
    """Batches of 5 (uneven shares), a last one of 1 an epoch (one process has none), negatives across processes."""
    script = "train_llm_reasoner" if kind == "reasoner" else "train_llm_embedding"
    more = {
        "reasoner": ["sample_generations=0", "max_tokens_per_micro_batch=300"],
        "retriever": ["best_metric=recall@25"],
        "retriever-hard": [
            f"hard_negatives={{candidates: {candidates_dir}, per_query: 2, top: 3, refresh_every_steps: 2}}"
        ],
        "retriever-taught": [
            f"hard_negatives={{candidates: {candidates_dir}, per_query: 2, top: 3, refresh_every_steps: null}}",
            f"distillation={{scores: {candidates_dir}, temperature: 1.0, weight: 0.5}}",
        ],
        "retriever-cached": ["grad_cache=true", "max_tokens_per_micro_batch=200", "negatives=full_corpus"],
    }[kind]

    def overrides(name):
        return trainer(
            tmp_path / name, f"model.backbone={still_backbone}", "data.train_folds=[1]", "loop.max_steps=8", "loop.batch_size=5",
            "loop.save_every_steps=null", "optimizer.eps=1e-4", *more,
        )  # fmt: skip

    running.run(script, *overrides("one"))
    assert running.two_processes(lambda: running.run(script, *overrides("two"))) == [0, 0]
    compare_losses(tmp_path / "one", tmp_path / "two", 2e-5)
    assert largest_difference(tmp_path / "one" / "model.safetensors", tmp_path / "two" / "model.safetensors") < 1e-5


def test_gathered_documents_learn_from_the_queries_of_both(tmp_path):
    def work():
        from podium import stage
        from podium.distributed import gather_documents

        accelerator = stage.make_accelerator("cpu")
        rank = accelerator.process_index
        own = (torch.arange(6.0).view(3, 2) + 10 * rank)[: 3 - rank].requires_grad_()
        documents, ids, offset = gather_documents(accelerator, own, torch.arange(3 - rank) + 5 * rank)
        assert documents.shape == (5, 2) and ids.tolist() == [0, 1, 2, 5, 6] and offset == 3 * rank
        assert documents[offset : offset + len(own)].equal(own)
        (documents * (rank + 1)).sum().backward()
        assert own.grad.eq(3).all(), "1 from the first process and 2 from the second"

    assert running.two_processes(work) == [0, 0]
