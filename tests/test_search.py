"""Top-k by groups against sorting everything."""

import pytest
import torch

from podium import search


@pytest.mark.parametrize("max_scores", [1, 700, 2**22])
@pytest.mark.parametrize(
    ("count", "k"), [(1, 1), (5, 9), (64, 64), (100, 3), (997, 10), (1000, 64), (1003, 249), (1003, 1)]
)
def test_the_best_are_those_of_a_full_sort(count, k, max_scores):
    generator = torch.Generator().manual_seed(count + k)
    query_QD, document_MD = (torch.randn(rows, 8, generator=generator, dtype=torch.float64) for rows in (150, count))
    scores, columns = search.top_k(query_QD, document_MD, k, max_scores)
    wanted, places = (query_QD @ document_MD.T).sort(dim=1, descending=True)
    torch.testing.assert_close(scores, wanted[:, :k])
    assert columns.equal(places[:, :k])


def test_ties_give_distinct_documents():
    document_MD = torch.ones(500, 4)
    scores, columns = search.top_k(torch.ones(3, 4), document_MD, 20)
    assert (scores == 4).all()
    assert all(len(set(row)) == 20 and max(row) < 500 for row in columns.tolist())
