"""Weights for several scores of the same candidates, fitted on validation queries."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from podium.errors import DataError, sample


def feature_table(candidates: pd.DataFrame, scores: pd.DataFrame, top_k: int) -> pd.DataFrame:
    """The top_k candidates of each query with a column a score: `list` (the list's own) and one a model.

    Columns are centred per query, since only differences within a query order its list.

    Raises:
        DataError: a model has not scored a candidate: mixing would order by absence.
    """
    top = candidates[candidates["rank"] <= top_k][["query_id", "misconception_id", "rank", "score"]]
    table = top.rename(columns={"score": "list"})
    for model, part in scores.groupby("model", sort=False):
        renamed = part[["query_id", "misconception_id", "score"]].rename(columns={"score": model})
        table = table.merge(renamed, on=["query_id", "misconception_id"], how="left")
        if (absent := table[model].isna()).any():
            pairs = table.loc[absent, "query_id"] + "|" + table.loc[absent, "misconception_id"].astype(str)
            raise DataError(f"{model} has no score for {sample(pairs)}; score the same candidates, or lower top_k")
    columns = table.columns.difference(["query_id", "misconception_id", "rank"], sort=False)
    table[columns] -= table.groupby("query_id")[list(columns)].transform("mean")
    return table


def fit_weights(table: pd.DataFrame, gold: pd.Series) -> dict[str, float]:
    """Weights ≥ 0 that maximise the likelihood of the gold candidate under a softmax over each query's weighted sum.

    A conditional logit: convex, so the weights depend on nothing but the rows. Queries whose gold misconception is not
    among the candidates say nothing about the weights. A little L2 keeps them finite.

    Args:
        table: from `feature_table`.
        gold: query_id -> misconception_id.
    Without a single such query the list's own order stands (weight 1, all others 0), with a warning.
    """
    columns = [name for name in table.columns if name not in ("query_id", "misconception_id", "rank")]
    table = table[table["query_id"].isin(gold.index)]
    hit = table["misconception_id"].to_numpy() == table["query_id"].map(gold).to_numpy()
    table = table[pd.Series(hit, index=table.index).groupby(table["query_id"]).transform("any")]
    if table.empty:
        print("warning: no validation query has its gold misconception among the candidates; the list keeps its order")
        return {name: float(name == "list") for name in columns}
    hit = table["misconception_id"].to_numpy() == table["query_id"].map(gold).to_numpy()
    _, query = np.unique(table["query_id"].to_numpy(dtype=str), return_inverse=True)
    features = table[columns].to_numpy(dtype=float)
    scale = features.std(axis=0) + 1e-12
    features = features / scale
    count = query.max() + 1

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        total = features @ weights
        top = np.full(count, -np.inf)
        np.maximum.at(top, query, total)
        exponent = np.exp(total - top[query])
        norm = np.bincount(query, exponent, count)
        share = exponent / norm[query]
        value = (np.log(norm) + top).sum() - total[hit].sum()
        gradient = features.T @ (share - hit)
        return value / count + 1e-3 * weights @ weights, gradient / count + 2e-3 * weights

    start = np.ones(len(columns))
    found = minimize(loss, start, jac=True, bounds=[(0.0, None)] * len(columns), method="L-BFGS-B")
    return dict(zip(columns, (found.x / scale).tolist(), strict=True))


def apply_weights(table: pd.DataFrame, weights: dict[str, float]) -> pd.DataFrame:
    """query_id, misconception_id, score: the weighted sum.

    Raises:
        DataError: weights for models that the table lacks, or the other way round.
    """
    columns = [name for name in table.columns if name not in ("query_id", "misconception_id", "rank")]
    if set(columns) != set(weights):
        raise DataError(f"weights are for {sorted(weights)}, scores are of {sorted(columns)}; fit them on these scores")
    score = sum(table[name] * weight for name, weight in weights.items())
    return table[["query_id", "misconception_id"]].assign(score=score)
