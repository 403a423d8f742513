"""The whole chain end to end with a few steps a stage: demo, predict and ask, as their configs describe them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from podium import config, contracts, pipeline, submission
from podium.errors import ArgumentError, DataError
from podium.settings import Ask, Demo, Predict

FEW = {"reasoner": 3, "retriever": 4, "pointwise": 3, "listwise": 3}


def demo_settings(folder: Path, *overrides: str) -> Demo:
    return config.load(
        Demo, "demo", "base", [f"output_dir={folder}", "questions=240", "test_questions=30", "data_seed=3", *overrides]
    )


def shortened(steps: list[pipeline.Step]) -> list[pipeline.Step]:
    """The same steps with few optimizer steps, small models and few rows."""
    short = []
    for step in steps:
        extra: dict = {}
        if step.name in FEW:
            extra = {"loop.max_steps": FEW[step.name], "loop.eval_every_steps": 2, "data.validation_rows": 20}
        if step.name == "backbone":
            extra = {"hidden_size": 32, "heads": 2, "layers": 2, "intermediate_size": 64}
        if step.name == "rationales":
            extra = {"max_new_tokens": 12, "rows_per_fold": 20}
        if step.name == "candidates":
            extra = {"rows_per_fold": 20}
        short.append(pipeline.Step(step.name, step.script, step.config_name, {**step.overrides, **extra}))
    return short


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import demo

    folder = tmp_path_factory.mktemp("chain") / "demo"
    cfg = demo_settings(folder)
    demo.write_bank(cfg)
    pipeline.run(shortened(pipeline.steps_of(cfg.steps)))
    return folder


def test_results_hold_every_row_and_every_query(chain: Path) -> None:
    results = json.loads((chain / "report" / "results.json").read_text())
    assert [row["stage"] for row in results["rows"]] == [
        "bm25", "construct_oracle", "retriever", "retriever_rationale", "pointwise_alone", "pointwise",
        "listwise_alone", "listwise", "final",
    ]  # fmt: skip
    key = pd.read_csv(chain / "data" / "test_key.csv")
    for row in results["rows"]:
        assert row["n"]["all"] == len(key)
        assert row["n"]["seen"] + row["n"]["unseen"] == len(key)
        assert 0 <= row["map@25"]["all"] <= 1
        low, high = row["ci95"]["all"]
        assert low <= row["map@25"]["all"] <= high
    assert set(results["data"]) == {"questions", "queries_train", "queries_test", "misconceptions", "unseen_share"}
    assert set(results["blends"]["pointwise"]) == {"list", "pointwise/plain", "pointwise/rationale"}


def test_plots_are_pictures(chain: Path) -> None:
    for name in ("map_by_stage.png", "recall_at_k.png", "losses.png"):
        assert (chain / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_second_run_skips_everything(chain: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in chain.rglob("manifest.json")}
    pipeline.run(shortened(pipeline.steps_of(demo_settings(chain).steps)))
    out = capfd.readouterr().out
    assert out.count("up to date") == len(demo_settings(chain).steps)
    assert before == {path: path.stat().st_mtime_ns for path in chain.rglob("manifest.json")}


def test_only_what_depends_on_a_change_runs_again(chain: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps = shortened(pipeline.steps_of(demo_settings(chain).steps))
    changed = [
        pipeline.Step(s.name, s.script, s.config_name, {**s.overrides, "top_k": 4}) if s.name == "listwise_blend" else s
        for s in steps
    ]
    pipeline.run(changed)
    out = capfd.readouterr().out
    assert "pointwise: up to date" in out and "listwise: up to date" in out
    assert "listwise_scores: up to date" in out and "listwise_blend: settings or inputs changed" in out
    pipeline.run(steps)  # put it back for the other tests


def test_typo_in_the_last_step_stops_before_the_first(tmp_path: Path) -> None:
    steps = shortened(pipeline.steps_of(demo_settings(tmp_path / "x").steps))
    steps[-1] = pipeline.Step("report", "report", "base", {**steps[-1].overrides, "tarin_folds": [1]})
    with pytest.raises(ArgumentError, match="train_folds"):
        pipeline.run(steps)
    assert not (tmp_path / "x").exists()


def test_failed_step_is_named_and_keeps_its_exit_code(tmp_path: Path) -> None:
    step = pipeline.Step(
        "questions", "prepare_questions", "base", {"data_dir": str(tmp_path), "output_dir": str(tmp_path / "q")}
    )
    with pytest.raises(Exception, match="step questions ended with exit code 4") as failure:
        pipeline.run([step])
    assert failure.value.exit_code == 4  # type: ignore[attr-defined]


def test_submission_is_valid_and_is_the_final_row(chain: Path) -> None:
    test = contracts.read_table(chain / "questions" / "test.parquet", contracts.QUESTIONS)
    catalogue = set(
        contracts.read_table(chain / "questions" / "misconceptions.parquet", contracts.MISCONCEPTIONS)[
            "misconception_id"
        ]
    )
    path = chain / "submission" / "submission.csv"
    submission.check_submission(path, test["query_id"].tolist(), catalogue, 25)
    frame = pd.read_csv(path)
    assert (frame["MisconceptionId"].str.split().map(len) == 25).all()
    listed = contracts.read_table(chain / "listwise_blend" / "candidates.parquet", contracts.CANDIDATES)
    first = listed[listed["rank"] == 1].set_index("query_id")["misconception_id"]
    assert (
        frame.set_index("QuestionId_Answer")["MisconceptionId"].str.split().str[0].astype(int)
        == first[frame["QuestionId_Answer"]].to_numpy()
    ).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.iloc[1:], "no row for"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "more than once"),
        (lambda f: f.assign(MisconceptionId="1 1"), "distinct"),
        (lambda f: f.assign(MisconceptionId="99999"), "catalogue"),
        (lambda f: f.assign(MisconceptionId=" ".join(map(str, range(26)))), "at most 25"),
        (lambda f: f.rename(columns={"MisconceptionId": "Misconception"}), "Misconception"),
    ],
)
def test_bad_submissions_are_refused(chain: Path, tmp_path: Path, spoil, message: str) -> None:
    test = contracts.read_table(chain / "questions" / "test.parquet", contracts.QUESTIONS)
    frame = pd.read_csv(chain / "submission" / "submission.csv", dtype=str)
    spoil(frame).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(DataError, match=message):
        submission.check_submission(tmp_path / "s.csv", test["query_id"].tolist(), set(range(243)), 25)


def test_predict_from_one_yaml_equals_the_chain(chain: Path, tmp_path: Path) -> None:
    cfg = config.load(
        Predict, "predict", "base", [f"checkpoints={chain}", f"output_dir={tmp_path}/p", f"data_dir={chain}/data"]
    )
    steps = [
        pipeline.Step(
            s.name,
            s.script,
            s.config_name,
            {**s.overrides, **({"max_new_tokens": 12} if s.name == "rationales" else {})},
        )
        for s in pipeline.steps_of(cfg.steps)
    ]
    pipeline.run(steps)
    ours = (tmp_path / "p" / "submission" / "submission.csv").read_text()
    assert ours == (chain / "submission" / "submission.csv").read_text()


def test_ask_as_json(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ask

    typed = ["--json", f"chain={chain}", "question=What is 3 + 4, please?", "correct=7.0", "wrong=0.50", "top_k=3"]
    cfg = config.load(Ask, "ask", "base", ask.as_overrides(typed))
    assert (cfg.question, cfg.correct, cfg.wrong) == ("What is 3 + 4, please?", "7.0", "0.50")
    ask.main.body(cfg)  # type: ignore[attr-defined]
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["rank"] for row in answer["misconceptions"]] == [1, 2, 3]
    assert answer["misconceptions"][0]["score"] >= answer["misconceptions"][1]["score"]
    assert isinstance(answer["rationale"], str)
