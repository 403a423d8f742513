"""Quantisation: refusals, calibration texts and the report; with llmcompressor installed also the thing itself."""

import importlib.util
import json
import sys

import numpy as np
import pandas as pd
import pytest
import running
import torch

from podium import contracts, modeling, quantization, tokenization
from podium.errors import DataError, MissingFileError, PrerequisiteError

HAS_COMPRESSOR = importlib.util.find_spec("llmcompressor") is not None


def command(monkeypatch, *arguments):
    monkeypatch.syspath_prepend(str(running.ROOT))
    import awq_quantization

    monkeypatch.setattr(sys, "argv", ["awq_quantization.py", *map(str, arguments)])
    try:
        awq_quantization.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_an_adapter_folder_is_refused_with_the_merge_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    code = command(monkeypatch, "--model_path", tmp_path, "--quant_path", tmp_path / "q", "--calib_data", "none")
    assert code == 5 and "code/merge_adapter.py" in capsys.readouterr().err


@pytest.mark.skipif(HAS_COMPRESSOR, reason="llmcompressor is installed")
def test_without_llmcompressor_the_install_line_is_shown(backbone_dir, tmp_path):
    with pytest.raises(PrerequisiteError, match="quantise"):
        quantization.quantise(str(backbone_dir), str(tmp_path), ["a", "b"], 64, "awq", 64)


def test_calibration_texts_come_from_any_table(tmp_path):
    frame = pd.DataFrame({"text": ["one", "two", " ", "three"], "other": [1, 2, 3, 4]})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    (tmp_path / "a.txt").write_text("one\ntwo\n \nthree\n")
    for name in ("a.parquet", "a.jsonl", "a.txt"):
        assert quantization.calibration_texts(str(tmp_path / name), 2) == ["one", "two"]
    frame[["other"]].to_parquet(tmp_path / "b.parquet")
    pd.DataFrame({"text": ["of c"]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match="column `text`"):
        quantization.calibration_texts(str(tmp_path / "b.parquet"), 2)
    for name in ("nobody/no-such-set", "outputs/no-such-file.parquet", "/no/such/folder"):
        with pytest.raises(MissingFileError, match="export_published"):
            quantization.calibration_texts(name, 2)
    with pytest.raises(DataError, match=r"a.csv.*6 in all"):
        quantization.calibration_texts(str(tmp_path), 2)
    assert quantization.calibration_texts(str(tmp_path), 2, stage="c") == ["of c"]
    (tmp_path / "d.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="d.parquet: cannot be read"):
        quantization.calibration_texts(str(tmp_path / "d.parquet"), 2)


def test_parity_is_exact_for_equal_models_and_notices_a_swap():
    before = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    same = quantization.parity(before, before.clone(), [3, 4])
    assert (
        same["relative_logit_error"] == 0
        and same["top1_agreement"] == 1
        and same["score_kendall_tau"] == pytest.approx(1)
    )
    swapped = before.clone()
    swapped[:, [3, 4]] = before[:, [4, 3]]
    other = quantization.parity(before, swapped, [3, 4])
    assert other["score_kendall_tau"] == pytest.approx(-1) and other["label_top1_agreement"] == 0


needs_compressor = pytest.mark.skipif(not HAS_COMPRESSOR, reason="needs llmcompressor (pip install -e '.[quantise]')")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory, questions_dir, backbone_dir, groups_dir, generated_dir):
    """A merged pointwise ranker and calibration texts for it, made by the project's own scripts."""
    adapter, merged, texts = (tmp_path_factory.mktemp(name) for name in ("adapter", "merged", "texts"))
    running.run(
        "train_ranker_pointwise", f"output_dir={adapter}", f"data.questions_dir={questions_dir}", f"model.backbone={backbone_dir}",
        f"groups={groups_dir}", f"rationales={generated_dir}", "device=cpu", "data.validation_rows=12", "loop.max_steps=20",
        "loop.epochs=null", "loop.batch_size=6", "optimizer.lr=0.01", "max_length_tokens=400",
        "model.lora={rank:4,alpha:16,dropout:0,target_modules:[q_proj,v_proj,up_proj]}",
    )  # fmt: skip
    running.script("merge_adapter").merge(str(adapter), str(merged))
    running.run(
        "export_published", f"questions_dir={questions_dir}", f"output_dir={texts}", "calibration_rows=30", "list_size=3",
        "refuse_leaks=false",
    )  # fmt: skip
    return merged, texts / "calibration"


def test_a_rankers_own_lists_are_found_by_its_config(ranker, tmp_path):
    folder, _ = ranker
    meta = contracts.read_meta(folder)
    own = quantization.own_lists(str(folder), meta, 5)
    assert len(own.lists) == 5 and own.use_rationale and own.seen
    tokenizer = tokenization.load_tokenizer(folder)
    model = modeling.LabelScorer(modeling.load_backbone(folder, "causal_lm")).eval()
    every = quantization.own_lists(str(folder), meta, 100)
    figures = quantization.own_figures(model, folder, meta, tokenizer, every)
    last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert figures[quantization.MAP] == pytest.approx(last[f"eval/{quantization.MAP}"]), (
        "as the training run measured it"
    )
    assert "config.yaml" in quantization.own_lists(str(tmp_path), meta, 5)
    assert "eval_queries" in quantization.own_lists(str(folder), meta, 0)
    text = (folder / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("groups: ", "groups: /elsewhere"))
    assert "/elsewhere" in quantization.own_lists(str(tmp_path), meta, 5)


def test_a_merged_ranker_has_its_card_and_opens_as_a_cross_encoder(ranker, rows):
    """As `merge_adapter.py` leaves it."""
    from sentence_transformers import CrossEncoder

    from podium import prompts, ranking

    folder, _ = ranker
    meta = contracts.read_meta(folder)
    card = (folder / "README.md").read_text()
    assert (
        "code/merge_adapter.py" in card and "CrossEncoder" in card and "base_model:" not in card
    )  # a folder is no Hub id
    model = modeling.LabelScorer(modeling.load_backbone(folder, "causal_lm")).eval()
    ids = sorted(rows.names)[:6]
    (ours,) = ranking.score(
        model, folder, meta, tokenization.load_tokenizer(folder), rows, [(0, ids)], use_rationale=False,
        max_tokens_per_batch=4096, quiet=True,
    )  # fmt: skip
    parts = [prompts.pointwise_parts(rows.text[0], rows.names[one], meta.prompt_style) for one in ids]
    pairs = [(context, name + ending) for context, name, ending in parts]
    np.testing.assert_allclose(
        CrossEncoder(str(folder), device="cpu").predict(pairs, show_progress_bar=False), ours, atol=1e-5
    )


@needs_compressor
@pytest.mark.parametrize(
    "method", [pytest.param(one, marks=pytest.mark.long if one == "autoround" else ()) for one in quantization.METHODS]
)
def test_every_method_gives_a_checkpoint_that_transformers_loads(method, ranker, tmp_path, monkeypatch, capsys):
    source, texts = ranker
    out = tmp_path / "out"
    code = command(monkeypatch, "--model_path", source, "--quant_path", out, "--calib_data", texts,
                   "--max_calib_seq_len", "400", "--method", method, "--group_size", "32")  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    report = json.loads((out / quantization.REPORT).read_text())
    assert 0 < report["relative_logit_error"] < 0.6 and report["held_out_prompts"] == 6
    assert report["score_kendall_tau"] is not None and report["bytes_after"] < report["bytes_before"]
    assert report["map_queries"] == 12 and 0 < report["map_after"][quantization.MAP] <= 1
    assert contracts.read_meta(out).kind == "quantised"
    card = (out / "README.md").read_text()
    assert "Kendall" in printed and "Kendall" in card and f"{report['map_after'][quantization.MAP]:.4f} after" in card
    model, _ = modeling.load_checkpoint(out, "causal_lm")
    with torch.inference_mode():
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    with pytest.raises(DataError, match="already holds a model"):
        quantization.quantise(str(source), str(out), ["a", "b"], 64, method, 32)


@needs_compressor
def test_a_quantised_ranker_scores_candidates_and_opens_as_a_cross_encoder(
    ranker, questions_dir, groups_dir, tables, tmp_path, monkeypatch
):
    from sentence_transformers import CrossEncoder
    from transformers import CompressedTensorsConfig

    from podium import prompts
    from podium.batching.queries import make_rows

    source, texts = ranker
    out = tmp_path / "awq"
    assert command(monkeypatch, "--model_path", source, "--quant_path", out, "--calib_data", texts / "pointwise.parquet",
                   "--max_calib_seq_len", "400", "--group_size", "32", "--eval_queries", "0") == 0  # fmt: skip
    test = tables.test.head(4)
    ids = tables.catalogue["misconception_id"].tolist()[:6]
    candidates = pd.DataFrame(
        [(query, rank, one, -float(rank), "drawn") for query in test["query_id"] for rank, one in enumerate(ids, 1)],
        columns=[column.name for column in contracts.CANDIDATES.columns],
    )
    contracts.write_table(test, tmp_path / "test.parquet", contracts.QUESTIONS)
    contracts.write_table(candidates, tmp_path / "candidates.parquet", contracts.CANDIDATES)
    found = {}
    for folder in (source, out):
        scores = tmp_path / f"scores-{folder.name}"
        running.run(
            "score_candidates", f"checkpoint={folder}", f"candidates={tmp_path}", f"questions_dir={questions_dir}",
            f"tables=[{tmp_path}/test.parquet]", f"output_dir={scores}", "device=cpu", "top_k=6",
        )  # fmt: skip
        found[folder] = contracts.read_table(scores / "scores.parquet", contracts.SCORES)["score"].to_numpy()
    assert len(found[out]) == 24
    difference = abs(found[out] - found[source])
    assert 0 < difference.max() < 2 * found[source].std() + 1, "another model, but near the one it was made from"
    rows = make_rows(test, tables.catalogue)
    parts = [
        prompts.pointwise_parts(rows.text[0], rows.names[one], contracts.read_meta(out).prompt_style) for one in ids
    ]
    pairs = [(context, name + ending) for context, name, ending in parts]
    unpacked = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs = CrossEncoder(str(out), device="cpu", model_kwargs=unpacked).predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(theirs, found[out][:6], atol=1e-4)
