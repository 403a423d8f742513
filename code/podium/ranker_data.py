"""Groups for ranker training: which negatives stand beside each gold misconception."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from podium import leaks, rng
from podium.batching.queries import QueryRows, select
from podium.errors import DataError, sample


def negatives_by_bands(
    ranked: list[int],
    gold: int | None,
    bands: list[tuple[int, int, float]],
    count: int,
    positives: set[int],
    never_positive_share: float,
    *key: int | str,
) -> list[int]:
    """Negatives of one query, best rank first; the gold misconception is never among them.

    Each rank of a band is kept with the band's probability; when fewer than `count` are left, the best unkept ranks fill
    up. Ids that no training row has as its gold are kept with `never_positive_share`: as negatives they can only be
    pushed down, which harms them when they are the answer to a test question (4th and 6th place of the competition).

    Args:
        ranked: candidates, best first.
        gold: id of the gold misconception, None for unlabelled rows.
        bands: (first rank, last rank, probability).
        count: at most this many.
        positives: ids that are gold in some training row.
        never_positive_share: 0 … 1.
        key: of the random draws.
    """
    generator = rng.generator(*key)
    draws = generator.random((2, len(ranked)))
    usable = [
        rank
        for rank, one in enumerate(ranked)
        if one != gold and (one in positives or draws[1][rank] < never_positive_share)
    ]
    keep = np.zeros(len(ranked))
    for first, last, probability in bands:
        keep[first - 1 : last] = probability
    kept = [rank for rank in usable if draws[0][rank] < keep[rank]][:count]
    filler = [rank for rank in usable if rank not in set(kept)]
    return [ranked[rank] for rank in sorted(kept + filler[: count - len(kept)])]


def build_groups(
    queries: pd.DataFrame,
    candidates: pd.DataFrame,
    validation_fold: int,
    bands: list[tuple[int, int, float]],
    count: int,
    validation_depth: int,
    positives: set[int],
    never_positive_share: float,
    seed: int,
    teacher: dict[tuple[str, int], float] | None,
) -> pd.DataFrame:
    """The groups table: gold and negatives of training queries, plain ranked lists of validation queries.

    A validation list is cut at `validation_depth` and its gold is not added: a gold that the retriever missed counts
    as missed.

    Raises:
        DataError: a query without candidates, or a training query left without any negative.
    """
    ordered = candidates.sort_values(["query_id", "rank"])
    lists = ordered.groupby("query_id")["misconception_id"].agg(list).to_dict()
    if absent := [query for query in queries["query_id"] if query not in lists]:
        raise DataError(f"no candidates for query {sample(absent)}; mine them for this question table")
    frames = {name: [] for name in ("query_id", "misconception_id", "rank", "label", "teacher_score")}  # type: ignore[var-annotated]
    alone = []
    for query_id, label, fold in zip(queries["query_id"], queries["misconception_id"], queries["fold"], strict=True):
        ranked = [int(one) for one in lists[query_id]]
        gold = None if pd.isna(label) else int(label)
        if fold == validation_fold:
            members = ranked[:validation_depth]
        else:
            negatives = negatives_by_bands(
                ranked, gold, bands, count, positives, never_positive_share, seed, "negatives", query_id
            )
            if not negatives:
                alone.append(query_id)
            members = [*([gold] if gold is not None else []), *negatives]
        place = {one: rank for rank, one in enumerate(ranked, 1)}
        frames["query_id"] += [query_id] * len(members)
        frames["misconception_id"] += members
        frames["rank"] += [place.get(one) for one in members]
        frames["label"] += [one == gold for one in members]
        frames["teacher_score"] += [teacher.get((query_id, one)) if teacher else None for one in members]
    if alone:
        raise DataError(f"no negatives for query {sample(alone)}; mine more candidates or raise never_positive_share")
    groups = pd.DataFrame(frames)
    return groups.astype({"rank": "Int64", "teacher_score": "float64"})


@dataclass
class RankerRows:
    """Training rows with their pools: negatives (best first), teacher scores, and whether the gold label counts."""

    rows: QueryRows
    pools: list[list[int]]
    teacher: list[dict[int, float]]
    labelled: list[bool]


def ranker_rows(
    rows: QueryRows, groups: pd.DataFrame, unlabelled_sources: list[str], with_teacher: bool,
    lists: frozenset[str] = frozenset(),
) -> RankerRows:  # fmt: skip
    """Join training rows with their groups. Rows that nothing is learnt from are left out, and their count is printed.

    These are the rows without a group (not mined) and, without a teacher, those of `unlabelled_sources`.

    `lists` are the validation queries, whose groups are whole ranked lists: when they are trained on (full fit) with a
    teacher, only their scored candidates take part, and those whose gold one is not scored are left out.

    Raises:
        DataError: no row has a group, labels that contradict the question table, or a missing teacher score where one is needed.
    """
    grouped = {query: part for query, part in groups.groupby("query_id", sort=False)}
    keep = [at for at in range(len(rows)) if rows.query_id[at] in grouped]
    if not keep:
        raise DataError("none of the training rows is in the groups table; prepare groups for this question table")
    if len(keep) < len(rows):
        print(f"{len(keep)} of {len(rows)} training rows have candidates; training on these")
    if not with_teacher and unlabelled_sources:
        whole = len(keep)
        keep = [at for at in keep if rows.source[at] not in unlabelled_sources]
        if not keep:
            raise DataError(
                f"all training rows are of unlabelled_sources {unlabelled_sources}; they learn from a teacher only"
            )
        if len(keep) < whole:
            print(f"{whole - len(keep)} rows of {unlabelled_sources} need a teacher (distillation) and are left out")
    if with_teacher:
        for query in (query for query in lists if query in grouped):
            grouped[query] = grouped[query][grouped[query]["teacher_score"].notna()]
        whole = len(keep)
        keep = [
            at
            for at in keep
            if rows.query_id[at] not in lists
            or (
                rows.label[at] in set(grouped[rows.query_id[at]]["misconception_id"])
                and len(grouped[rows.query_id[at]]) > 1
            )
        ]
        if len(keep) < whole:
            print(f"{whole - len(keep)} validation rows lack teacher scores; the full fit leaves them out")
    chosen = select(rows, keep)
    leaks.refuse(
        leaks.in_groups(groups, dict(zip(chosen.query_id, chosen.label, strict=True))),
        "prepare the groups again for this question table",
    )
    pools, teacher, labelled = [], [], []
    for at, query_id in enumerate(chosen.query_id):
        part = grouped[query_id]
        ids = part["misconception_id"].astype(int).tolist()
        pools.append([one for one, is_gold in zip(ids, part["label"], strict=True) if not is_gold])
        scores = part["teacher_score"].tolist()
        teacher.append({one: score for one, score in zip(ids, scores, strict=True) if not pd.isna(score)})
        labelled.append(chosen.source[at] not in unlabelled_sources)
        if with_teacher and len(teacher[-1]) < len(ids):
            raise DataError(f"query {query_id}: {len(ids) - len(teacher[-1])} candidates have no teacher score; "
                            f"score them with the teacher and prepare groups with teacher=<folder>")  # fmt: skip
    return RankerRows(chosen, pools, teacher, labelled)


def validation_lists(
    rows: QueryRows, groups: pd.DataFrame, depth: int
) -> tuple[QueryRows, list[tuple[int, list[int]]]]:
    """Validation rows that have a ranked list, and the first `depth` candidates of each, best first.

    Raises:
        DataError: no validation row has a list.
    """
    ranked = groups[groups["rank"].notna() & (groups["rank"] <= depth)].sort_values(["query_id", "rank"])
    lists = ranked.groupby("query_id")["misconception_id"].agg(list).to_dict()
    keep = [at for at in range(len(rows)) if rows.query_id[at] in lists]
    if not keep:
        raise DataError("none of the validation rows is in the groups table; mine and prepare the validation fold too")
    chosen = select(rows, keep)
    return chosen, [(at, [int(one) for one in lists[query]]) for at, query in enumerate(chosen.query_id)]
