"""The first half of the chain with few steps: every script reads what the one before it wrote."""

import json
import math

import pandas as pd
import pytest
import running
from safetensors.torch import load_file

from podium import contracts
from podium.errors import DataError
from podium.stage import RUN


@pytest.fixture(scope="module")
def chain(tmp_path_factory, questions_dir, backbone_dir):
    """Folders of a chain run once: reasoner → rationales → retriever → candidates."""
    root = tmp_path_factory.mktemp("chain")
    tables = f"[{questions_dir}/questions.parquet,{questions_dir}/test.parquet]"
    data = [f"data.questions_dir={questions_dir}", "data.validation_rows=10", "device=cpu", "loop.epochs=null"]
    running.run(
        "train_llm_reasoner", *data, f"model.backbone={backbone_dir}", f"output_dir={root / 'reasoner'}",
        "loop.max_steps=6", "loop.eval_every_steps=3", "sample_generations=1", "max_new_tokens=8",
    )  # fmt: skip
    running.run(
        "generate_llm_reasoner", f"checkpoint={root / 'reasoner'}", f"tables={tables}",
        f"output_dir={root / 'rationales'}", "device=cpu", "max_new_tokens=6", "max_tokens_per_batch=6000",
    )  # fmt: skip
    running.run(
        "train_llm_embedding", *data, f"model.backbone={root / 'reasoner'}", f"output_dir={root / 'retriever'}",
        f"rationales={root / 'rationales'}", "loop.max_steps=3", "loop.batch_size=16",
    )  # fmt: skip
    running.run(
        "mine_candidates", f"checkpoint={root / 'retriever'}", f"questions_dir={questions_dir}", f"tables={tables}",
        f"rationales={root / 'rationales'}", "views=[plain,rationale]", f"output_dir={root / 'candidates'}",
        "device=cpu", "allow_in_sample=true", "top_k=32",
    )  # fmt: skip
    return root


def metrics_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_differ(one, two):
    """Share of the shared tensors that differ between two checkpoints (their bodies)."""

    def body(folder):
        return {key.removeprefix("model."): value for key, value in load_file(folder / "model.safetensors").items()}

    first, second = body(one), body(two)
    shared = [key for key in first if key in second]
    assert shared
    return sum(not first[key].equal(second[key]) for key in shared) / len(shared)


def test_the_models_really_trained(chain, backbone_dir):
    assert weights_differ(backbone_dir, chain / "reasoner") > 0.9
    assert weights_differ(chain / "reasoner", chain / "retriever") > 0.9
    losses = [line["loss"] for line in metrics_lines(chain / "reasoner") if "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_every_logged_number_is_finite(chain):
    for stage in ("reasoner", "retriever"):
        numbers = [value for line in metrics_lines(chain / stage) for value in line.values()]
        assert len(numbers) > 10 and all(math.isfinite(value) for value in numbers)
    assert any("eval/map@25" in line for line in metrics_lines(chain / "retriever"))
    assert sum("eval/loss" in line for line in metrics_lines(chain / "reasoner")) == 2


def test_manifests_say_what_was_read(chain, questions_dir, backbone_dir):
    read = {
        stage: contracts.read_manifest(chain / stage)["inputs"]
        for stage in ("reasoner", "rationales", "retriever", "candidates")
    }
    assert read["reasoner"]["backbone"]["path"] == str(backbone_dir)
    assert read["rationales"]["checkpoint"]["digest"] == contracts.input_digest(chain / "reasoner")
    assert read["retriever"]["backbone"]["digest"] == contracts.input_digest(chain / "reasoner")
    assert read["retriever"]["rationales"]["digest"] == contracts.input_digest(chain / "rationales")
    assert read["candidates"]["checkpoint"]["digest"] == contracts.input_digest(chain / "retriever")
    assert contracts.read_manifest(chain / "candidates")["in_sample"] is True
    assert contracts.read_manifest(chain / "rationales")["in_sample"] is True


def test_checkpoints_know_what_inference_needs(chain, backbone_dir):
    reasoner, retriever = contracts.read_meta(chain / "reasoner"), contracts.read_meta(chain / "retriever")
    assert (reasoner.stage, reasoner.kind, reasoner.base_model) == ("reasoner", "full", str(backbone_dir))
    assert (retriever.stage, retriever.pooling, retriever.max_length_tokens) == ("embedding", "last", 256)
    assert set(reasoner.folds_trained) == set(retriever.folds_trained) == {1, 2, 3, 4, 99}
    assert (chain / "retriever" / "tokenizer.json").is_file() and (chain / "retriever" / "config.yaml").is_file()


def test_every_query_is_in_every_table(chain, tables):
    queries = pd.concat([tables.questions, tables.test])
    wanted = set(queries.loc[queries["fold"].isna() | queries["misconception_id"].notna(), "query_id"])
    rationales = contracts.read_table(chain / "rationales" / "rationales.parquet", contracts.RATIONALES)
    candidates = contracts.read_table(chain / "candidates" / "candidates.parquet", contracts.CANDIDATES)
    assert set(rationales["query_id"]) == set(candidates["query_id"]) == wanted
    assert (candidates.groupby("query_id").size() == 32).all()
    assert not rationales["text"].str.contains("Misconception:").any()
    assert not (chain / "rationales" / "parts").exists()


@pytest.mark.parametrize(
    "name", ["train_llm_reasoner", "generate_llm_reasoner", "train_llm_embedding", "mine_candidates"]
)
def test_a_second_run_has_nothing_to_do(name, chain, capsys):
    folder = chain / {"train_llm_reasoner": "reasoner", "generate_llm_reasoner": "rationales",
                      "train_llm_embedding": "retriever", "mine_candidates": "candidates"}[name]  # fmt: skip
    module = running.script(name)
    from podium import config

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    module.main.body(config.load_file(module.main.settings, folder / "config.yaml"))
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_generation_killed_and_resumed_writes_the_same_file(chain, questions_dir, tmp_path, monkeypatch):
    overrides = [
        f"checkpoint={chain / 'reasoner'}", f"tables=[{questions_dir}/test.parquet]", "device=cpu", "temperature=0.9",
        "samples=2", "max_new_tokens=5", "max_tokens_per_batch=1500", "seed=3",
    ]  # fmt: skip
    running.run("generate_llm_reasoner", *overrides, f"output_dir={tmp_path / 'whole'}")

    def interrupted(at, during_replace):
        count, real = 0, contracts.os.replace

        def replace(*names):
            nonlocal count
            if "part-" in str(names[1]):
                count += 1
                if count == at:
                    if not during_replace:
                        real(*names)
                    running.kill_self()
            real(*names)

        contracts.os.replace = replace
        running.run("generate_llm_reasoner", *overrides, f"output_dir={tmp_path / 'cut'}")

    assert running.forked(lambda: interrupted(2, during_replace=True)) == -9
    assert running.forked(lambda: interrupted(3, during_replace=False)) == -9
    parts = list((tmp_path / "cut" / "parts").glob("part-*"))
    assert len(parts) == 4
    generated = []
    from podium.engines import transformers as engine

    real = engine.generate
    monkeypatch.setattr(engine, "generate", lambda *a, **k: generated.append(len(k["skip"])) or real(*a, **k))
    running.run("generate_llm_reasoner", *overrides, f"output_dir={tmp_path / 'cut'}")
    assert generated[0] > 0, "finished rows are not generated again"
    names = [folder / "rationales.parquet" for folder in (tmp_path / "whole", tmp_path / "cut")]
    assert names[0].read_bytes() == names[1].read_bytes()
    both = contracts.read_table(names[0], contracts.RATIONALES)
    texts = [both[both["sample"] == sample]["text"].tolist() for sample in (0, 1)]
    assert texts[0] != texts[1]


def test_generation_killed_before_its_manifest_keeps_its_rows(chain, questions_dir, tmp_path, monkeypatch):
    overrides = [
        f"checkpoint={chain / 'reasoner'}", f"tables=[{questions_dir}/test.parquet]", "device=cpu", "max_new_tokens=4",
        f"output_dir={tmp_path / 'cut'}",
    ]  # fmt: skip

    def die_before_the_manifest():
        contracts.write_manifest = lambda *a, **k: running.kill_self()
        running.run("generate_llm_reasoner", *overrides)

    assert running.forked(die_before_the_manifest) == -9
    from podium.engines import transformers as engine

    seen = []
    real = engine.generate
    monkeypatch.setattr(
        engine, "generate", lambda model, tokenizer, asked, **k: seen.append(len(asked) - len(k["skip"])) or real(model, tokenizer, asked, **k)
    )  # fmt: skip
    running.run("generate_llm_reasoner", *overrides)
    assert seen == [0]


# --- hard negatives, refreshed negatives, a teacher ------------------------------------------------------------------


@pytest.fixture(scope="module")
def scores_dir(chain, tmp_path_factory):
    """The candidates' scores as a teacher's table."""
    folder = tmp_path_factory.mktemp("scores")
    candidates = contracts.read_table(chain / "candidates" / "candidates.parquet", contracts.CANDIDATES)
    scores = candidates.drop(columns=["rank", "source"]).assign(model="teacher")
    contracts.write_table(scores, folder / "scores.parquet", contracts.SCORES)
    return folder


def retriever_losses(trainer, folder, *more):
    running.run("train_llm_embedding", *trainer(folder, *more))
    return [line["loss"] for line in metrics_lines(folder) if "loss" in line]


def test_hard_negatives_teacher_and_refresh_change_the_losses(chain, scores_dir, trainer, tmp_path):
    short = ["loop.max_steps=2", "loop.save_every_steps=null"]
    hard = f"hard_negatives={{candidates: {chain / 'candidates'}, per_query: 3, top: 8, refresh_every_steps: null}}"
    plain = retriever_losses(trainer, tmp_path / "plain", *short)
    negatives = retriever_losses(trainer, tmp_path / "hard", *short, hard)
    distilled = retriever_losses(
        trainer,
        tmp_path / "taught",
        *short,
        hard,
        f"distillation={{scores: {scores_dir}, temperature: 0.5, weight: 0.5}}",
    )
    assert negatives[0] > plain[0], "more documents make the task harder"
    assert len({plain[0], negatives[0], distilled[0]}) == 3
    assert all(map(math.isfinite, plain + negatives + distilled))


def test_refreshed_negatives_reach_the_batches(trainer, tmp_path):
    refresh = "hard_negatives={candidates: null, per_query: 3, top: 8, refresh_every_steps: 2}"
    plain = retriever_losses(trainer, tmp_path / "plain")
    mined = retriever_losses(trainer, tmp_path / "mined", refresh)
    assert mined[:3] == plain[:3], "nothing is mined before step 2, and its table serves the batches after it"
    assert mined[3] > plain[3]
    table = contracts.read_table(
        tmp_path / "mined" / "hard_negatives" / "step-00000002" / "candidates.parquet", contracts.CANDIDATES
    )
    assert table["rank"].max() == 8


def test_negatives_of_another_table_are_refused(chain, trainer, tmp_path):
    folder = tmp_path / "other"
    candidates = contracts.read_table(chain / "candidates" / "candidates.parquet", contracts.CANDIDATES)
    contracts.write_table(candidates.iloc[:32], folder / "candidates.parquet", contracts.CANDIDATES)
    hard = f"hard_negatives={{candidates: {folder}, per_query: 3, top: 8, refresh_every_steps: null}}"
    with pytest.raises(DataError, match="no candidates for training query"):
        running.run("train_llm_embedding", *trainer(tmp_path / "run", hard))
    contracts.write_table(
        candidates.assign(misconception_id=lambda f: f["misconception_id"] + 10_000),
        folder / "candidates.parquet",
        contracts.CANDIDATES,
    )
    with pytest.raises(DataError, match="catalogue"):
        running.run("train_llm_embedding", *trainer(tmp_path / "run2", hard))


# --- wrong inputs end before any model is loaded ---------------------------------------------------------------------


def test_a_checkpoint_of_another_stage_is_refused(chain, questions_dir, tmp_path):
    with pytest.raises(DataError, match="is a embedding checkpoint"):
        running.run(
            "generate_llm_reasoner",
            f"checkpoint={chain / 'retriever'}",
            f"tables=[{questions_dir}/test.parquet]",
            f"output_dir={tmp_path / 'o'}",
        )
    with pytest.raises(DataError, match="is a reasoner checkpoint"):
        running.run(
            "mine_candidates",
            f"checkpoint={chain / 'reasoner'}",
            f"questions_dir={questions_dir}",
            f"tables=[{questions_dir}/test.parquet]",
            f"output_dir={tmp_path / 'p'}",
        )


def test_ranking_trained_folds_is_refused_unless_asked_for(chain, questions_dir, tmp_path):
    with pytest.raises(DataError, match="allow_in_sample"):
        running.run(
            "mine_candidates",
            f"checkpoint={chain / 'retriever'}",
            f"questions_dir={questions_dir}",
            f"tables=[{questions_dir}/questions.parquet]",
            f"output_dir={tmp_path / 'o'}",
        )


def test_the_run_record_is_not_an_input_of_later_stages(chain):
    assert RUN not in contracts.read_manifest(chain / "reasoner")["files"]
