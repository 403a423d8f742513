"""The defects of the public recipe (SYSTEMS.md 1.8) that this half could have: each stays out, by number."""

import ast
import dataclasses
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import running
import torch

from podium import config, contracts, intake, metrics, optim, questions, retrieval, training
from podium import tables as stage_tables
from podium.batching.queries import make_rows
from podium.batching.retrieval import RetrievalCollator
from podium.errors import DataError
from podium.mining import negatives_of
from podium.modeling import Embedder, load_backbone

SOURCES = sorted(path for path in running.CODE.rglob("*.py"))


@pytest.fixture(scope="module")
def generated_dir(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    contracts.write_table(
        tables.rationales.assign(model="reasoner"), folder / "rationales.parquet", contracts.RATIONALES
    )
    return folder


def test_01_weight_decay_is_decoupled():
    """A weight without gradient shrinks by lr × decay exactly, whatever Adam's denominator is."""
    layer = torch.nn.Linear(3, 3, bias=False)
    before = layer.weight.detach().clone()
    optimizer = optim.make_optimizer(layer, name="adamw", betas=[0.9, 0.95], eps=1e-8, lr=0.1, weight_decay=0.5)
    layer.weight.grad = torch.zeros(3, 3)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.1 * 0.5))
    assert "AdamW8bit" in (running.CODE / "podium" / "optim.py").read_text()


def test_02_gold_is_never_its_own_negative(rows):
    """Ids of candidates and labels compare in one type, so the gold one is found whatever the file's type was."""
    import pandas as pd

    frame = pd.DataFrame(
        [(query, rank, one) for query, label in zip(rows.query_id, rows.label) for rank, one in enumerate([label, 231, 232], 1)],
        columns=["query_id", "rank", "misconception_id"],
    ).astype({"misconception_id": "Int64"})  # fmt: skip
    for query, pool in negatives_of(frame, rows, 2).items():
        assert rows.label[rows.query_id.index(query)] not in pool


def test_06_a_boolean_is_never_a_string(monkeypatch, capsys, backbone_dir):
    """`--causal_lm False` was true: merging takes no such flag, and settings refuse text for a boolean."""
    monkeypatch.setattr(
        "sys.argv", ["merge_adapter.py", "--adapter_path", "a", "--save_dir", "b", "--causal_lm", "False"]
    )
    with pytest.raises(SystemExit) as stop:
        running.script("merge_adapter").main()
    assert stop.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err
    with pytest.raises(DataError, match="use_wandb"):
        running.settings("train_llm_reasoner", "data.questions_dir=q", "model.backbone=b", "use_wandb='False'")
    for path in SOURCES:
        assert not re.search(r"(?<!d)type=bool", path.read_text()), path


def test_07_mined_negatives_and_teacher_scores_reach_the_loss(rows, tokenizer):
    collator = RetrievalCollator(
        rows, tokenizer, "plain", 256, 0, hard_negatives={rows.query_id[0]: [231]}, hard_negatives_per_query=1,
        teacher={(rows.query_id[0], 231): -2.0},
    )  # fmt: skip
    (batch,) = collator(0, np.arange(2))
    assert 231 in batch["document_ids"].tolist()
    scores = collator.teacher_scores(batch["indices"], batch["document_ids"].tolist())
    assert scores[0, batch["document_ids"].tolist().index(231)] == -2.0


@pytest.mark.parametrize("hard", [0, 4])
def test_08_and_09_every_query_is_visited_every_epoch(hard, rows, tokenizer):
    pool = {query: list(range(200, 224)) for query in rows.query_id}
    collator = RetrievalCollator(rows, tokenizer, "plain", 256, 0, hard_negatives=pool, hard_negatives_per_query=hard)
    batches = training.StepBatches(len(rows), 16, collator, seed=0, steps=training.total_steps(len(rows), 16, 2, None))
    visited = [index for step in range(len(batches)) for batch in batches[step] for index in batch["indices"]]
    assert sorted(visited) == sorted([*range(len(rows))] * 2)


def test_10_no_wall_clock_and_no_unseeded_generator():
    """Nothing is drawn from the clock or from a global generator (but the pauses between API calls)."""
    forbidden = {"random.random", "random.choice", "random.shuffle", "random.sample", "random.seed", "np.random.rand",
                 "np.random.seed", "np.random.choice", "np.random.permutation", "np.random.default_rng", "torch.randperm"}  # fmt: skip
    for path in SOURCES:
        if path.name == "pace.py":
            continue
        tree = ast.parse(path.read_text())
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & forbidden, f"{path}: {calls & forbidden}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and "seed" in ast.unparse(node.func).lower():
                assert "time" not in ast.unparse(node), f"{path}: {ast.unparse(node)}"


def test_11_a_query_without_negatives_or_with_few_is_no_crash(rows, tokenizer):
    for pool in ({}, {rows.query_id[0]: [1]}):
        collator = RetrievalCollator(rows, tokenizer, "plain", 256, 0, hard_negatives=pool, hard_negatives_per_query=15)
        assert collator(0, np.arange(3))[0]["weight"] == 3
        assert set(pool) <= {rows.query_id[0]}, "reading does not change the table"


def test_12_workers_do_not_repeat_their_draws_every_epoch(rows, tokenizer):
    collator = RetrievalCollator(rows, tokenizer, "plain", 256, 0, topic_dropout=0.5)
    per_epoch = -(-len(rows) // 64)
    batches = training.StepBatches(len(rows), 64, collator, seed=0, steps=3 * per_epoch)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(len(batches)), num_workers=1)
    indices = [[i for batch in micro for i in batch["indices"]] for micro in loader]
    assert indices[0] != indices[per_epoch] != indices[2 * per_epoch]


def test_13_topic_and_rationale_dropout_are_drawn_per_epoch(rows, tokenizer):
    collator = RetrievalCollator(rows, tokenizer, "plain", 400, 0, topic_dropout=0.5, rationale_dropout=0.5)
    lengths = [collator(epoch, np.arange(20))[0]["query"]["attention_mask"].sum(1).tolist() for epoch in range(6)]
    assert all(len({one[row] for one in lengths}) > 1 for row in range(20))


def test_14_and_15_the_best_checkpoint_is_chosen_and_not_overwritten(trainer, tmp_path):
    """Rates that ruin the model after its first evaluation: what is exported is the first."""
    running.run(
        "train_llm_reasoner", *trainer(tmp_path, "optimizer.lr=0.01", "loop.max_steps=10", "loop.eval_every_steps=1",
                                       "loop.final_lr_fraction=1.0", "sample_generations=0", "loop.keep=1", "loop.max_grad_norm=1000"),
    )  # fmt: skip
    values = {
        line["step"]: line["eval/loss"]
        for line in map(json.loads, (tmp_path / "metrics.jsonl").open())
        if "eval/loss" in line
    }
    assert len(values) == 10
    best = min(values, key=values.get)
    assert contracts.read_meta(tmp_path).best_metric["loss"] == values[best]
    from safetensors.torch import load_file

    state = load_file(tmp_path / "state" / f"step-{best:08d}" / "weights.safetensors")
    exported = load_file(tmp_path / "model.safetensors")
    shared = [name for name in state if name.removeprefix("backbone.") in exported]
    assert shared and all(state[name].equal(exported[name.removeprefix("backbone.")]) for name in shared)


def test_16_full_fit_says_that_its_figures_are_in_sample(trainer, tmp_path, capsys, tables):
    running.run("train_llm_reasoner", *trainer(tmp_path, "full_fit=true", "loop.max_steps=1", "sample_generations=0"))
    meta = contracts.read_meta(tmp_path)
    assert 0 in meta.folds_trained and meta.extra["validation_in_sample"] is True
    with pytest.raises(DataError, match="in-sample"):
        contracts.refuse_trained_folds(meta, {0}, meta.data_digest, False, "it")
    seen = questions.seen_misconceptions(tables.questions, [1, 2, 3, 4])
    report = metrics.split_mean(np.ones(3), np.array([False] * 3))
    assert report["unseen"] is None and seen


def test_16_a_fold_that_the_backbone_was_trained_on_counts_as_trained(trainer, tmp_path):
    """A retriever that starts from a reasoner inherits the reasoner's folds: its validation rows are in-sample too."""
    running.run(
        "train_llm_reasoner", *trainer(tmp_path / "one", "full_fit=true", "loop.max_steps=1", "sample_generations=0")
    )
    running.run(
        "train_llm_embedding", *trainer(tmp_path / "two", f"model.backbone={tmp_path / 'one'}", "loop.max_steps=1")
    )
    meta = contracts.read_meta(tmp_path / "two")
    assert 0 in meta.folds_trained and meta.extra["validation_in_sample"] is True


def test_19_every_script_names_a_config_that_exists():
    for path in running.CODE.glob("*.py"):
        module = running.script(path.stem)
        if hasattr(getattr(module, "main", None), "stage"):
            assert "base" in config.config_names(module.main.stage), path


def test_24_no_row_is_dropped_from_the_metric(rows, backbone_dir, tokenizer):
    """Every query is ranked, and one that is not raises."""
    embedder = Embedder(load_backbone(backbone_dir, "embedding", dtype="float32").eval(), "last")
    few = dataclasses.replace(
        rows, query_id=rows.query_id[:5], text=rows.text[:5], label=rows.label[:5], rationales=rows.rationales[:5]
    )
    ranked = retrieval.rank(embedder, few, tokenizer, "plain", 256, views=["plain"], top_k=25)
    assert metrics.report(ranked, few.gold(), set())["n"]["all"] == 5
    with pytest.raises(DataError, match="rank every query"):
        metrics.report(ranked[ranked["query_id"] != few.query_id[0]], few.gold(), set())


def test_25_the_metric_is_not_rounded_before_selection(tmp_path):
    import test_training

    figures = iter([0.50001, 0.50002, 0.50001])
    given = test_training.stepper(tmp_path, max_steps=3, eval_every_steps=1)
    progress = training.train(**given, evaluate=lambda model: {"map@25": next(figures)}, best_metric="map@25")
    assert (progress.best_step, progress.best_value) == (2, 0.50002)


def test_27_saving_an_adapter_writes_only_the_adapter(trainer, tmp_path):
    lora = "model.lora={rank: 2, alpha: 4, dropout: 0.0, target_modules: [q_proj], modules_to_save: null}"
    running.run("train_llm_embedding", *trainer(tmp_path, lora, "loop.max_steps=1"))
    from safetensors.torch import load_file

    for path in (tmp_path / "adapter_model.safetensors", *(tmp_path / "state").rglob("weights.safetensors")):
        assert all("lora_" in name for name in load_file(path)), path


def test_28_negatives_across_processes_work_with_a_teacher(rows, tokenizer):
    """Teacher scores are looked up for the gathered documents, so both matrices have the same columns."""
    collator = RetrievalCollator(rows, tokenizer, "plain", 256, 0, teacher={(query, 3): 1.0 for query in rows.query_id})
    (batch,) = collator(0, np.arange(4))
    gathered = [*batch["document_ids"].tolist(), 3, 17, 18]
    assert collator.teacher_scores(batch["indices"], gathered).shape == (4, len(gathered))


def test_29_the_pooled_token_does_not_depend_on_the_tokenizer(rows, tokenizer):
    from podium.batching import retrieval as batching

    documents = batching.tokenize_documents(tokenizer, ["a", "a much longer name"])
    ends = documents["input_ids"][range(2), documents["attention_mask"].sum(1) - 1]
    assert ends.tolist() == [tokenizer.eos_token_id] * 2


@pytest.mark.parametrize("script", ["retrieval_query", "reasoner_prompt"])
def test_30_the_wrong_answer_is_never_cut(script, rows, tokenizer):
    from podium.batching import chat
    from podium.batching import retrieval as batching

    long = dataclasses.replace(
        rows,
        text=[dataclasses.replace(one, question="long " * 900, wrong=f"wrong {one.wrong} end") for one in rows.text],
    )
    for index in range(10):
        if script == "retrieval_query":
            text = batching.query_text(long, index, tokenizer, "plain", 128, rationale="why")
        else:
            text = tokenizer.decode(chat.prompt_ids(long, index, tokenizer, "plain", 128))
        assert long.text[index].wrong in text and long.text[index].correct in text and "why" in text.lower()


def test_31_a_cut_prompt_never_puts_loss_on_the_prompt(rows, tokenizer):
    from podium.batching.chat import CompletionCollator

    long = dataclasses.replace(
        rows, text=[dataclasses.replace(one, question="Answer:\nWhy: " * 300) for one in rows.text]
    )
    collator = CompletionCollator(long, ["the reason"] * len(rows), tokenizer, "plain", 200, 4000, with_name=False)
    (batch,) = collator(0, np.arange(3))
    expected = [*tokenizer(" the reason", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert batch["target"].tolist() == expected * 3


def test_32_validation_loss_is_per_token_and_works_on_one_process(backbone_dir, rows, tokenizer):
    from podium import losses
    from podium.batching.chat import CompletionCollator
    from podium.modeling import LabelScorer

    few = dataclasses.replace(rows, query_id=rows.query_id[:7])
    model = LabelScorer(load_backbone(backbone_dir, "causal_lm", dtype="float32").eval())
    collator = CompletionCollator(
        few, ["x" * (3 * at + 1) for at in range(len(rows))], tokenizer, "plain", 300, 500, with_name=False
    )

    def loss(model, batch):
        return losses.next_token(model(batch["input_ids"], lm_read=batch["lm_read"])[1], batch["target"])

    with torch.no_grad():
        mine = training.mean_loss(model, loss, collator, 7, torch.device("cpu"))["loss"]
        parts = [loss(model, batch)[:2] for at in range(7) for batch in collator(0, np.array([at]))]
    assert mine == pytest.approx(sum(v.item() for v, _ in parts) / sum(w for _, w in parts), rel=1e-5)
    assert mine != pytest.approx(np.mean([v.item() / w for v, w in parts]), rel=1e-3)


def test_34_folds_and_pools_are_reproducible_and_grouped(eedi_dir):
    read = intake.read_folder(eedi_dir)
    one, two = (questions.group_folds(read.train, 5, seed=4) for _ in range(2))
    assert one.equals(two) and not one.equals(questions.group_folds(read.train, 5, seed=5))
    joined = read.train.assign(fold=one["kfold"].to_numpy())
    assert (joined.groupby("ConstructId")["fold"].nunique() == 1).all() and joined["fold"].nunique() == 5
    assert joined["fold"].value_counts().max() < 2 * joined["fold"].value_counts().min() + 20


def test_34_equal_questions_stay_in_one_fold(eedi_dir):
    train = intake.read_folder(eedi_dir).train
    twin = train.iloc[:10].assign(
        QuestionId=lambda f: f["QuestionId"] + 10_000, ConstructId=None, ConstructName=[f"c{at}" for at in range(10)]
    )
    import pandas as pd

    both = pd.concat([train, twin.astype({"ConstructId": "Int64"})], ignore_index=True)
    fold = questions.group_folds(both, 5, 0).set_index("QuestionId")["kfold"]
    assert all(fold[one] == fold[one + 10_000] for one in train["QuestionId"].iloc[:10])


def test_35_what_is_labelled_is_a_column_not_an_id(tables):
    """An id of 2000 or more means nothing: rows without a label are null, and named by their source."""
    shifted = tables.questions.assign(QuestionId=tables.questions["QuestionId"] + 5000)
    assert len(questions.training_rows(shifted)) == len(questions.training_rows(tables.questions)) > 0
    for path in SOURCES:
        numbers = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        text = path.read_text()
        assert not (2000 in numbers and "QuestionId" in text), path


def test_37_one_optimizer_and_one_loop():
    holders = [path for path in SOURCES if "optimizer.step()" in path.read_text()]
    assert [path.name for path in holders] == ["training.py"]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in SOURCES if path.stat().st_size > 200]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("script", ["train_llm_embedding", "mine_candidates"])
def test_gold_rationales_never_reach_evaluation(script, trainer, questions_dir, tmp_path):
    """They name the answer. (SYSTEMS.md counts label leaks among the defects; this is the one ours could have.)"""
    with pytest.raises(DataError, match="gold rationales"):
        stage_tables.read_rationales(questions_dir)
    if script == "train_llm_embedding":
        with pytest.raises(DataError, match="gold rationales"):
            running.run(script, *trainer(tmp_path / "run", f"rationales={questions_dir}"))


def test_labels_outside_the_catalogue_are_refused_at_load(questions_dir, tables, tmp_path, trainer):
    shutil.copytree(questions_dir, tmp_path / "questions")
    (tmp_path / "questions" / "manifest.json").unlink()
    contracts.write_table(
        tables.catalogue.iloc[:50], tmp_path / "questions" / "misconceptions.parquet", contracts.MISCONCEPTIONS
    )
    with pytest.raises(DataError, match="catalogue"):
        running.run("train_llm_embedding", *trainer(tmp_path / "run", f"data.questions_dir={tmp_path / 'questions'}"))
    assert make_rows(tables.questions, tables.catalogue)
