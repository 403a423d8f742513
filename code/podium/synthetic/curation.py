"""From drafts and scores to the questions that are kept, every drop with its step and reason."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from podium.intake import ANSWER, LETTERS, MISCONCEPTION
from podium.synthetic import checks
from podium.synthetic.similarity import find_copies, find_duplicates, tokenize
from podium.synthetic.tables import texts_of

SAME_NAME = 0.995
# On letter n-grams a plural of a long name scores .85, and so does its opposite ("divides a by b", "divides b by a").
UNSURE_NAME = 0.75


@dataclass
class Sieve:
    """The rows that are still in, and what happened to the others."""

    rows: pd.DataFrame
    funnel: list[dict[str, object]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)

    def drop(self, step: str, reasons: dict[int, str]) -> None:
        """Take rows out, by index, each with a reason."""
        for index, reason in sorted(reasons.items()):
            self.dropped.append({"draft_id": self.rows.loc[index, "draft_id"], "step": step, "reason": reason})
        self.rows = self.rows.drop(index=list(reasons))
        self.funnel.append({"step": step, "dropped": len(reasons), "left": len(self.rows)})


def screen(drafts: pd.DataFrame, references: pd.DataFrame, held_out: pd.DataFrame) -> Sieve:
    """Everything that needs no model, the cheapest first.

    Args:
        drafts: `tables.DRAFTS` rows.
        references: questions that may be shown; a copy of one is worthless.
        held_out: validation and test questions; a copy of one would carry its answer into training.
    """
    sieve = Sieve(drafts.reset_index(drop=True))
    sieve.funnel.append({"step": "drafts", "dropped": 0, "left": len(drafts)})
    sieve.drop("options distinct", _reasons(sieve.rows, lambda row, options: checks.options_problem(options)))
    sieve.drop("mathematics renders", _reasons(sieve.rows, _formula))
    key = _reasons(
        sieve.rows, lambda row, options: checks.key_problem(row["QuestionText"], options, row["CorrectAnswer"])
    )
    sieve.drop("key recomputed", key)
    sieve.drop("no instructions", _reasons(sieve.rows, _instructions))
    for step, others in (("no leak", held_out), ("no copy of a reference", references)):
        copies = find_copies(texts_of(sieve.rows), texts_of(others))
        index, ids = sieve.rows.index, others["QuestionId"].tolist()
        sieve.drop(step, {index[copy.left]: f"{copy.how} as question {ids[copy.right]}" for copy in copies})
    copies = find_duplicates(texts_of(sieve.rows))
    index, ids = sieve.rows.index, sieve.rows["draft_id"].tolist()
    sieve.drop("no near-duplicate", {index[copy.left]: f"{copy.how} as {ids[copy.right]}" for copy in copies})
    return sieve


def _reasons(rows: pd.DataFrame, problem) -> dict[int, str]:
    found = {}
    for index, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if reason := problem(row, {letter: row[f"Answer{letter}Text"] for letter in LETTERS}):
            found[index] = reason
    return found


def _formula(row: dict, options: dict[str, str]) -> str | None:
    return next(filter(None, map(checks.formula_problem, (row["QuestionText"], *options.values()))), None)


def _instructions(row: dict, options: dict[str, str]) -> str | None:
    return next(
        filter(None, map(checks.instruction_in, (row["QuestionText"], row["ConstructName"], *options.values()))), None
    )


def keep_by_score(sieve: Sieve, judgements: pd.DataFrame, keep_score: int) -> None:
    """Blank labels that a judge scores below `keep_score`; drop drafts that keep none, or whose key a judge disputes."""
    by_pair = {
        pair: (int(rows["score"].min()), set(rows["correct_option"]))
        for pair, rows in judgements.groupby(["draft_id", "letter"])
    }
    unjudged, disputed, poor = {}, {}, {}
    sieve.rows = sieve.rows.copy()
    for index, row in zip(sieve.rows.index, sieve.rows.to_dict("records"), strict=True):
        verdicts = {
            letter: by_pair.get((row["draft_id"], letter))
            for letter in LETTERS
            if not pd.isna(row[f"Misconception{letter}Id"])
        }
        known = {letter: verdict for letter, verdict in verdicts.items() if verdict is not None}
        other = set().union(*(keys for _, keys in known.values())) - {row["CorrectAnswer"]} if known else set()
        if not known:
            unjudged[index] = "no judgement (early stop, instructions, or a failed request)"
        elif other:
            disputed[index] = f"a judge's key is {', '.join(sorted(other))}, not {row['CorrectAnswer']}"
        elif max(score for score, _ in known.values()) < keep_score:
            poor[index] = f"best score {max(score for score, _ in known.values())}"
        else:
            for letter in verdicts:
                if letter not in known or known[letter][0] < keep_score:
                    sieve.rows.loc[index, f"Misconception{letter}Id"] = pd.NA
    sieve.drop("judged", unjudged)
    sieve.drop("key undisputed", disputed)
    sieve.drop(f"score at least {keep_score}", poor)


def merge_names(catalogue: pd.DataFrame, outside: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, int | None]]:
    """Bring another catalogue's misconceptions into ours.

    Equal names (case, spacing and punctuation aside) and similarities from SAME_NAME on are the same misconception; from
    UNSURE_NAME on one cannot tell, and they are dropped; below that they are new and get ids after our last one.

    Args:
        catalogue: MisconceptionId, MisconceptionName.
        outside: the same of the other data set.

    Returns:
        the widened catalogue, and outside id -> our id (None: dropped).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # seconds to import, and most runs merge nothing

    ours = {" ".join(tokenize(name)): key for key, name in _pairs(catalogue)}
    names = catalogue["MisconceptionName"].tolist() + outside["MisconceptionName"].tolist()
    # letter n-grams across words, since "divides a by b" and "divides b by a" have the same words
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(3, 6), sublinear_tf=True).fit_transform(names)
    near = (vectors[len(catalogue) :] @ vectors[: len(catalogue)].T).toarray()
    ids = catalogue["MisconceptionId"].astype(int).tolist()
    fresh = max(ids) + 1
    mapped: dict[int, int | None] = {}
    added = []
    for row, (key, name) in enumerate(_pairs(outside)):
        best = int(np.argmax(near[row]))
        plain = " ".join(tokenize(name))
        if plain in ours:
            mapped[key] = ours[plain]
        elif near[row, best] >= SAME_NAME:
            mapped[key] = ids[best]
        elif near[row, best] >= UNSURE_NAME:
            mapped[key] = None
        else:
            ours[plain] = mapped[key] = fresh
            added.append({"MisconceptionId": fresh, "MisconceptionName": name})
            fresh += 1
    if not added:
        return catalogue, mapped
    return pd.concat([catalogue, pd.DataFrame(added).astype({"MisconceptionId": "Int64"})], ignore_index=True), mapped


def _pairs(catalogue: pd.DataFrame) -> list[tuple[int, str]]:
    return list(zip(catalogue["MisconceptionId"].astype(int), catalogue["MisconceptionName"], strict=True))


def outside_drafts(questions: pd.DataFrame, mapped: dict[int, int | None], name: str) -> pd.DataFrame:
    """Another data set's questions as drafts; labels that were dropped in the merge are blanked."""
    rows = questions[["SubjectName", "ConstructName", "QuestionText", "CorrectAnswer", *ANSWER, *MISCONCEPTION]].copy()
    rows.insert(0, "draft_id", [f"{name}-{key}" for key in questions["QuestionId"]])
    for letter, label in zip(LETTERS, MISCONCEPTION, strict=True):
        values = [None if pd.isna(v) else mapped[int(v)] for v in rows[label]]
        rows[label] = pd.array(values, dtype="Int64")
        rows.loc[rows["CorrectAnswer"] == letter, label] = pd.NA
    labelled = rows[MISCONCEPTION].notna().any(axis=1)
    return rows[labelled].assign(cluster=-1, model=name, Solution="").reset_index(drop=True)


def silver_questions(kept: pd.DataFrame, known: pd.DataFrame, first_id: int) -> pd.DataFrame:
    """Kept drafts in the layout of train.csv, with ids from `first_id` on and construct ids where a name is known."""
    constructs = known.dropna(subset=["ConstructId"]).drop_duplicates("ConstructName").set_index("ConstructName")
    subjects = known.dropna(subset=["SubjectId"]).drop_duplicates("SubjectName").set_index("SubjectName")
    table = kept.reset_index(drop=True)
    result = pd.DataFrame({"QuestionId": np.arange(first_id, first_id + len(table))})
    result["ConstructId"] = table["ConstructName"].map(constructs["ConstructId"]).astype("Int64")
    result["ConstructName"] = table["ConstructName"]
    result["SubjectId"] = table["SubjectName"].map(subjects["SubjectId"]).astype("Int64")
    for column in ("SubjectName", "CorrectAnswer", "QuestionText", *ANSWER, *MISCONCEPTION):
        result[column] = table[column]
    return result
