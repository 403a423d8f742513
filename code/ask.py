"""Type a question, the right and a wrong answer; see the rationale and the misconceptions that explain it best."""

import json
import sys

from podium import asking, config, pipeline
from podium.errors import ArgumentError
from podium.settings import Ask


@config.app(Ask, "ask")
def main(cfg: Ask) -> None:
    """Load the chain once, answer one query (or, on a terminal, one after another until an empty line)."""
    chain = asking.load_chain(cfg.chain, cfg.device)
    given = [cfg.question, cfg.correct, cfg.wrong]
    if all(given):
        show(
            asking.ask(chain, asking.make_query(*given, cfg.construct, cfg.subject), cfg.top_k, cfg.max_new_tokens),
            cfg.json,
        )  # type: ignore[arg-type]
        return
    if not sys.stdin.isatty():
        raise ArgumentError("give question=…, correct=… and wrong=…, or run in a terminal to be asked for them")
    while question := (cfg.question or input("question (empty line to stop): ").strip()):
        correct, wrong = cfg.correct or input("right answer: ").strip(), cfg.wrong or input("wrong answer: ").strip()
        query = asking.make_query(question, correct, wrong, cfg.construct, cfg.subject)
        show(asking.ask(chain, query, cfg.top_k, cfg.max_new_tokens), cfg.json)


def show(answer: dict, as_json: bool) -> None:
    """Print one answer."""
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    print(f"\nrationale: {answer['rationale']}\n")
    for row in answer["misconceptions"]:
        print(f"{row['rank']:>3}  {row['score']:+.2f}  {row['name']}  [{row['misconception_id']}]")
    print()


def as_overrides(arguments: list[str]) -> list[str]:
    """Command-line arguments with --json spelt out and free texts quoted, so that 0.50 stays 0.50 and commas are text."""
    texts = ("question=", "correct=", "wrong=", "construct=", "subject=")
    quoted = [
        f"{one.split('=', 1)[0]}={pipeline.quoted(one.split('=', 1)[1], always=True)}" if one.startswith(texts) else one
        for one in arguments
    ]
    return ["json=true" if one == "--json" else one for one in quoted]


if __name__ == "__main__":
    sys.argv[1:] = as_overrides(sys.argv[1:])
    main()
