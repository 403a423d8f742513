"""Evaluate a language model on maths: generate, run programs in a sandbox, extract, grade.

Takes Hydra overrides (`eval_dataset=gsm8k`) and the published flags (`--eval_dataset gsm8k`) alike.
"""

import sys

from podium import config
from podium.maths import flags, run
from podium.maths.settings import EvalMath


@config.app(EvalMath, "eval_math")
def main(cfg: EvalMath) -> None:
    """Read the sets, generate and judge, write records and metrics."""
    run.eval_math(cfg)


if __name__ == "__main__":
    with config.exit_codes():
        sys.argv[1:] = flags.to_overrides(sys.argv[1:], EvalMath)
    main()
