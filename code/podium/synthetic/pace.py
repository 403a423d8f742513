"""How many requests may be under way, and when the next may start."""

import random
import time
from datetime import datetime

from podium.synthetic.wire import retry_after_seconds


class Throttle:
    """Adaptive concurrency: one more after every round of successes, half after a rate limit; pauses as told."""

    def __init__(self, first: int, most: int, first_backoff: float, max_backoff: float):
        self.most = most
        self.width = float(min(first, most))
        self.first_backoff = first_backoff
        self.max_backoff = max_backoff
        self.errors_in_a_row = 0
        self.open_at = 0.0
        self.paused_seconds = 0.0

    def room(self, under_way: int, now: float) -> int:
        """How many more requests may start now."""
        return 0 if now < self.open_at else max(0, int(self.width) - under_way)

    def wait(self, now: float) -> float:
        """Seconds until something may start."""
        return max(0.0, self.open_at - now)

    def success(self, headers: dict[str, str], now: float) -> None:
        """An answer came: widen, and stop in time if the vendor says that nothing is left."""
        self.errors_in_a_row = 0
        self.width = min(self.most, self.width + 1.0 / self.width)
        self._pause(exhausted_for(headers, now), now)

    def error(self, headers: dict[str, str], now: float, limited: bool) -> None:
        """A rate limit, overload or broken connection: narrow and back off, by the vendor's wish or by ours."""
        self.errors_in_a_row += 1
        if limited:
            self.width = max(1.0, self.width / 2)
        asked = retry_after_seconds(headers)
        own = min(self.max_backoff, self.first_backoff * 2 ** min(self.errors_in_a_row - 1, 20)) * random.random()
        self._pause(own if asked is None else asked + own * 0.1, now)

    def _pause(self, seconds: float, now: float) -> None:
        if now + seconds > self.open_at:
            self.paused_seconds += now + seconds - max(now, self.open_at)
            self.open_at = now + seconds


def exhausted_for(headers: dict[str, str], now: float) -> float:
    """Seconds until a limit that the headers show as used up is full again; 0 if none is."""
    wait = 0.0
    for name, value in headers.items():
        if not name.startswith(("anthropic-ratelimit-", "x-ratelimit-")) or "remaining" not in name or value != "0":
            continue
        reset = headers.get(name.replace("remaining", "reset"))
        if reset:
            wait = max(wait, _reset_seconds(reset, now))
    return min(wait, 120.0)


def _reset_seconds(value: str, now: float) -> float:
    """Anthropic gives a time of day (RFC 3339), OpenAI a duration such as 6m0s or 250ms."""
    try:
        return max(0.0, datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp() - time.time())
    except ValueError:
        pass
    total, number = 0.0, ""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    position = 0
    while position < len(value):
        if value[position].isdigit() or value[position] == ".":
            number += value[position]
            position += 1
            continue
        unit = "ms" if value[position : position + 2] == "ms" else value[position]
        if unit not in units or not number:
            return 0.0
        total += float(number) * units[unit]
        number = ""
        position += len(unit)
    return total
