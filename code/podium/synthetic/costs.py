"""What a ledger says was spent, on what, and what is still to come."""

from contextlib import closing
from pathlib import Path
from typing import Any

from podium.errors import MissingFileError
from podium.synthetic.ledger import Ledger
from podium.synthetic.prices import dollars

_BY_STAGE = """
SELECT c.stage, json_extract(i.request, '$.provider'), json_extract(i.request, '$.model'), c.state, count(*),
  sum(c.nano - c.held), sum(c.held), sum(c.losses)
FROM current c JOIN items i USING (item) GROUP BY 1, 2, 3, 4
"""
_TOKENS = """
SELECT c.stage, json_extract(i.request, '$.model'), u.mode, count(*), sum(u.fresh), sum(u.output), sum(u.cache_read),
  sum(coalesce(u.cache_write_5m, 0) + coalesce(u.cache_write_1h, 0)), sum(u.nano)
FROM usage u JOIN current c USING (item) JOIN items i USING (item) GROUP BY 1, 2, 3
"""


def summarise(path: str | Path) -> dict[str, Any]:
    """Spending of a ledger, by stage and model.

    Returns:
        usd_total (what the cap is held against), usd_in_flight, usd_unknown (charged for requests of unknown fate),
        cache_hit_rate, and `stages`: stage, model, states, usd, answers, tokens, usd_to_come (mean price × open items).

    Raises:
        MissingFileError: no ledger there.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"{path}: no ledger; runs write one where their config's `ledger` says")
    with closing(Ledger(path)) as ledger:
        rows = ledger.connection.execute(_BY_STAGE).fetchall()
        tokens = ledger.connection.execute(_TOKENS).fetchall()
        bill = ledger.bill()
    paid = sum(row[-1] for row in tokens)
    held = sum(row[6] for row in rows)
    stages: dict[tuple[str, str], dict[str, Any]] = {}
    for stage, provider, model, state, count, nano, in_flight, _ in rows:
        entry = stages.setdefault(
            (stage, model),
            {"stage": stage, "provider": provider, "model": model, "states": {}, "usd": 0.0, "answers": 0}
            | {"input_tokens": 0, "output_tokens": 0, "cache_read_tokens": 0, "usd_to_come": None},
        )
        entry["states"][state] = count
        entry["usd"] += dollars(nano + in_flight)
    for stage, model, _, count, fresh, output, read, written, _ in tokens:
        entry = stages[stage, model]
        entry["answers"] += count
        entry["input_tokens"] += (fresh or 0) + (read or 0) + (written or 0)
        entry["output_tokens"] += output or 0
        entry["cache_read_tokens"] += read or 0
    for entry in stages.values():
        to_come = sum(entry["states"].get(state, 0) for state in ("planned", "reserved", "submitted"))
        if entry["answers"]:
            entry["usd_to_come"] = entry["usd"] / entry["answers"] * to_come
    everything = sum(entry["input_tokens"] for entry in stages.values())
    read = sum(entry["cache_read_tokens"] for entry in stages.values())
    return {
        "usd_total": dollars(bill),
        "usd_in_flight": dollars(held),
        "usd_unknown": dollars(bill - held - paid),
        "cache_hit_rate": read / everything if everything else 0.0,
        "stages": sorted(stages.values(), key=lambda entry: (entry["stage"], entry["model"])),
    }
