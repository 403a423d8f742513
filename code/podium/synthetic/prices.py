"""Dollars: the price table, what a request can cost at most and what it did cost.

Money is counted in whole nano-dollars, rounded up, so that sums are exact and a cap is a cap.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from podium.errors import DataError, MissingFileError
from podium.synthetic.work import Usage

NANO = 1_000_000_000


@dataclass(frozen=True)
class Price:
    """A row of prices.yaml: dollars per million tokens. `batch_factor` null: no batch price is known."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    provider: str
    model: str
    input: float | None
    output: float | None
    cache_read: float | None
    cache_write_5m: float | None
    cache_write_1h: float | None
    batch_factor: float | None
    source: str
    date: str


def read_price(path: str | Path, provider: str, model: str, batch: bool) -> Price:
    """The row of one model.

    Raises:
        MissingFileError: no such file.
        DataError: malformed, no row for the model, more than one, or a price that is null or negative.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"{path}: no such price table; set prices=FILE (the project's is conf/synthetic/prices.yaml)"
        )
    try:
        rows = TypeAdapter(list[Price]).validate_python(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        raise DataError(f"{path}: not a price table: {' '.join(str(error).split())[:300]}") from None
    found = [row for row in rows if row.provider == provider and row.model == model]
    if len(found) != 1:
        what = f"has no price for {provider}/{model}" if not found else f"has {len(found)} rows for {provider}/{model}"
        raise DataError(
            f"{path} {what}, so max_usd could not be kept; add one row with provider, model, input, output, cache_read, "
            f"cache_write_5m, cache_write_1h (dollars per million tokens), batch_factor, source and date"
        )
    row = found[0]
    needed = ["input", "output", "cache_read", "cache_write_5m", "cache_write_1h"] + (["batch_factor"] if batch else [])
    bad = [name for name in needed if getattr(row, name) is None or not 0 <= getattr(row, name) < math.inf]
    if bad:
        raise DataError(
            f"{path}: {', '.join(bad)} of {provider}/{model} is not known; look it up at {row.source or 'the vendor'}, "
            f"write it into that row with source and date, then run again"
        )
    return row


def actual_nano(price: Price, usage: Usage, batch: bool) -> int:
    """What a finished request cost."""
    dollars_per_million = (
        usage.fresh * (price.input or 0.0)
        + usage.output * (price.output or 0.0)
        + usage.cache_read * (price.cache_read or 0.0)
        + usage.cache_write_5m * (price.cache_write_5m or 0.0)
        + usage.cache_write_1h * (price.cache_write_1h or 0.0)
    )
    factor = (price.batch_factor or 0.0) if batch else 1.0
    # round first, so that 0.1 + 0.2 does not ceil to one nano-dollar too many
    return math.ceil(round(dollars_per_million * factor * 1000, 3))


def most_nano(price: Price, input_tokens: int, output_tokens: int, batch: bool) -> int:
    """What a request can cost at most: all input at the dearest input rate, all allowed output used."""
    rates = {
        "fresh": price.input or 0.0,
        "cache_write_5m": price.cache_write_5m or 0.0,
        "cache_write_1h": price.cache_write_1h or 0.0,
        "cache_read": price.cache_read or 0.0,
    }
    dearest = max(rates, key=lambda name: rates[name])
    tokens = {"fresh": 0, **{dearest: input_tokens}}
    return actual_nano(price, Usage(output=output_tokens, **tokens), batch)


def dollars(nano: int) -> float:
    """Nano-dollars as dollars."""
    return nano / NANO
