"""Copy the predicted memory of docs/scaling.md into the configs' headers and the README's "which config for my card".

python tools/memory_table.py       # reckons the table of docs/scaling.md anew, then does this
python tools/memory_headers.py     # only copies
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"llm_embedding": "retriever", "llm_reasoner": "reasoner", "ranker_pointwise": "pointwise", "ranker_listwise": "listwise",
          "ranker_pairwise": "pairwise"}  # fmt: skip
MARKS = ("<!-- card-table -->", "<!-- /card-table -->")
LINE = "# Memory: "


@dataclass(frozen=True)
class Row:
    """A line of the table: the card a config is meant for, what a step needs at its peak and what is there, GiB a device."""

    name: str
    card: str
    need: str
    room: str
    fits: bool

    @property
    def path(self) -> Path:
        """The config's file."""
        return next(path for stage in STAGES if (path := ROOT / "conf" / stage / f"{self.name}.yaml").is_file())

    @property
    def header(self) -> str:
        """The line of the config's header."""
        verdict = "" if self.fits else ", DOES NOT FIT"
        return (
            f"{LINE}{self.need} of {self.room} GiB a device on {self.card}{verdict}; predicted (python tools/memory_table.py"
            f" {self.name}), not measured."
        )


def read_rows(text: str) -> list[Row]:
    """The rows of docs/scaling.md, in order."""
    rows = []
    for line in text.split("<!-- memory-table -->")[1].split("<!-- /memory-table -->")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) > 7 and cells[0].startswith("conf_"):
            room, verdict = cells[7].split(", ")
            rows.append(Row(cells[0], cells[2], cells[6], room, verdict == "fits"))
    return rows


def with_header(text: str, row: Row) -> str:
    """A config's text with the row's line as the last of its header."""
    lines = [line for line in text.splitlines() if not line.startswith(LINE)]
    end = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join([*lines[:end], row.header, *lines[end:]]) + "\n"


def card_table(rows: list[Row]) -> str:
    """Markdown: a row a card, a column a stage, the predicted GiB behind every config."""
    columns = list(STAGES.values())[:4]
    lines = [f"| card | {' | '.join(columns)} |", "|---|" + "---|" * len(columns),
             "| none (2 cores, 4 GB) | conf_demo | conf_demo | conf_demo | conf_demo |"]  # fmt: skip
    for card in dict.fromkeys(row.card for row in sorted(rows, key=lambda row: float(row.room))):
        cells = []
        for column in columns:
            here = [row for row in rows if row.card == card and STAGES[row.path.parent.name] == column]
            cells.append(
                ", ".join(f"{row.name} {row.need}{'' if row.fits else ' (does not fit)'}" for row in here) or "–"
            )
        if set(cells) != {"–"}:
            room = next(row.room for row in rows if row.card == card)
            lines.append(f"| {card}: {room} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(readme: str, rows: list[Row]) -> str:
    """The README with the table between its marks."""
    before, rest = readme.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{card_table(rows)}\n{MARKS[1]}{re.split(re.escape(MARKS[1]), rest)[1]}"


def write() -> None:
    """Rewrite headers and README."""
    rows = read_rows((ROOT / "docs" / "scaling.md").read_text())
    for row in rows:
        row.path.write_text(with_header(row.path.read_text(), row))
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), rows))
    print(f"wrote {len(rows)} headers and the README's table")


if __name__ == "__main__":
    write()
