"""Write the built-in bank of executable misconceptions as an Eedi-style data folder.

python synthetic/generate_procedural.py --output_dir outputs/procedural --questions 10000 --test_questions 400 --seed 0
"""

import argparse

from podium.procedural import generate, write_bank


def main() -> None:
    """Read the flags, generate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder to write; made if missing")
    parser.add_argument("--questions", type=int, default=10_000, help="training questions, all folds together")
    parser.add_argument("--test_questions", type=int, default=400, help="test questions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bank = generate(arguments.questions, arguments.test_questions, arguments.seed)
    write_bank(bank, arguments.output_dir)
    print(
        f"{arguments.output_dir}: {len(bank.train)} training and {len(bank.test)} test questions, "
        f"{len(bank.pairs)} labelled training rows, {len(bank.mapping)} misconceptions"
    )


if __name__ == "__main__":
    main()
