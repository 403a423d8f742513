"""Print what a ledger has spent, by stage and model, and what its open items will cost.

python synthetic/cost.py --config-path conf/synthetic/conf_cost.yaml [ledger=FILE] [output=cost.json]
"""

from pydantic.dataclasses import dataclass

from podium import contracts
from podium.synthetic.command import main
from podium.synthetic.costs import summarise
from podium.synthetic.settings import STRICT


@dataclass(config=STRICT, kw_only=True)
class Settings:
    """conf/synthetic/conf_cost.yaml."""

    ledger: str
    output: str | None


def run(settings: Settings) -> None:
    """Print, and write JSON where asked for."""
    found = summarise(settings.ledger)
    print(f"{'stage':14} {'model':22} {'usd':>10} {'to come':>10} {'answers':>8} {'tokens in':>11} {'out':>10}  states")
    for row in found["stages"]:
        to_come = "unknown" if row["usd_to_come"] is None else f"{row['usd_to_come']:.4f}"
        states = ", ".join(f"{count} {state}" for state, count in sorted(row["states"].items()))
        print(
            f"{row['stage']:14} {row['model']:22} {row['usd']:10.4f} {to_come:>10} {row['answers']:8} "
            f"{row['input_tokens']:11,} {row['output_tokens']:10,}  {states}"
        )
    print(
        f"bill ${found['usd_total']:.4f} (of it in flight ${found['usd_in_flight']:.4f}, of unknown fate "
        f"${found['usd_unknown']:.4f}); {found['cache_hit_rate']:.0%} of input tokens came from the cache"
    )
    if settings.output is not None:
        contracts.write_json(settings.output, found)


if __name__ == "__main__":
    main(Settings, run, __doc__)
