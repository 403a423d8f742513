"""What lies on disk between stages: tables, atomic files, manifests, locks, checkpoint meta."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import running

from podium import config, contracts, stage
from podium.contracts import CANDIDATES, MISCONCEPTIONS, QUESTIONS, RATIONALES, SCORES, TABLES, CheckpointMeta
from podium.errors import DataError, MissingFileError, PodiumError


def questions_frame():
    return pd.DataFrame(
        {
            "query_id": ["1_A", "1_B", "2_A"],
            "QuestionId": [1, 1, 2],
            "SubjectId": pd.array([3, 3, None], dtype="Int64"),
            "SubjectName": ["Algebra", "Algebra", ""],
            "ConstructId": pd.array([7, 7, None], dtype="Int64"),
            "ConstructName": ["Expand", "Expand", "Simplify"],
            "QuestionText": ["2(x+1) =", "2(x+1) =", 'x\n"y", é'],
            "CorrectAnswerText": ["2x+2", "2x+2", ""],
            "InCorrectAnswerText": ["2x+1", "x+2", "3"],
            "AllOptionText": ["A. …", "A. …", "A. …"],
            "misconception_id": pd.array([0, None, 12], dtype="Int64"),
            "source": ["train", "train", "test"],
            "fold": pd.array([0, 99, None], dtype="Int64"),
        }
    )


FRAMES = {
    "questions": questions_frame,
    "misconceptions": lambda: pd.DataFrame({"misconception_id": [0, 12], "name": ["adds", "halves"]}),
    "candidates": lambda: pd.DataFrame(
        {"query_id": ["1_A", "1_A", "1_B"], "rank": [1, 2, 1], "misconception_id": [12, 0, 0], "score": [0.5, -1.0, 2.0],
         "source": "retriever"}
    ),
    "rationales": lambda: pd.DataFrame(
        {"query_id": ["1_A", "1_A"], "model": "m", "sample": [0, 1], "text": ["adds", ""], "finish_reason": "stop",
         "n_tokens": [3, 0]}
    ),
    "scores": lambda: pd.DataFrame(
        {"query_id": ["1_A", "1_A"], "misconception_id": [0, 12], "model": "m", "score": [0.25, -3.0]}
    ),
}  # fmt: skip


@pytest.fixture(params=TABLES, ids=lambda table: table.name)
def table(request):
    return request.param


@pytest.fixture
def frame(table):
    return FRAMES.get(table.name, lambda: two_rows(table))()


def two_rows(table):
    """Two rows that fit a table for which nothing is written above."""
    return pd.DataFrame(
        {
            c.name: ["a", "b"] if c.type == pa.string() else pa.array([1, 2]).cast(c.type).to_pylist()
            for c in table.columns
        }
    )


def test_a_table_round_trips(table, frame, tmp_path):
    path = contracts.write_table(frame, tmp_path / "table.parquet", table)
    back = contracts.read_table(path, table)
    assert list(back.columns) == [column.name for column in table.columns]
    pd.testing.assert_frame_equal(back, frame[back.columns], check_dtype=False)
    assert contracts.write_table(back, tmp_path / "again.parquet", table).read_bytes() == path.read_bytes()


def test_ids_stored_as_floats_come_back_as_one_type(tmp_path):
    frame = questions_frame()
    loose = frame.assign(misconception_id=[0.0, np.nan, 12.0], fold=[0.0, 99.0, np.nan])
    loose.to_parquet(tmp_path / "table.parquet")
    back = contracts.read_table(tmp_path / "table.parquet", QUESTIONS)
    assert back["misconception_id"].tolist()[::2] == [0, 12] and back["misconception_id"].dtype == "Int64"


def test_every_missing_or_extra_column_is_refused(table, frame, tmp_path):
    for column in frame.columns:
        with pytest.raises(DataError, match=column):
            contracts.write_table(frame.drop(columns=column), tmp_path / "t.parquet", table)
        frame.drop(columns=column).to_parquet(tmp_path / "bad.parquet")
        with pytest.raises(DataError, match=column):
            contracts.read_table(tmp_path / "bad.parquet", table)
    with pytest.raises(DataError, match="extra"):
        contracts.validate(frame.assign(extra=1), table, "here")
    assert not (tmp_path / "t.parquet").exists()


def test_every_null_is_refused_where_a_value_is_needed(table, frame, tmp_path):
    for column in table.columns:
        bad = frame.astype({column.name: object})
        bad.loc[bad.index[0], column.name] = None
        if column.nullable:
            contracts.validate(bad, table, "here")
        else:
            with pytest.raises(DataError, match=column.name):
                contracts.write_table(bad, tmp_path / "t.parquet", table)


def test_a_doubled_key_is_refused(table, frame):
    with pytest.raises(DataError, match="not unique"):
        contracts.validate(pd.concat([frame, frame.iloc[:1]]), table, "here")


def test_wrong_types_are_refused_at_writing_and_reading(table, frame, tmp_path):
    for column in table.columns:
        bad = frame.astype({column.name: object})
        bad[column.name] = ["text"] * len(bad) if column.type != pa.string() else list(range(len(bad)))
        with pytest.raises(DataError):
            contracts.write_table(bad, tmp_path / "t.parquet", table)
        if column.type != pa.string():  # numbers read into a string column are harmless: they become their text
            bad.to_parquet(tmp_path / "bad.parquet")
            with pytest.raises(DataError):
                contracts.read_table(tmp_path / "bad.parquet", table)
    with pytest.raises(DataError):
        contracts.write_table(FRAMES["scores"]().assign(misconception_id=[0.5, 1.0]), tmp_path / "t.parquet", SCORES)


def test_text_that_is_not_unicode_is_refused(tmp_path):
    with pytest.raises(DataError):
        contracts.write_table(
            FRAMES["misconceptions"]().assign(name=pd.Series(["a", "\ud800"], dtype=object)),
            tmp_path / "t",
            MISCONCEPTIONS,
        )


@pytest.mark.parametrize("ranks", [[1, 3, 1], [0, 1, 1], [2, 3, 1]])
def test_ranks_have_no_gaps(ranks):
    with pytest.raises(DataError, match="rank"):
        contracts.validate(FRAMES["candidates"]().assign(rank=ranks), CANDIDATES, "here")


def test_a_misconception_is_ranked_once_a_query():
    with pytest.raises(DataError, match="misconception_id"):
        contracts.validate(FRAMES["candidates"]().assign(misconception_id=[12, 12, 0]), CANDIDATES, "here")


def test_a_cut_table_is_refused_at_every_length(tmp_path):
    whole = contracts.write_table(FRAMES["rationales"](), tmp_path / "t.parquet", RATIONALES).read_bytes()
    for length in {0, 3, 4, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 4, len(whole) - 1}:
        (tmp_path / "cut.parquet").write_bytes(whole[:length])
        with pytest.raises(DataError, match="produce it again"):
            contracts.read_table(tmp_path / "cut.parquet", RATIONALES)


def test_doubled_parquet_columns_are_refused(tmp_path):
    arrow = pa.table([[1, 2], [1, 2], ["a", "b"]], names=["misconception_id", "misconception_id", "name"])
    pq.write_table(arrow, tmp_path / "t.parquet")
    with pytest.raises(DataError):
        contracts.read_table(tmp_path / "t.parquet", MISCONCEPTIONS)


def test_a_missing_table_says_what_is_there(tmp_path):
    (tmp_path / "other.parquet").touch()
    with pytest.raises(MissingFileError, match=r"other\.parquet"):
        contracts.read_table(tmp_path / "t.parquet", SCORES)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_write_keeps_the_old_file(call, code, tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    contracts.write_json(path, "old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError):
            contracts.write_json(path, "new")
    assert contracts.read_json(path, "it") == "old"
    assert os.listdir(tmp_path) == ["t.json"]


def test_a_writer_killed_half_way_keeps_the_old_file(tmp_path):
    path = tmp_path / "t.json"
    contracts.write_json(path, "old")

    def die():
        with contracts.atomic_file(path) as handle:
            handle.write(b'"half')
            running.kill_self()

    assert running.forked(die) == -9
    assert contracts.read_json(path, "it") == "old"


def test_json_that_is_no_json_is_refused(tmp_path):
    for raw in (b"", b"{", b"\xff\xfe", b"{'a': 1}"):
        (tmp_path / "t.json").write_bytes(raw)
        with pytest.raises(DataError, match="not valid JSON"):
            contracts.read_json(tmp_path / "t.json", "the thing")


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    def second():
        with contracts.output_folder(tmp_path / "run"):
            pass

    with contracts.output_folder(tmp_path / "run"):
        assert running.forked(second) == 6
        with pytest.raises(PodiumError, match=f"in use by process {os.getpid()} on"):
            second()
    assert running.forked(second) == 0


def test_a_killed_holder_leaves_no_lock(tmp_path):
    def hold():
        with contracts.output_folder(tmp_path):
            running.kill_self()

    assert running.forked(hold) == -9
    with contracts.output_folder(tmp_path):
        pass


def test_an_output_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PodiumError, match="file"):
            with contracts.output_folder(folder):
                pass


# --- manifests -------------------------------------------------------------------------------------------------------


@pytest.fixture
def chain(tmp_path):
    """A raw file, a stage that read it, and a stage that read that."""
    raw, first, second = tmp_path / "raw.csv", tmp_path / "first", tmp_path / "second"
    raw.write_text("a,b\n1,2\n")
    for folder, inputs in ((first, {"raw": raw}), (second, {"first": first})):
        folder.mkdir()
        (folder / "state").mkdir()
        (folder / "state" / "weights").write_text("not listed")
        (folder / "table.txt").write_text("content")
        contracts.write_manifest(folder, stage="s", config_digest="c", inputs=inputs, rows={"table": 1}, facts={"f": 2})
    return raw, first, second


def test_a_manifest_lists_what_was_read_and_written(chain):
    raw, first, _ = chain
    manifest = contracts.read_json(first / "manifest.json", "it")
    assert manifest["rows"] == {"table": 1} and manifest["f"] == 2 and manifest["stage"] == "s"
    assert manifest["inputs"] == {"raw": {"path": str(raw), "digest": contracts.sha256(raw)}}
    assert manifest["files"] == {"table.txt": {"bytes": 7, "sha256": contracts.sha256(first / "table.txt")}}


def test_is_current_until_something_changes(chain):
    raw, first, second = chain
    assert contracts.is_current(first, "c") and contracts.is_current(second, "c")
    assert not contracts.is_current(first, "another config")
    raw.write_text("a,b\n1,3\n")
    assert not contracts.is_current(first, "c")
    assert contracts.is_current(second, "c"), "the first stage's files have not changed yet"
    raw.write_text("a,b\n1,2\n")
    (first / "table.txt").write_text("other")
    assert not contracts.is_current(first, "c")
    (first / "table.txt").unlink()
    assert not contracts.is_current(first, "c")
    raw.unlink()
    assert not contracts.is_current(first, "c")


def test_a_rewritten_input_makes_its_reader_out_of_date(chain):
    _, first, second = chain
    (first / "table.txt").write_text("changed")
    contracts.write_manifest(first, stage="s", config_digest="c", inputs={}, rows={"table": 1})
    assert not contracts.is_current(second, "c")


def test_a_rerun_with_the_same_bytes_changes_nothing_downstream(chain):
    _, first, second = chain
    (first / "config.yaml").write_text("device: cpu")
    (first / "run.json").write_text("{}")
    contracts.write_manifest(first, stage="s", config_digest="d", inputs={}, rows={"table": 1})
    assert contracts.is_current(second, "c")


def test_a_folder_without_manifest_counts_by_content(tmp_path):
    (tmp_path / "train.csv").write_text("QuestionId\n12\n")
    before = contracts.input_digest(tmp_path)
    (tmp_path / "train.csv").write_text("QuestionId\n13\n")
    assert contracts.input_digest(tmp_path) != before, "a corrected digit must not go unnoticed"
    (tmp_path / "train.csv").write_text("QuestionId\n12\n")
    assert contracts.input_digest(tmp_path) == before
    (tmp_path / "test.csv").touch()
    assert contracts.input_digest(tmp_path) != before


@pytest.mark.parametrize("raw", ["[]", "{}", '{"config": "c"}', "null", "{"])
def test_a_damaged_manifest_is_refused(raw, chain):
    _, first, _ = chain
    (first / "manifest.json").write_text(raw)
    with pytest.raises(DataError, match="manifest"):
        contracts.is_current(first, "c")


# --- claimed runs ----------------------------------------------------------------------------------------------------


def test_changed_settings_or_inputs_are_refused_with_the_differences(eedi_dir, tmp_path):
    raw = tmp_path / "raw.csv"
    raw.write_text("a")
    cfg = running.settings("prepare_questions", f"data_dir={eedi_dir}", f"output_dir={tmp_path / 'run'}")
    with stage.run("prepare_questions", cfg, {"raw": raw}) as first:
        assert not first.finished
    changed = running.settings("prepare_questions", f"data_dir={eedi_dir}", f"output_dir={tmp_path / 'run'}", "seed=7")
    raw.write_text("b")
    with pytest.raises(DataError, match=r"(?s)inputs\.raw.*settings\.seed: 0 -> 7.*delete the folder"):
        with stage.run("prepare_questions", changed, {"raw": raw}):
            pass


def test_a_finished_run_has_nothing_to_do(eedi_dir, tmp_path, capsys):
    overrides = [f"data_dir={eedi_dir}", f"output_dir={tmp_path / 'q'}"]
    running.run("prepare_questions", *overrides)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "q").glob("*.parquet")}
    capsys.readouterr()
    running.run("prepare_questions", *overrides)
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "q").glob("*.parquet")}
    (tmp_path / "q" / "questions.parquet").unlink()
    running.run("prepare_questions", *overrides)
    assert (tmp_path / "q" / "questions.parquet").is_file()


def test_a_missing_input_is_exit_code_4(tmp_path):
    cfg = running.settings("prepare_questions", "data_dir=x", f"output_dir={tmp_path / 'run'}")
    with pytest.raises(MissingFileError, match="input `raw`"):
        with stage.run("prepare_questions", cfg, {"raw": tmp_path / "nope"}):
            pass
    assert not (tmp_path / "run").exists()


# --- checkpoint meta -------------------------------------------------------------------------------------------------

META = CheckpointMeta(
    stage="embedding", kind="full", base_model="b", pooling="last", folds_trained=[1, 2], data_digest="d"
)


def test_meta_round_trips(tmp_path):
    contracts.write_meta(tmp_path, META)
    assert contracts.read_meta(tmp_path) == contracts.read_meta(tmp_path, ("reasoner", "embedding")) == META


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    contracts.write_meta(tmp_path, META)
    with pytest.raises(DataError, match="is a embedding checkpoint; this script needs reasoner"):
        contracts.read_meta(tmp_path, "reasoner")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="training script"):
        contracts.read_meta(tmp_path)


@pytest.mark.parametrize(
    "values",
    [[], {}, None, "text", {"stage": "embedding"}, {"stage": "a", "kind": "b", "base_model": "c", "future": 1}],
)
def test_a_damaged_meta_is_refused(values, tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"meta\.json"):
        contracts.read_meta(tmp_path)


def test_evaluating_on_a_trained_fold_is_refused():
    assert contracts.refuse_trained_folds(META, {0}, "d", allowed=False, where="w") is False
    assert contracts.refuse_trained_folds(META, {1}, "d", allowed=True, where="w") is True
    assert contracts.refuse_trained_folds(META, {1}, "another table", allowed=False, where="w") is False
    with pytest.raises(DataError, match="allow_in_sample"):
        contracts.refuse_trained_folds(META, {0, 2}, "d", allowed=False, where="w")


def test_digest_ignores_what_it_is_told_to(eedi_dir):
    one = running.settings("prepare_questions", f"data_dir={eedi_dir}", "output_dir=a")
    two = running.settings("prepare_questions", f"data_dir={eedi_dir}", "output_dir=b")
    assert config.digest(one) != config.digest(two)
    assert config.digest(one, ("output_dir",)) == config.digest(two, ("output_dir",))
