"""The k nearest documents of every query: matrix product and topk, against heaps, sentence-transformers and faiss."""

import heapq

import common
import torch
import torch.nn.functional as F
from common import Arm

from podium import search


def row(queries: int, documents: int, k: int, repeats: int, heap: bool) -> list[dict]:
    """One size; `heap`: the public recipe's merge as well, which is slow."""
    import faiss
    from sentence_transformers import util

    query_QD = F.normalize(torch.randn(queries, common.WIDTH), dim=-1)
    document_MD = F.normalize(torch.randn(documents, common.WIDTH), dim=-1)
    index = faiss.IndexFlatIP(common.WIDTH)
    index.add(document_MD.numpy())

    def heaps() -> torch.Tensor:
        merged: list[list[tuple[float, int]]] = [[] for _ in range(queries)]
        for start in range(0, documents, 1024):
            scores = (query_QD @ document_MD[start : start + 1024].T).tolist()
            for number, values in enumerate(scores):
                for column, value in enumerate(values, start):
                    if len(merged[number]) < k:
                        heapq.heappush(merged[number], (value, column))
                    else:
                        heapq.heappushpop(merged[number], (value, column))
        return torch.tensor([[value for value, _ in sorted(one, reverse=True)] for one in merged])

    def semantic_search() -> torch.Tensor:
        hits = util.semantic_search(query_QD, document_MD, top_k=k, score_function=util.dot_score)
        return torch.tensor([[hit["score"] for hit in one] for one in hits])

    cost = 2.0 * queries * documents * common.WIDTH
    peers = [
        Arm("sentence-transformers util.semantic_search", semantic_search, 0, cost),
        Arm("faiss-cpu flat index", lambda: torch.from_numpy(index.search(query_QD.numpy(), k)[0]), 0, cost),
    ]
    if heap:
        peers.append(Arm("per-element heap merge", heaps, 0, cost))
    own = Arm("matmul and topk", lambda: search.top_k(query_QD, document_MD, k)[0], 0, cost)
    targets = dict(
        zip((peer.name for peer in peers), ({"ratio": 1.0}, {"ratio": 1 / 1.2}, {"ratio": 10.0 if k == 512 else 1.0}))
    )
    return common.compare(f"top-k k={k}, {queries} × {documents}", own, peers, repeats, target=targets)


def main() -> None:
    """K = 512 and k = 64."""
    options = common.arguments(__doc__)
    queries, documents = (200, 4000) if options.quick else (1000, 10_000)
    entries = row(queries, documents, 512, options.repeats, True) + row(queries, documents, 64, options.repeats, True)
    common.write(options.json, entries)


if __name__ == "__main__":
    main()
