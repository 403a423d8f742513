"""Groups of misconceptions that are easily taken for one another, and a map of them."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from podium.contracts import atomic_file
from podium.errors import DataError


def text_similarity(names: list[str]) -> np.ndarray:
    """(M, M) cosine of TF-IDF over words and letter n-grams; the diagonal is 0."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(names)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True).fit_transform(names)
    similarity = ((words @ words.T).toarray() + (letters @ letters.T).toarray()) / 2
    np.fill_diagonal(similarity, 0.0)
    return similarity.astype(np.float32)


def co_retrieval(candidates: pd.DataFrame, position: dict[int, int], depth: int) -> np.ndarray:
    """(M, M) how often two misconceptions are retrieved for the same query, normalised by both frequencies.

    Args:
        candidates: `contracts.CANDIDATES` rows.
        position: misconception id -> row of the result.
        depth: ranks up to here count.

    Raises:
        DataError: the candidates are of another catalogue.
    """
    rows = candidates[candidates["rank"] <= depth]
    place = rows["misconception_id"].map(position)
    if place.isna().any():
        raise DataError("the candidates name misconceptions that the catalogue lacks; retrieve with this catalogue")
    queries = rows["query_id"].astype("category").cat.codes.to_numpy()
    from scipy.sparse import csr_array

    hits = csr_array(
        (np.ones(len(rows)), (queries, place.to_numpy(dtype=int))), shape=(queries.max() + 1, len(position))
    )
    together = (hits.T @ hits).toarray()
    alone = np.sqrt(np.maximum(np.diag(together), 1.0))
    result = together / alone[:, None] / alone[None, :]
    np.fill_diagonal(result, 0.0)
    return result.astype(np.float32)


def group(similarity: np.ndarray, most: int) -> list[list[int]]:
    """Partition rows into groups of 2 … `most`, joining the most similar first; every row is in one group.

    Joins that would make a group too large are skipped, so ties never chain half the catalogue together. A row left
    alone takes the most similar row that has room in its group, else makes the smallest group one larger.
    """
    count = len(similarity)
    member: list[list[int]] = [[row] for row in range(count)]
    of = list(range(count))
    nearest = min(count - 1, 40)
    if nearest < 1:
        return [[row] for row in range(count)]
    neighbours = np.argpartition(-similarity, nearest - 1, axis=1)[:, :nearest]
    pairs = [(float(-similarity[a, b]), min(a, b), max(a, b)) for a in range(count) for b in neighbours[a].tolist()]
    for _, a, b in sorted(set(pairs)):
        one, two = of[a], of[b]
        if one != two and len(member[one]) + len(member[two]) <= most:
            for row in member[two]:
                of[row] = one
            member[one] += member[two]
            member[two] = []
    for row in range(count):
        if len(member[of[row]]) == 1:
            order = np.argsort(-similarity[row], kind="stable").tolist()
            home = next((of[b] for b in order if b != row and 1 <= len(member[of[b]]) < most), None)
            if home is None:
                home = min((of[b] for b in range(count) if b != row), key=lambda place: (len(member[place]), place))
            member[of[row]] = []
            of[row] = home
            member[home].append(row)
    return [sorted(rows) for rows in member if rows]


def draw_map(similarity: np.ndarray, clusters: list[list[int]], names: list[str], seen: set[int], path: Path) -> None:
    """A 2-D map as PNG: near means similar, colour is the cluster, hollow marks are misconceptions without examples.

    Args:
        similarity: (M, M).
        clusters: rows of `similarity` by cluster.
        names: one a row; the largest clusters are labelled with one of theirs.
        seen: rows with labelled training examples.
        path: PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rank = min(30, len(names) - 1)
    points = TruncatedSVD(rank, random_state=0).fit_transform(similarity + np.eye(len(names), dtype=np.float32))
    if len(names) > 10:
        from sklearn.manifold import TSNE

        neighbours = min(30.0, (len(names) - 1) / 3)
        points = TSNE(2, perplexity=neighbours, init="pca", random_state=0, max_iter=500).fit_transform(points)
    else:
        points = np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))[:, :2]
    figure = Figure(figsize=(11, 8), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
    colours = [f"C{number % 10}" for number in range(len(clusters))]
    for number, rows in enumerate(clusters):
        centre = points[rows].mean(axis=0)
        for row in rows:
            axes.plot(*zip(centre, points[row], strict=True), color=colours[number], linewidth=0.5, alpha=0.4, zorder=1)
            face = colours[number] if row in seen else "white"
            axes.scatter(
                points[row, 0], points[row, 1], s=26, facecolor=face, edgecolor=colours[number], linewidth=1, zorder=2
            )
    for rows in sorted(clusters, key=len, reverse=True)[:14]:
        label = names[rows[0]]
        side = "right" if points[rows[0], 0] > (points[:, 0].min() + points[:, 0].max()) / 2 else "left"
        text = label[:48] + ("…" if len(label) > 48 else "")
        axes.annotate(text, points[rows[0]], fontsize=6.5, alpha=0.85, ha=side)
    axes.set_xticks([])
    axes.set_yticks([])
    hollow = len(names) - len(seen)
    axes.set_title(
        f"{len(names)} misconceptions in {len(clusters)} clusters; hollow: {hollow} without a labelled example"
    )
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png")
