"""Dry runs: what they print, that they write nothing, and memory predictions against real peaks."""

import ctypes
import gc
import json
import multiprocessing
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
import running
from transformers import AutoConfig, AutoModelForCausalLM

from podium import checkpoint, doctor, dry_run, memory, modeling
from podium.errors import ArgumentError

TRAINERS = ("train_llm_reasoner", "train_llm_embedding", "train_ranker_pointwise", "train_ranker_listwise")
LORA = "model.lora={rank: 4, alpha: 8, dropout: 0.1, target_modules: [q_proj, v_proj], modules_to_save: null}"


def status(key):
    """A figure of /proc/self/status in bytes."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(key))
    return int(line.split()[1]) * 1024


def sized_backbone(folder, backbone_dir, **changes):
    """The tiny backbone's tokenizer under a random model of another shape."""
    shutil.copytree(backbone_dir, folder)
    (folder / "model.safetensors").unlink()
    values = json.loads((folder / "config.json").read_text()) | changes
    values.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(values))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


SHAPES = {
    "logits": (
        "train_llm_reasoner",
        dict(vocab_size=12000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, attention_dropout=0.0),
        ["max_tokens_per_micro_batch=8000", "loop.batch_size=48", "sample_generations=0"],
    ),
    "activations": (
        "train_llm_embedding",
        dict(hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
             attention_dropout=0.0),
        ["loop.batch_size=24", "model.lora={rank: 8, alpha: 16, dropout: 0.1, target_modules: [q_proj, v_proj]}"],
    ),
    "weights": (
        "train_llm_reasoner",
        dict(vocab_size=4000, hidden_size=640, intermediate_size=2560, num_hidden_layers=4, num_attention_heads=8,
             num_key_value_heads=8),
        ["model.gradient_checkpointing=true", "max_tokens_per_micro_batch=1000", "loop.batch_size=8", "sample_generations=0"],
    ),
}  # fmt: skip


def peak_of_a_run(script, warm_up, overrides):
    """Bytes by which memory grows at most in the steps of a run; for a process of its own, because in one that has
    worked before, what it frees meanwhile would hide a part."""
    ctypes.CDLL("libc.so.6").mallopt(-3, 65536)  # blocks that are freed go back to the system at once
    running.run(script, *warm_up)
    peaks = []
    save = checkpoint.save

    def noting(*arguments, **options):
        peaks.append(status("VmHWM") - before)  # a step's, not of what follows
        return save(*arguments, **options)

    with mock.patch.object(checkpoint, "save", noting):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        running.run(script, *overrides)
    return peaks[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_predicted_memory_is_the_peak_of_a_real_run(shape, questions_dir, backbone_dir, tmp_path, monkeypatch):
    script, changes, more = SHAPES[shape]
    backbone = sized_backbone(tmp_path / "backbone", backbone_dir, **changes)
    overrides = [
        f"data.questions_dir={questions_dir}", "device=cpu", "data.validation_rows=2", "loop.epochs=null",
        "loop.max_steps=3", "loop.save_every_steps=null", *more,
    ]  # fmt: skip
    predicted = []
    real = memory.predict

    def spy(*arguments, **options):
        predicted.append(real(*arguments, **options))
        return predicted[-1]

    monkeypatch.setattr(memory, "predict", spy)
    running.run(script, *overrides, f"model.backbone={backbone}", f"output_dir={tmp_path}/dry", "dry_run=true")

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        warm_up = [*overrides, f"model.backbone={backbone_dir}", f"output_dir={tmp_path}/warm"]
        real = [*overrides, f"model.backbone={backbone}", f"output_dir={tmp_path}/run"]
        peak = pool.apply(peak_of_a_run, (script, warm_up, real))
    print(f"{shape}: predicted {predicted[0].total / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert predicted[0].total == pytest.approx(peak, rel=0.15)


@pytest.fixture
def overrides(questions_dir, backbone_dir, groups_dir, generated_dir, tmp_path):
    """Overrides of a short run of any trainer."""

    def get(script, *more):
        given = [
            f"output_dir={tmp_path}/run", f"data.questions_dir={questions_dir}", f"model.backbone={backbone_dir}",
            "device=cpu", "loop.batch_size=6", *more,
        ]  # fmt: skip
        return [*given, f"groups={groups_dir}", f"rationales={generated_dir}"] if "ranker" in script else given

    return get


def assert_reported(said, marks):
    """Everything that a dry run says about a run with adapters on the tiny Qwen2."""
    assert re.search(r"steps: (\d+) of 6 of (\d+) samples, \d+ an epoch, so [\d.]+ epochs; warm-up \d+ steps", said)
    assert re.search(
        r"tokens a row: 50 % \d+, 90 % \d+, 99 % \d+, longest \d+ .*; text cut in \d+ of \d+ prompts", said
    )
    for part in ("weights", "trained", "gradients", "optimizer", "logits", "activations"):
        assert re.search(rf"{part} \d+\.\d\d", said), part
    assert "fits the free memory of this machine" in said
    losses = re.search(r"two steps with a tiny random twin \(\w+, 2 layers × 64\): losses ([\d.]+), ([\d.]+)", said)
    assert 0 < float(losses[1]) < 20 and float(losses[2]) != float(losses[1])
    assert re.search(marks, said), said


@pytest.mark.parametrize("script", TRAINERS)
def test_a_dry_run_reports_everything_and_writes_nothing(script, overrides, tmp_path, capsys):
    running.run(script, *overrides(script, "dry_run=true", LORA))
    said = capsys.readouterr().out
    assert "text cut in 0 of" in said
    marks = {
        "train_llm_reasoner": r"Why:⟦ .*<\|endoftext\|>⟧", "train_llm_embedding": "Misconception:'",
        "train_ranker_pointwise": r"\\nMatch:⟦\?⟧", "train_ranker_listwise": r"Best:⟦\?⟧",
    }  # fmt: skip
    assert_reported(said, marks[script])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "backbone", "mark"), [("base", "qwen2", r"⟦\?⟧"), ("conf_micro", "gemma2", r"⟦\?⟧")])  # fmt: skip
def test_both_forms_of_the_pairwise_judge_have_a_dry_run(name, backbone, mark, pairs_dir, tmp_path, capsys):
    lora = "model.lora={rank: 4, alpha: 8, dropout: 0.1, target_modules: [q_proj, v_proj], modules_to_save: null}"
    running.run(
        "train_ranker_pairwise", f"data.pairs_dir={pairs_dir}/pairs", f"model.backbone={pairs_dir}/{backbone}", "device=cpu",
        f"output_dir={tmp_path}/run", "loop.batch_size=6", "dry_run=true", lora, config_name=name,
    )  # fmt: skip
    assert_reported(capsys.readouterr().out, mark)
    assert not (tmp_path / "run").exists()


def test_of_two_processes_one_reports(overrides, tmp_path, capfd):
    """Negatives that cross processes are left out of the prediction and taken part in by the twin's two steps."""
    given = overrides("train_llm_embedding", "dry_run=true", LORA)
    assert running.two_processes(lambda: running.run("train_llm_embedding", *given)) == [0, 0]
    said = capfd.readouterr().out
    assert said.count("dry run: nothing is trained") == 1 and "(DDP over 2)" in said
    assert_reported(said, "document, first")
    assert not (tmp_path / "run").exists()


def test_two_processes_end_alike_where_the_run_does_not_fit(overrides, backbone_dir, tmp_path, capfd):
    shutil.copytree(backbone_dir, tmp_path / "big")
    values = json.loads((tmp_path / "big/config.json").read_text()) | dict(num_hidden_layers=900, hidden_size=4096)
    values.pop("layer_types", None)
    (tmp_path / "big/config.json").write_text(json.dumps(values))
    given = [one for one in overrides("train_ranker_listwise", "dry_run=true", LORA) if "model.backbone" not in one]

    def work():
        running.run("train_ranker_listwise", *given, f"model.backbone={tmp_path}/big", "gpu=t4-16gb/2")

    assert running.two_processes(work) == [3, 3]
    said = capfd.readouterr()
    assert said.err.count("error: needs") == 1 and "(FSDP2 over 2)" in said.out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_beside_a_run_changes_nothing(overrides, tmp_path):
    short = overrides("train_llm_reasoner", "loop.max_steps=2", "sample_generations=0", "data.validation_rows=2")
    running.run("train_llm_reasoner", *short)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    running.run("train_llm_reasoner", *short, "dry_run=true", "gpu=t4-16gb")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    running.run("train_llm_reasoner", *short, "gpu=t4-16gb")  # a finished run, whatever a dry run was asked


def test_questions_that_are_cut_are_counted(overrides, capsys):
    running.run("train_llm_embedding", *overrides("train_llm_embedding", "dry_run=true", "max_length_tokens=60"))  # fmt: skip
    cut, fitted = map(int, re.search(r"text cut in (\d+) of (\d+) prompts", capsys.readouterr().out).groups())
    assert 0 < cut < fitted


def test_pairs_that_are_cut_are_counted(pairs_dir, tmp_path, capsys):
    given = [
        f"data.pairs_dir={pairs_dir}/pairs",
        f"model.backbone={pairs_dir}/qwen2",
        "device=cpu",
        "loop.batch_size=6",
    ]
    shares = []
    for length in (512, 60):
        running.run("train_ranker_pairwise", *given, f"output_dir={tmp_path}/run", "dry_run=true",
                    f"max_length_tokens={length}")  # fmt: skip
        cut, fitted = map(int, re.search(r"text cut in (\d+) of (\d+) prompts", capsys.readouterr().out).groups())
        shares.append((cut, fitted))
    assert shares[0][0] == 0 < shares[0][1] and 0 < shares[1][0] <= shares[1][1]


@pytest.fixture(scope="module")
def large(tmp_path_factory, backbone_dir):
    """Folders with the configs of Qwen2.5 7B and 72B, the tiny tokenizer, and no weights."""
    shapes = {
        "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                   num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False),
        "72b": dict(hidden_size=8192, intermediate_size=29568, num_hidden_layers=80, num_attention_heads=64,
                    num_key_value_heads=8, vocab_size=152064, tie_word_embeddings=False),
    }  # fmt: skip

    def get(name):
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(backbone_dir, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").unlink()
        values = json.loads((folder / "config.json").read_text()) | shapes[name] | {"attention_dropout": 0.0}
        values.pop("layer_types", None)
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return get


def parts(said):
    line = next(one for one in said.splitlines() if one.startswith("predicted memory"))
    return {name: float(value) for name, value in re.findall(r"(\w+) (\d+\.\d+)", line)}


ALL = "model.lora={rank: 16, alpha: 32, dropout: 0.0, target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}"  # fmt: skip


def test_the_exit_code_says_whether_it_fits(large, overrides, monkeypatch, capfd):
    seven = overrides("train_llm_reasoner", f"model.backbone={large('7b')}", "dry_run=true", ALL)
    assert running.command_line(monkeypatch, "train_llm_reasoner", *seven, "gpu=h100-80gb") == 0
    lora = parts(capfd.readouterr().out)
    # 7,615,616,512 parameters in bf16 are 14.19 GiB; rank 16 on all linear layers is 40,370,176 in fp32
    assert lora["weights"] == pytest.approx(14.19, abs=0.02) and lora["trained"] == pytest.approx(0.15, abs=0.01)
    assert lora["optimizer"] == pytest.approx(2 * lora["trained"], abs=0.01)
    assert running.command_line(monkeypatch, "train_llm_reasoner", *seven, "gpu=t4-16gb") == 3
    said = capfd.readouterr()
    assert "DOES NOT FIT t4-16gb" in said.out and "error: needs" in said.err and "Traceback" not in said.err
    assert "two steps with a tiny random twin" in said.out, "the rest is reported all the same"
    assert running.command_line(monkeypatch, "train_llm_reasoner", *seven, "gpu=h100-80g") == 2
    assert "did you mean `h100-80gb`?" in capfd.readouterr().err


def test_a_72b_in_4_bits_fits_where_bf16_does_not(large, overrides, monkeypatch, capfd):
    pytest.importorskip("bitsandbytes")
    folder = large("72b")
    common = overrides("train_llm_reasoner", f"model.backbone={folder}", "dry_run=true", ALL, "gpu=h100-80gb",
                       "model.gradient_checkpointing=true", "max_tokens_per_micro_batch=1024")  # fmt: skip
    assert running.command_line(monkeypatch, "train_llm_reasoner", *common) == 3
    assert parts(capfd.readouterr().out)["weights"] == pytest.approx(135.4, abs=0.3)  # 72,706,203,648 parameters
    assert running.command_line(monkeypatch, "train_llm_reasoner", *common, "model.quantization=nf4") == 0
    four = parts(capfd.readouterr().out)
    # 70,212,648,960 weights of linear layers at 4.127 bits, embeddings and head in fp32
    assert four["weights"] == pytest.approx((70.21e9 * 4.127 / 8 + 2 * 152064 * 8192 * 4) / 2**30, rel=0.01)
    common[common.index("gpu=h100-80gb")] = "gpu=h100-80gb/4"
    assert running.command_line(monkeypatch, "train_llm_reasoner", *common) == 0
    assert parts(capfd.readouterr().out)["weights"] == pytest.approx(135.4 / 4, abs=0.2), "sharded over four"


def test_deep_models_are_extrapolated_exactly(backbone_dir, tmp_path, overrides, monkeypatch, capsys):
    deep = sized_backbone(tmp_path / "deep", backbone_dir, num_hidden_layers=8, hidden_size=512, intermediate_size=1024,
                          num_attention_heads=8, num_key_value_heads=8)  # fmt: skip
    found = []
    for limit in (6, 99):
        monkeypatch.setattr(memory, "DEEP", limit)
        running.run("train_llm_reasoner", *overrides("train_llm_reasoner", f"model.backbone={deep}", "dry_run=true"))
        found.append(parts(capsys.readouterr().out))
    assert found[0] == pytest.approx(found[1], abs=0.011)


@pytest.mark.parametrize(("name", "message"), [("h200", "valid|did you mean"), ("t4-16gb/x", "number of GPUs"), ("t4-16gb/0", "number of GPUs")])  # fmt: skip
def test_wrong_gpu_names(name, message):
    with pytest.raises(ArgumentError, match=message):
        memory.parse_gpu(name)


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_what_is_missing_and_shows_no_secret(tmp_path, monkeypatch, capsys):
    for service in doctor.CREDENTIALS.values():
        for name in service[0]:
            monkeypatch.delenv(name, raising=False)
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/kaggle.json").write_text('{"key": "canary-1"}')
    monkeypatch.setenv("OPENAI_API_KEY", "canary-2")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["doctor.py"])
    with pytest.raises(SystemExit) as stop:
        running.script("doctor").main()
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "nothing required is missing" in said
    assert re.search(r"ok +Kaggle +set in ~/.kaggle/kaggle.json", said) and re.search(r"ok +OpenAI +set in", said)
    assert re.search(r"absent +Anthropic +no synthetic questions", said) and "canary" not in said


def test_the_doctor_refuses_wrong_versions(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("# pins\ntorch==0.1\nno-such-package-here\nnumpy\n-e .\n")
    found = doctor.packages(tmp_path / "requirements.txt")
    assert [(one.state, one.what) for one in found] == [("missing", "torch"), ("missing", "no-such-package-here")]
    assert "0.1 was tested" in found[0].text
    real = doctor.python
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 0))
    assert real().state == "missing"


@pytest.mark.parametrize(("room", "decision"), [(1e5, "on"), (1e12, "off")])
@pytest.mark.parametrize("script", ["train_ranker_pointwise", "train_llm_embedding"])
def test_automatic_checkpointing_follows_the_predicted_memory(script, room, decision, overrides, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "_free_memory", lambda: room)
    switched = []
    real = modeling.enable_gradient_checkpointing
    monkeypatch.setattr(modeling, "enable_gradient_checkpointing", lambda model: (switched.append(model), real(model)))
    running.run(script, *overrides(script, "model.gradient_checkpointing=auto", "loop.max_steps=1", "loop.epochs=null"))
    said = capsys.readouterr().out
    assert re.search(
        rf"gradient checkpointing {decision}: without it a step needs \d+\.\d\d GiB, the free memory", said
    )
    trained = [model for model in switched if next(model.parameters()).device.type == "cpu"]
    assert bool(trained) == (decision == "on")


def test_a_dry_run_decides_checkpointing_for_the_gpu_that_is_asked_for(overrides, capsys):
    running.run(
        "train_ranker_pointwise",
        *overrides("train_ranker_pointwise", "model.gradient_checkpointing=auto", "dry_run=true", "gpu=t4-16gb"),
    )
    assert re.search(
        r"gradient checkpointing off: without it a step needs \d+\.\d\d GiB, t4-16gb has 1\d\.\d\d",
        capsys.readouterr().out,
    )
