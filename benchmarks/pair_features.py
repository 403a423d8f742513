"""Counting the pairwise judge's character features: vectorised against pandas' `.str.count`, in one run.

    python benchmarks/pair_features.py [--quick] [--json FILE]

One text column of 50,000 rows (5,000 with --quick). Pandas counts 13 patterns one after another; ours makes all 20 features.
"""

import re

import common
import numpy as np
import pandas as pd
from common import Arm

from podium import rng
from podium.pairwise import features

WORDS = ("the good answer is f(x) = 2*x + 1, {json} “quoted”? Sicher! это хорошо 文字を数える 좋아요 bad_name 12345 "
         "def run(): return [1, 2]").split()  # fmt: skip
# the thirteen patterns a data frame would count one after another
PATTERNS = {
    "spaces": r"\s", **{name: f"[{re.escape(chars)}]" for name, chars in features.CHARACTERS.items()},
    "symbols": r"[^\w\s]", "digits": r"\d", "json": "(?i)json",
}  # fmt: skip


def texts(count: int) -> list[str]:
    """Mixed-script texts of 20 to 200 words."""
    made = []
    for number in range(count):
        drawn = rng.generator(0, "benchmark", number)
        made.append(" ".join(WORDS[at] for at in drawn.integers(len(WORDS), size=int(drawn.integers(20, 200)))))
    return made


def main() -> None:
    """Both ways on the same texts; the counts that pandas makes are compared."""
    options = common.arguments(__doc__)
    drawn = texts(500 if options.smoke else 5_000 if options.quick else 50_000)
    column = pd.Series(drawn, dtype=object)
    columns = [features.TEXT_FEATURES.index(name) for name in PATTERNS]
    everywhere = np.ones(len(drawn), dtype=bool)

    def counted() -> np.ndarray:
        return np.stack([column.str.count(pattern).to_numpy(dtype=float) for pattern in PATTERNS.values()], axis=1)

    own = Arm("one pass over code points, all 20 features",
              lambda: features.text_features(drawn, everywhere)[:, columns], 0, 0.0)  # fmt: skip
    peer = Arm(f"pandas .str.count, {len(PATTERNS)} patterns", counted, 0, 0.0)
    row = f"features of {len(drawn)} texts, {sum(map(len, drawn)):,} characters"
    # a run of pandas takes long and there are two beside the timed ones
    common.write(
        options.json, common.compare(row, own, [peer], min(options.repeats, 3), target={peer.name: {"ratio": 5.0}})
    )


if __name__ == "__main__":
    main()
