"""The chain of docs/eedi.md, command by command, with tiny backbones: what a stage writes is what the next one's config reads."""

import json
import math
import shlex

import numpy as np
import pandas as pd
import published
import pytest
import running

from podium import contracts, datasets

TRAINERS = ("train_llm_embedding", "train_llm_reasoner", "train_ranker_pointwise", "train_ranker_listwise")


def chain():
    """(script, config name, arguments) of every line between the marks of docs/eedi.md."""
    text = (running.ROOT / "docs" / "eedi.md").read_text()
    block = text.split("<!-- chain -->")[1].split("<!-- /chain -->")[0]
    for line in filter(None, map(str.strip, block.splitlines())):
        words = shlex.split(line.removeprefix("accelerate launch").removeprefix("python"))
        script, *arguments = words
        name = "base"
        if arguments[0] == "--config-name":
            name, arguments = arguments[1], arguments[2:]
        yield script.split("/")[-1].removesuffix(".py"), name, arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory, eedi_dir, backbones):
    """The repository's root after the last command."""
    work = tmp_path_factory.mktemp("recipe") / "repository"
    published.write_all(eedi_dir, work / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        for script, name, arguments in chain():
            if script == "merge_adapter":
                given = dict(zip(arguments[::2], arguments[1::2], strict=True))
                running.script(script).merge(given["--adapter_path"], given["--save_dir"], str(backbones / "untied"))
                continue
            more = ["loop.max_steps=2", "device=cpu"] if script in TRAINERS else []
            if script in TRAINERS and name != "conf_qwen14b_finetune":  # that one reads the merged first stage
                more.append(f"model.backbone={backbones / 'untied'}")
            if script == "generate_llm_reasoner":
                arguments = [one for one in arguments if "max_new_tokens" not in one] + ["max_new_tokens=4"]
            running.run(script, *arguments, *more, config_name=name)
    return work


def test_every_stage_has_trained_on_what_the_stages_before_it_wrote(place):
    eedi = place / "outputs" / "eedi"
    read = {
        folder.name: contracts.read_manifest(folder)["inputs"]
        for folder in [*(place.parent / "models").iterdir(), *eedi.iterdir()]
    }
    made = {
        name: contracts.input_digest(eedi / name)
        for name in ("rationales", "candidates", "groups", "teacher", "taught")
    }
    assert (
        contracts.read_meta(place.parent / "models" / "eedi_embed_qwen14b").base_model
        == "../models/eedi_embed_qwen14b_pretrain"
    )
    assert read["groups"]["candidates"]["digest"] == made["candidates"]
    assert read["eedi_pointwise_72b"]["groups"]["digest"] == made["groups"]
    assert read["taught"]["teacher"]["digest"] == made["teacher"]
    for student in ("eedi_pointwise_14b", "eedi_listwise_72b"):
        assert read[student]["groups"]["digest"] == made["taught"]
        assert read[student]["rationales"]["digest"] == made["rationales"]
    for model in (place.parent / "models").iterdir():
        meta = contracts.read_meta(model)
        assert 0 not in meta.folds_trained and meta.folds_trained
        if (model / "metrics.jsonl").is_file():
            lines = [json.loads(line) for line in (model / "metrics.jsonl").open()]
            assert len([line for line in lines if math.isfinite(line.get("loss", math.nan))]) == 2
            parts = {key.split("/")[-1] for line in lines for key in line if key.startswith("eval/map@25")}
            assert meta.stage == "reasoner" or {"all", "seen", "unseen"} <= parts | {"all"}


def test_the_teacher_has_scored_every_candidate_of_every_training_group(place):
    taught = contracts.read_table(place / "outputs/eedi/taught/groups.parquet", contracts.GROUPS)
    asked = contracts.read_table(
        place / "outputs/tables/eedi-embed-mix-silver-v3/questions.parquet", contracts.QUESTIONS
    )
    train = asked.loc[asked["misconception_id"].notna() & (asked["fold"] != 0), "query_id"]
    groups = taught[taught["query_id"].isin(train)]
    assert len(groups) > 100 and groups["teacher_score"].notna().all()
    missed = groups[groups["label"] & groups["rank"].isna()]
    assert len(missed), "some gold must be outside the mined list, or this test shows little"
    held = taught[~taught["query_id"].isin(train)]
    assert (
        held.loc[held["rank"] <= 25, "teacher_score"].notna().all() and not (held["label"] & held["rank"].isna()).any()
    )


def test_the_exported_sets_pass_the_checks_of_the_published_ones(place):
    out = place / "outputs" / "eedi" / "published"
    for name, folder in (
        ("eedi-five-folds", out),
        ("eedi-ranker-silver-v3-teacher-blended-cot", out / "ranker"),
        ("eedi-tutor-mix-v8", out / "listwise"),
    ):
        assert datasets.problems(datasets.by_name(name), folder) == []
    ranked = pd.read_parquet(out / "ranker" / "train.parquet")
    assert np.isfinite(ranked["teacher_score"]).all() and ranked["cot"].notna().all()
    assert json.loads((out / "hn_mapping.json").read_text()) and json.loads((out / "teacher_mapping.json").read_text())
