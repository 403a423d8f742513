"""Bad input is refused before anything is built on it; harmless oddities are counted."""

import io
import shutil
from pathlib import Path

import hypothesis.strategies as st
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import running
from hypothesis import HealthCheck, Phase, given, settings

from podium import contracts, intake
from podium.errors import DataError, MissingFileError, PodiumError

TRAIN = pd.DataFrame(
    [
        ["1", "11", "Add fractions", "5", "Number", "A", "1/2 + 1/3 =", "5/6", "2/5", "1/6", "2/6", "", "3", "", "12"],
        ["2", "11", "Add fractions", "5", "Number", "C", "1/4 + 1/2 =", "2/6", "1/6", "3/4", "1/8", "3", "", "", ""],
        ["3", "12", "Expand", "6", "Algebra", "D", "2(x+1) =", "2x+1", "x+2", "3x", "2x+2", "0", "12", "", ""],
    ],
    columns=["QuestionId", "ConstructId", "ConstructName", "SubjectId", "SubjectName", "CorrectAnswer", "QuestionText",
             "AnswerAText", "AnswerBText", "AnswerCText", "AnswerDText",
             "MisconceptionAId", "MisconceptionBId", "MisconceptionCId", "MisconceptionDId"],
)  # fmt: skip
MAPPING = pd.DataFrame({"MisconceptionId": ["0", "3", "12"], "MisconceptionName": ["forgets b", "adds tops", "halves"]})
FOLDS = pd.DataFrame({"QuestionId": [1, 2, 3], "kfold": [0, 1, 2]})
TEST = TRAIN.assign(QuestionId=["21", "22", "23"])[[c for c in TRAIN.columns if not c.startswith("Misconception")]]
KEY = pd.DataFrame({"QuestionId_Answer": ["21_B", "23_A"], "MisconceptionId": ["3", "0"]})
WRITTEN = pd.DataFrame({"query_id": ["1_B", "3_A"], "Explanation": ["adds tops and bottoms", "forgets b"]})


class Files:
    """An Eedi folder in memory: frames, and last changes to a file's bytes."""

    def __init__(self):
        self.csv = {
            "train.csv": TRAIN.copy(), "misconception_mapping.csv": MAPPING.copy(), "test.csv": TEST.copy(),
            "test_key.csv": KEY.copy(), "synthetic.csv": WRITTEN.copy(),
        }  # fmt: skip
        self.folds = FOLDS.copy()
        self.bytes = {}

    def write(self, folder):
        folder = Path(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, frame in self.csv.items():
            if frame is not None:
                raw = frame.to_csv(index=False).encode()
                (folder / name).write_bytes(self.bytes[name](raw) if name in self.bytes else raw)
        if self.folds is not None:
            buffer = io.BytesIO()
            self.folds.to_parquet(buffer, index=False)
            raw = buffer.getvalue()
            (folder / "folds.parquet").write_bytes(
                self.bytes["folds.parquet"](raw) if "folds.parquet" in self.bytes else raw
            )
        return folder


@pytest.fixture
def files():
    return Files()


def prepare(files, tmp_path, *more):
    data = files.write(tmp_path / "data")
    running.run("prepare_questions", f"data_dir={data}", f"output_dir={tmp_path / 'questions'}", *more)
    return contracts.read_table(tmp_path / "questions" / "questions.parquet", contracts.QUESTIONS)


def refused(files, tmp_path, *parts, error=DataError):
    """prepare_questions refuses the folder with one line that has all parts, and writes nothing."""
    with pytest.raises(error) as caught:
        prepare(files, tmp_path)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message
    assert not (tmp_path / "questions").exists()


def test_a_clean_folder_is_read_without_warnings(files, tmp_path, capsys):
    table = prepare(files, tmp_path)
    assert table["query_id"].tolist() == ["1_B", "1_C", "1_D", "2_A", "2_B", "2_D", "3_A", "3_B", "3_C"]
    assert table["misconception_id"].fillna(-1).tolist() == [3, -1, 12, 3, -1, -1, 0, 12, -1]
    assert table["fold"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert table.loc[0, "AllOptionText"] == "A. 5/6\nB. 2/5\nC. 1/6\nD. 2/6"
    assert table.loc[0, "CorrectAnswerText"] == "5/6" and table.loc[0, "InCorrectAnswerText"] == "2/5"
    assert "warning" not in capsys.readouterr().out


# --- every class of bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.csv", "misconception_mapping.csv"])
def test_missing_file(name, files, tmp_path):
    files.csv[name] = None
    refused(files, tmp_path, name, error=MissingFileError)


def test_missing_folder(tmp_path):
    with pytest.raises(MissingFileError, match="no such folder"):
        intake.read_folder(tmp_path / "nope")


@pytest.mark.parametrize("column", list(TRAIN.columns))
def test_missing_column(column, files, tmp_path):
    files.csv["train.csv"] = TRAIN.drop(columns=column)
    refused(files, tmp_path, "train.csv", column, "missing")


@pytest.mark.parametrize("name", ["misconception_mapping.csv", "test.csv", "test_key.csv", "synthetic.csv"])
def test_missing_column_of_another_file(name, files, tmp_path):
    column = files.csv[name].columns[0]
    files.csv[name] = files.csv[name].drop(columns=column).assign(other="x")
    refused(files, tmp_path, name, column, "missing")


def test_missing_column_of_folds(files, tmp_path):
    files.folds = FOLDS.rename(columns={"kfold": "fold"})
    refused(files, tmp_path, "folds.parquet", "kfold")


def test_doubled_column(files, tmp_path):
    files.csv["train.csv"].insert(3, "QuestionText", "again", allow_duplicates=True)
    refused(files, tmp_path, "train.csv", "QuestionText", "more than once")


def test_doubled_column_of_folds(files, tmp_path):
    arrow = pa.table([[1, 2, 3], [0, 1, 2], [0, 1, 2]], names=["QuestionId", "kfold", "kfold"])
    buffer = io.BytesIO()
    pq.write_table(arrow, buffer)
    files.bytes["folds.parquet"] = lambda _: buffer.getvalue()
    refused(files, tmp_path, "folds.parquet")


def test_duplicate_question_id(files, tmp_path):
    files.csv["train.csv"].loc[2, "QuestionId"] = "1.0"
    refused(files, tmp_path, "train.csv", "QuestionId", "1 (1 in all)", "unique")


@pytest.mark.parametrize("value", ["E", "a", "", "AB", "1", "nan"])
def test_correct_answer_outside_the_letters(value, files, tmp_path):
    files.csv["train.csv"].loc[1, "CorrectAnswer"] = value
    refused(files, tmp_path, "train.csv", "CorrectAnswer", f"'{value}' (1 in all)", "A, B, C, D")


def test_correct_answer_at_an_empty_option(files, tmp_path):
    files.csv["train.csv"].loc[0, "AnswerAText"] = "  "
    refused(files, tmp_path, "train.csv", "CorrectAnswer", "1 (1 in all)", "allow_empty_correct=true")


def test_empty_correct_option_is_accepted_on_request(files, tmp_path, capsys):
    files.csv["train.csv"].loc[0, "AnswerAText"] = ""
    table = prepare(files, tmp_path, "allow_empty_correct=true")
    assert table.loc[0, "CorrectAnswerText"] == ""
    assert "no text in 1 questions" in capsys.readouterr().out


def test_misconception_not_in_the_catalogue(files, tmp_path):
    files.csv["train.csv"].loc[[0, 1], "MisconceptionDId"] = ["77", "78"]
    refused(files, tmp_path, "train.csv", "MisconceptionDId", "77, 78 (2 in all)", "misconception_mapping.csv")


@pytest.mark.parametrize("value", ["12.5", "x", "-1", "1e3", "0x1", "1 2", "inf", "٣"])
@pytest.mark.parametrize("column", ["MisconceptionBId", "QuestionId", "ConstructId"])
def test_an_id_that_is_no_whole_number(column, value, files, tmp_path):
    files.csv["train.csv"].loc[0, column] = value
    refused(files, tmp_path, "train.csv", column, value, "(1 in all)")


def test_missing_question_id(files, tmp_path):
    files.csv["train.csv"].loc[1, "QuestionId"] = "nan"
    refused(files, tmp_path, "train.csv", "QuestionId", "(1 in all)")


def test_missing_question_text(files, tmp_path):
    files.csv["train.csv"].loc[1, "QuestionText"] = " "
    refused(files, tmp_path, "train.csv", "QuestionText", "2 (1 in all)")


def test_duplicate_catalogue_ids(files, tmp_path):
    files.csv["misconception_mapping.csv"].loc[2, "MisconceptionId"] = "3.0"
    refused(files, tmp_path, "misconception_mapping.csv", "MisconceptionId", "3 (1 in all)")


def test_duplicate_catalogue_names(files, tmp_path):
    files.csv["misconception_mapping.csv"].loc[2, "MisconceptionName"] = " adds tops "
    refused(files, tmp_path, "misconception_mapping.csv", "MisconceptionName", "'adds tops' (1 in all)")


def test_empty_catalogue_name(files, tmp_path):
    files.csv["misconception_mapping.csv"].loc[2, "MisconceptionName"] = ""
    refused(files, tmp_path, "misconception_mapping.csv", "MisconceptionName", "12 (1 in all)")


CSV_FILES = ["train.csv", "misconception_mapping.csv", "test.csv", "test_key.csv", "synthetic.csv"]


@pytest.mark.parametrize("name", CSV_FILES)
@pytest.mark.parametrize("raw", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_file(name, raw, files, tmp_path):
    files.bytes[name] = lambda _: raw
    refused(files, tmp_path, name, "empty")


@pytest.mark.parametrize("name", CSV_FILES)
def test_header_only_file(name, files, tmp_path):
    files.bytes[name] = lambda raw: raw.split(b"\n")[0] + b"\n"
    refused(files, tmp_path, name, "no rows")


@pytest.mark.parametrize("name", CSV_FILES)
@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xc3("], ids=["latin-1", "lone surrogate", "cut sequence"])
def test_undecodable_bytes(name, bad, files, tmp_path):
    files.bytes[name] = lambda raw: raw[:-1] + bad + b"\n"
    refused(files, tmp_path, name, "UTF-8", "on line")


@pytest.mark.parametrize("name", CSV_FILES)
def test_nul_bytes(name, files, tmp_path):
    files.bytes[name] = lambda raw: raw[:-1] + b"\x00\n"
    refused(files, tmp_path, name, "NUL", "1 in all")


def test_utf_16(files, tmp_path):
    files.bytes["train.csv"] = lambda raw: raw.decode().encode("utf-16")
    refused(files, tmp_path, "train.csv", "UTF-8")


@pytest.mark.parametrize("name", CSV_FILES)
@pytest.mark.parametrize("rows", ["last", "all"])
def test_rows_that_are_too_long(name, rows, files, tmp_path):
    def longer(raw):
        lines = raw.decode().splitlines()
        return "\n".join(
            f"{line},surplus" if at == len(lines) - 1 or (rows == "all" and at) else line
            for at, line in enumerate(lines)
        ).encode()

    files.bytes[name] = longer
    refused(files, tmp_path, name, "quotes and commas")


@pytest.mark.parametrize("name", CSV_FILES)
def test_rows_that_are_too_short(name, files, tmp_path):
    files.bytes[name] = lambda raw: raw + b"77\n"
    refused(files, tmp_path, name, "fewer cells", "(1 in all)")


def test_an_open_quote(files, tmp_path):
    files.bytes["train.csv"] = lambda raw: raw + b'4,"open,'
    refused(files, tmp_path, "train.csv", "quotes")


def test_a_cut_csv(files, tmp_path):
    files.bytes["train.csv"] = lambda raw: raw[:-20]
    refused(files, tmp_path, "train.csv", "fewer cells")


def test_truncated_parquet(files, tmp_path):
    files.bytes["folds.parquet"] = lambda raw: raw[: len(raw) // 2]
    refused(files, tmp_path, "folds.parquet", "not a readable parquet")


def test_folds_for_unknown_questions(files, tmp_path):
    files.folds = pd.DataFrame({"QuestionId": [1, 2, 3, 90, 91], "kfold": 0})
    refused(files, tmp_path, "folds.parquet", "QuestionId", "90, 91 (2 in all)", "train.csv")


@pytest.mark.parametrize("fold", [-1.0, 0.5, float("nan")])
def test_folds_that_are_no_whole_numbers(fold, files, tmp_path):
    files.folds = FOLDS.assign(kfold=[0.0, 1.0, fold])
    refused(files, tmp_path, "folds.parquet", "kfold", "(1 in all)")


def test_a_question_in_two_folds(files, tmp_path):
    files.folds = pd.DataFrame({"QuestionId": [1, 1, 2, 3], "kfold": [0, 1, 2, 3]})
    refused(files, tmp_path, "folds.parquet", "QuestionId", "1 (1 in all)")


def test_test_questions_that_are_training_questions(files, tmp_path):
    files.csv["test.csv"].loc[0, "QuestionId"] = "2"
    files.csv["test_key.csv"] = None
    refused(files, tmp_path, "test.csv", "QuestionId", "2 (1 in all)", "train.csv")


def test_test_key_of_unknown_rows(files, tmp_path):
    files.csv["test_key.csv"].loc[0, "QuestionId_Answer"] = "99_A"
    refused(files, tmp_path, "test_key.csv", "QuestionId_Answer", "'99_A' (1 in all)")


def test_test_key_of_a_correct_option(files, tmp_path):
    files.csv["test_key.csv"].loc[0, "QuestionId_Answer"] = "21_A"
    refused(files, tmp_path, "test_key.csv", "QuestionId_Answer", "'21_A' (1 in all)", "correct")


def test_explanations_of_unknown_rows(files, tmp_path):
    files.csv["synthetic.csv"].loc[0, "query_id"] = "1_A"
    refused(files, tmp_path, "synthetic.csv", "query_id", "'1_A' (1 in all)")


def test_a_corrected_folder_runs_without_deleting_anything(files, tmp_path):
    files.csv["synthetic.csv"].loc[0, "Explanation"] = ""
    refused(files, tmp_path, "synthetic.csv", "Explanation", "'1_B' (1 in all)")
    files.csv["synthetic.csv"] = WRITTEN
    assert len(prepare(files, tmp_path)) == 9


def test_a_table_without_any_label(files, tmp_path):
    files.csv["train.csv"] = TRAIN.assign(**dict.fromkeys(intake.MISCONCEPTION, ""))
    refused(files, tmp_path, "train.csv", "misconception id")


def test_what_is_on_disk_survives_a_refusal(files, tmp_path):
    prepare(files, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "questions").iterdir()}
    files.csv["train.csv"].loc[0, "CorrectAnswer"] = "E"
    with pytest.raises(PodiumError):
        prepare(files, tmp_path)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "questions").iterdir()}


@pytest.mark.parametrize(("fault", "code"), [("bad", 5), ("missing", 4)])
def test_exit_codes_of_a_real_process(fault, code, files, tmp_path):
    files.csv["train.csv"].loc[0, "CorrectAnswer"] = "E"
    if fault == "missing":
        files.csv["train.csv"] = None
    data = files.write(tmp_path / "data")
    done = running.process("prepare_questions", f"data_dir={data}", f"output_dir={tmp_path / 'questions'}")
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "train.csv" in line


# --- one id has many spellings; oddities are counted -----------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["12", "12.0", "12.", " 12 ", "012", "12.000"])
def test_one_id_however_it_is_written(spelling, files, tmp_path):
    files.csv["train.csv"].loc[0, "MisconceptionDId"] = spelling
    files.csv["misconception_mapping.csv"].loc[2, "MisconceptionId"] = "12.0"
    table = prepare(files, tmp_path)
    assert table.set_index("query_id").loc["1_D", "misconception_id"] == 12
    assert table["misconception_id"].dtype == "Int64" and table["QuestionId"].dtype == "int64"


@pytest.mark.parametrize("spelling", ["", "nan", "NaN", "<NA>", "None", " "])
def test_no_label_however_it_is_written(spelling, files, tmp_path):
    files.csv["train.csv"].loc[0, "MisconceptionDId"] = spelling
    assert pd.isna(prepare(files, tmp_path).set_index("query_id").loc["1_D", "misconception_id"])


@pytest.mark.parametrize("kind", ["int64", "float64", "string", "Int64"])
def test_folds_of_any_numeric_type(kind, files, tmp_path):
    files.folds = FOLDS.astype(kind)
    assert prepare(files, tmp_path)["fold"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def warnings_of(files, tmp_path):
    return intake.read_folder(files.write(tmp_path / "data")).warnings


def test_a_correct_option_with_a_misconception_is_one_counted_warning(files, tmp_path):
    files.csv["train.csv"].loc[0, "MisconceptionAId"] = "3"
    files.csv["train.csv"].loc[1, "MisconceptionCId"] = "3"
    (warning,) = warnings_of(files, tmp_path)
    assert "train.csv: 2 correct options carry a misconception" in warning


def test_empty_distractors_are_one_counted_warning(files, tmp_path):
    files.csv["train.csv"].loc[[0, 1], "AnswerDText"] = ""
    files.csv["train.csv"].loc[0, "MisconceptionDId"] = ""
    (warning,) = warnings_of(files, tmp_path)
    assert "train.csv: 2 questions have empty wrong options" in warning


def test_a_labelled_empty_option_is_kept_and_counted(files, tmp_path):
    files.csv["train.csv"].loc[0, "AnswerDText"] = ""
    assert any("1 empty options carry a misconception" in one for one in warnings_of(files, tmp_path))
    table = prepare(files, tmp_path).set_index("query_id")
    assert table.loc["1_D", "misconception_id"] == 12


def test_a_test_row_with_an_empty_option_keeps_its_label(files, tmp_path):
    files.csv["test.csv"].loc[0, "AnswerBText"] = ""
    prepare(files, tmp_path)
    test = contracts.read_table(tmp_path / "questions" / "test.parquet", contracts.QUESTIONS).set_index("query_id")
    assert test["misconception_id"].dropna().to_dict() == {"21_B": 3, "23_A": 0}


def test_bom_and_crlf_are_one_counted_warning_each(files, tmp_path):
    files.bytes["train.csv"] = lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n")
    plain = intake.read_folder(Files().write(tmp_path / "plain"))
    odd = intake.read_folder(files.write(tmp_path / "data"))
    pd.testing.assert_frame_equal(plain.train, odd.train)
    assert len(odd.warnings) == 2
    assert "train.csv" in odd.warnings[0] and "byte-order mark" in odd.warnings[0]
    assert "4 lines" in odd.warnings[1] and "CRLF" in odd.warnings[1]


def test_questions_without_a_fold_get_99_and_are_counted(files, tmp_path, capsys):
    files.folds = FOLDS.iloc[:1]
    assert prepare(files, tmp_path)["fold"].tolist() == [0, 0, 0] + [99] * 6
    assert "2 questions have no fold" in capsys.readouterr().out


def test_extra_columns_and_a_cell_of_a_megabyte_are_read(files, tmp_path):
    files.csv["train.csv"] = TRAIN.assign(Comment="x")
    files.csv["train.csv"].loc[0, "QuestionText"] = 'é,"\n' * 250_000 + "end"
    assert prepare(files, tmp_path).loc[0, "QuestionText"].endswith("end")


# --- a thousand generated folders ------------------------------------------------------------------------------------

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00\r", exclude_categories=["Cs"]), min_size=1, max_size=12
)
WORDS = TEXTS.filter(lambda text: text.strip())
SPELL = st.sampled_from(["{}", "{}.0", " {}", "{}.", "0{}"])


@st.composite
def clean_folders(draw):
    """A valid folder with hostile texts, spellings and optional files."""
    files = Files()
    names = draw(st.lists(WORDS, min_size=1, max_size=5, unique_by=str.strip))
    ids = draw(st.lists(st.integers(0, 10**6), min_size=len(names), max_size=len(names), unique=True))
    files.csv["misconception_mapping.csv"] = pd.DataFrame(
        {"MisconceptionId": [draw(SPELL).format(one) for one in ids], "MisconceptionName": names}
    )
    count = draw(st.integers(1, 4))
    questions = draw(st.lists(st.integers(0, 10**6), min_size=2 * count, max_size=2 * count, unique=True))
    rows = []
    for question in questions:
        correct = draw(st.integers(0, 3))
        labels = draw(st.lists(st.sampled_from(["", *ids]), min_size=4, max_size=4))
        rows.append(
            [draw(SPELL).format(question), draw(st.sampled_from(["1", "2", ""])), draw(st.sampled_from(["a", "b", ""])), "1",
             "s", "ABCD"[correct], draw(WORDS), *[draw(WORDS) for _ in range(4)],
             *["" if one == "" else draw(SPELL).format(one) for one in labels]]
        )  # fmt: skip
    table = pd.DataFrame(rows, columns=TRAIN.columns)
    wrong = intake.MISCONCEPTION["ABCD".index(table.loc[0, "CorrectAnswer"]) - 1]
    table.loc[0, wrong] = str(ids[0])
    files.csv["train.csv"] = table.iloc[:count].reset_index(drop=True)
    files.csv["test.csv"] = table.iloc[count:, :11].reset_index(drop=True)
    first = files.csv["test.csv"].iloc[0]
    letter = "ABCD"["ABCD".index(first["CorrectAnswer"]) - 1]
    files.csv["test_key.csv"] = pd.DataFrame(
        {"QuestionId_Answer": [f"{questions[count]}_{letter}"], "MisconceptionId": [ids[0]]}
    )
    files.csv["synthetic.csv"] = None
    files.folds = pd.DataFrame({"QuestionId": questions[:count], "kfold": draw(st.integers(0, 99))})
    if draw(st.booleans()):
        files.folds = None
    if draw(st.booleans()):
        files.csv["test_key.csv"] = None
    if draw(st.booleans()):
        files.bytes["train.csv"] = lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n")
    return files


def cell(name, column, values):
    def plant(files, draw):
        frame = files.csv[name] = files.csv[name].astype(object)
        frame.loc[draw(st.integers(0, len(frame) - 1)), column] = draw(st.sampled_from(values))
        return name, column

    return plant


def dropped(name, column):
    def plant(files, _):
        files.csv[name] = files.csv[name].drop(columns=column)
        return name, column

    return plant


def doubled_row(name, column):
    def plant(files, _):
        files.csv[name] = pd.concat([files.csv[name], files.csv[name].iloc[:1]], ignore_index=True)
        return name, column

    return plant


def raw(name, change):
    def plant(files, _):
        files.bytes[name] = change
        return name, ""

    return plant


def unknown_fold(files, draw):
    ids = [*map(float, files.csv["train.csv"]["QuestionId"]), 10.0**7]
    files.folds = pd.DataFrame({"QuestionId": ids, "kfold": 0})
    return "folds.parquet", "QuestionId"


def cut_folds(files, draw):
    files.folds = FOLDS
    files.bytes["folds.parquet"] = lambda data: data[: draw(st.integers(0, len(data) - 1))]
    return "folds.parquet", ""


def empty_correct(files, draw):
    row = files.csv["train.csv"].iloc[0]
    files.csv["train.csv"].loc[0, f"Answer{row['CorrectAnswer']}Text"] = " "
    return "train.csv", "CorrectAnswer"


def leaked_question(files, draw):
    files.csv["test.csv"].loc[0, "QuestionId"] = files.csv["train.csv"].loc[0, "QuestionId"]
    files.csv["test_key.csv"] = None
    return "test.csv", "QuestionId"


def doubled_name(files, draw):
    frame = files.csv["misconception_mapping.csv"]
    again = pd.DataFrame({"MisconceptionId": [10**7], "MisconceptionName": frame["MisconceptionName"].iloc[:1] + " "})
    files.csv["misconception_mapping.csv"] = pd.concat([frame, again], ignore_index=True)
    return "misconception_mapping.csv", "MisconceptionName"


NO_ID = ["x", "-1", "12.5", "1e3", "++", "1,2", "½"]
FAULTS = {
    **{f"no {column}": dropped("train.csv", column) for column in TRAIN.columns},
    **{
        f"{column} is no id": cell("train.csv", column, NO_ID)
        for column in ("QuestionId", "SubjectId", *intake.MISCONCEPTION)
    },
    **{f"{column} unknown": cell("train.csv", column, ["10000000", "10000001.0"]) for column in intake.MISCONCEPTION},
    "letter": cell("train.csv", "CorrectAnswer", ["E", "", "a", "AB", "0", "É"]),
    "no text": cell("train.csv", "QuestionText", ["", "  ", "\n"]),
    "no question id": cell("train.csv", "QuestionId", ["", "nan"]),
    "empty correct": empty_correct,
    "doubled question": doubled_row("train.csv", "QuestionId"),
    "doubled id": doubled_row("misconception_mapping.csv", "MisconceptionId"),
    "doubled name": doubled_name,
    "no name": cell("misconception_mapping.csv", "MisconceptionName", ["", " "]),
    "no catalogue id": cell("misconception_mapping.csv", "MisconceptionId", ["", "x", "1.5"]),
    "unknown fold": unknown_fold,
    "cut folds": cut_folds,
    "leaked question": leaked_question,
    **{f"{name} empty": raw(name, lambda _: b"") for name in CSV_FILES[:3]},
    **{f"{name} header only": raw(name, lambda data: data.split(b"\n")[0]) for name in CSV_FILES[1:2]},
    **{f"{name} undecodable": raw(name, lambda data: data + b"\xff\xfe") for name in CSV_FILES[:3]},
    **{f"{name} NUL": raw(name, lambda data: data + b"\x00") for name in CSV_FILES[:3]},
    **{f"{name} short row": raw(name, lambda data: data + b"5\n") for name in CSV_FILES[:3]},
    **{f"{name} long row": raw(name, lambda data: data + b"5" + b",x" * 30 + b"\n") for name in CSV_FILES[:3]},
    **{f"{name} open quote": raw(name, lambda data: data + b'5,"') for name in CSV_FILES[:3]},
}
EXAMPLES = 18


def drive(fault, folder):
    """Hypothesis draws folders; known-bad ones are refused by file and column, and nothing else is ever raised."""
    count = 0

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate])  # fmt: skip
    @given(clean_folders(), st.data())
    def one(files, data):
        nonlocal count
        count += 1
        if fault is None:
            assert len(intake.read_folder(files.write(folder)).train) == len(files.csv["train.csv"])
            return
        name, column = FAULTS[fault](files, data.draw)
        with pytest.raises(DataError) as caught:
            intake.read_folder(files.write(folder))
        assert name in str(caught.value) and column in str(caught.value)

    one()
    return count


def test_a_thousand_generated_folders(tmp_path):
    """Every class of fault is refused in every generated folder, and the clean ones are not."""
    counts = {fault: drive(fault, tmp_path / "data") for fault in [None, *FAULTS]}
    assert min(counts.values()) >= 10
    assert sum(counts.values()) >= 1000
