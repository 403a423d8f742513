"""How far two judges agree."""


def agreement(first: list[dict], second: list[dict], good_score: int) -> dict[str, float]:
    """Agreement on the pairs that both have judged.

    Args:
        first: rows with draft_id, letter, score.
        second: the same of the other judge.
        good_score: a score from here on is "good".

    Returns:
        pairs; share within one point; share with the same good/bad verdict; Cohen's kappa of that verdict (1.0 where
        both judges give one verdict throughout and agree).
    """
    by_pair = {(row["draft_id"], row["letter"]): row["score"] for row in second}
    both = [(row["score"], by_pair[pair]) for row in first if (pair := (row["draft_id"], row["letter"])) in by_pair]
    if not both:
        return {"pairs": 0}
    count = len(both)
    near = sum(abs(a - b) <= 1 for a, b in both) / count
    same = sum((a >= good_score) == (b >= good_score) for a, b in both) / count
    one, two = (sum(pair[i] >= good_score for pair in both) / count for i in (0, 1))
    chance = one * two + (1 - one) * (1 - two)
    kappa = 1.0 if chance == 1.0 else (same - chance) / (1 - chance)
    return {"pairs": count, "within_one": round(near, 4), "same_verdict": round(same, 4), "kappa": round(kappa, 4)}
