"""The quality report: one dictionary, as JSON and as a page without scripts or links."""

import html
from collections import Counter
from typing import Any

import pandas as pd

from podium import rng
from podium.intake import LETTERS
from podium.synthetic.tables import labelled_options

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } td, th { padding: .15rem .7rem; text-align: left; }
tr:nth-child(even) { background: #f4f4f4; } .bar { background: #4878a8; height: .8rem; display: inline-block; }
.sample { border-left: 3px solid #4878a8; padding: .1rem .9rem; margin: .9rem 0; white-space: pre-wrap; }
.number { text-align: right; }
"""


def build(
    funnel: list[dict[str, Any]],
    dropped: list[dict[str, str]],
    judgements: pd.DataFrame,
    silver: pd.DataFrame,
    mapping: pd.DataFrame,
    seen: set[int],
    costs: dict[str, Any] | None,
    seed: int,
) -> dict[str, Any]:
    """Everything the report says.

    Args:
        funnel: steps with what each dropped and left.
        dropped: draft_id, step, reason.
        judgements: `tables.JUDGEMENTS` rows.
        silver: kept questions in the layout of train.csv.
        mapping: the catalogue.
        seen: misconceptions with labelled training examples outside the silver set.
        costs: `costs.summarise`, if there is a ledger.
        seed: of the choice of samples.
    """
    names = dict(zip(mapping["MisconceptionId"].astype(int), mapping["MisconceptionName"], strict=True))
    labels = labelled_options(silver) if len(silver) else pd.Series(dtype="int64")
    covered = set(labels.index)
    picks = sorted(rng.permutation(len(silver), seed, "report")[:12].tolist())
    samples = []
    for row in silver.iloc[picks].to_dict("records"):
        shown = {"QuestionId": int(row["QuestionId"]), "QuestionText": row["QuestionText"]}
        shown |= {"CorrectAnswer": row["CorrectAnswer"], "ConstructName": row["ConstructName"], "options": {}}
        for letter in LETTERS:
            value = row[f"Misconception{letter}Id"]
            shown["options"][letter] = [row[f"Answer{letter}Text"], "" if pd.isna(value) else names[int(value)]]
        samples.append(shown)
    kept = len(silver)
    return {
        "funnel": funnel,
        "drop_reasons": dict(
            Counter(f"{row['step']}: {row['reason'].split(' as ')[0][:60]}" for row in dropped).most_common(25)
        ),
        "scores": {
            str(judge): {str(score): int((rows["score"] == score).sum()) for score in range(11)}
            for judge, rows in judgements.groupby("judge")
        },
        "coverage": {
            "misconceptions": len(names),
            "covered": len(covered),
            "unseen": len(set(names) - seen),
            "unseen_covered": len(covered - seen),
            "options_per_covered": float(labels.mean()) if len(labels) else 0.0,
        },
        "duplicates": {
            step: sum(row["step"] == step for row in dropped)
            for step in ("no leak", "no copy of a reference", "no near-duplicate")
        },
        "cost": None
        if costs is None
        else {
            "usd_total": costs["usd_total"],
            "usd_unknown": costs["usd_unknown"],
            "usd_per_kept_question": costs["usd_total"] / kept if kept else None,
            "usd_per_kept_label": costs["usd_total"] / int(labels.sum()) if len(labels) else None,
            "cache_hit_rate": costs["cache_hit_rate"],
            "stages": costs["stages"],
        },
        "samples": samples,
    }


def as_html(report: dict[str, Any]) -> str:
    """The report as one page. Everything from outside is escaped: models and data sets write what they like."""
    parts = [f"<!doctype html><meta charset=utf-8><title>Synthetic data</title><style>{_STYLE}</style>"]
    parts.append("<h1>Synthetic data: quality report</h1><h2>Funnel</h2>")
    most = max((row["left"] for row in report["funnel"]), default=1) or 1
    parts.append(
        _table(
            ["step", "dropped", "left", ""],
            [[row["step"], row["dropped"], row["left"], _bar(row["left"], most)] for row in report["funnel"]],
        )
    )
    parts.append("<h2>Why drafts were dropped</h2>")
    parts.append(_table(["reason", "drafts"], [[reason, count] for reason, count in report["drop_reasons"].items()]))
    for judge, histogram in report["scores"].items():
        parts.append(f"<h2>Scores by {html.escape(judge)}</h2>")
        most = max(histogram.values()) or 1
        parts.append(_table(["score", "options", ""], [[s, n, _bar(n, most)] for s, n in histogram.items()]))
    for title, key in (("Coverage", "coverage"), ("Duplicates and leaks", "duplicates")):
        parts.append(f"<h2>{title}</h2>")
        parts.append(_table(["", ""], [[name.replace("_", " "), _number(v)] for name, v in report[key].items()]))
    if report["cost"] is not None:
        parts.append("<h2>Cost</h2>")
        single = {name: value for name, value in report["cost"].items() if name != "stages"}
        parts.append(_table(["", ""], [[name.replace("_", " "), _number(value)] for name, value in single.items()]))
        columns = ["stage", "model", "usd", "answers", "input_tokens", "output_tokens"]
        parts.append(_table(columns, [[_number(row[c]) for c in columns] for row in report["cost"]["stages"]]))
    parts.append("<h2>Samples</h2>")
    for row in report["samples"]:
        lines = [f"{row['QuestionId']} · {row['ConstructName']}", row["QuestionText"], ""]
        for letter, (text, name) in row["options"].items():
            mark = "✓" if letter == row["CorrectAnswer"] else " "
            lines.append(f"{mark} {letter}. {text}" + (f"   ← {name}" if name else ""))
        parts.append(f"<div class=sample>{html.escape(chr(10).join(lines))}</div>")
    return "\n".join(parts) + "\n"


class _Markup(str):
    """Text that is HTML already."""


def _bar(value: int, most: int) -> _Markup:
    return _Markup(f"<span class=bar style='width:{20 * value / most:.2f}rem'></span>")


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–" if value is None else str(value)


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def cell(value: Any) -> str:
        kind = " class=number" if isinstance(value, (int, float)) else ""
        return f"<td{kind}>{value if isinstance(value, _Markup) else html.escape(str(value))}</td>"

    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
