"""What both vendors' modules share: raw answers, failures sorted by whether they were paid, batch facts."""

import json
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import httpx2

from podium.errors import PodiumError
from podium.synthetic.secrets import scrub
from podium.synthetic.work import Received

# A gateway's own time-out or a lost upstream says nothing of what the model behind it did, and billed.
_AMBIGUOUS = (408, 499, 502, 504, 520, 521, 522, 523, 524)
_BROKEN = (httpx.HTTPError, httpx2.HTTPError, OSError, EOFError, json.JSONDecodeError, UnicodeDecodeError)
_BILLING = ("insufficient_quota", "billing", "credit balance", "spend limit", "quota exceeded")


class StatusError(Exception):
    """The vendor answered a batch call with an HTTP error; `status` None: no complete answer came."""

    def __init__(self, status: int | None, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class BatchFacts:
    """A batch as the vendor lists it. `batch` is our name for it: None where the vendor keeps none."""

    vendor_id: str
    ended: bool
    count: int
    batch: str | None
    refused: str | None
    readable: bool
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchLine:
    """One result. kind: answered (billed) | invalid | error | expired (not billed, as both vendors document)."""

    custom_id: str
    kind: str
    payload: dict[str, Any] | None
    reason: str


def timestamp(value: datetime | float) -> float:
    """Seconds since 1970."""
    return value.timestamp() if isinstance(value, datetime) else float(value)


def retry_after_seconds(headers: dict[str, str]) -> float | None:
    """The vendor's wish in seconds, given as a number or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None


async def send_raw(sdk: Any, call: Awaitable[Any]) -> Received:
    """Await one raw SDK call and say what arrived, whatever it was. Exceptions never carry the request out of here."""
    try:
        raw = await call
        text = raw.text if isinstance(raw.text, str) else await raw.text()
        return Received(raw.status_code, text, {name.lower(): value for name, value in raw.headers.items()})
    except sdk.APIStatusError as error:
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        if error.status_code in _AMBIGUOUS:
            return Received(None, error.response.text, headers, f"HTTP {error.status_code} from a gateway")
        return Received(error.status_code, error.response.text, headers)
    except sdk.APITimeoutError:
        return Received(None, "", {}, "no answer in time")
    except (sdk.APIConnectionError, *_BROKEN) as error:
        if _never_sent(error):
            return Received(0, "", {}, "no connection")
        return Received(None, "", {}, "connection broke")


def _never_sent(error: BaseException) -> bool:
    """Whether the connection was refused before a byte of the request left."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (httpx.ConnectError, httpx2.ConnectError, httpx.ConnectTimeout, httpx2.ConnectTimeout)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def status_error(sdk: Any) -> Iterator[None]:
    """Turn the SDK's and the network's exceptions into StatusError, free of headers and keys."""
    try:
        yield
    except sdk.APIStatusError as error:
        ambiguous = error.status_code in _AMBIGUOUS or error.status_code >= 500
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        try:
            text = error.response.text
        except (httpx2.StreamError, httpx.StreamError):  # a streamed error body that nobody read
            text = ""
        message = f"HTTP {error.status_code}: {scrub(text)[:300]}"
        status = None if ambiguous else error.status_code
        raise StatusError(status, message, retry_after_seconds(headers)) from None
    except (sdk.APIError, *_BROKEN, ValueError) as error:
        raise StatusError(None, f"no complete answer ({type(error).__name__})") from None


def refuse_if_fatal(status: int | None, message: str, where: str) -> None:
    """Stop the run for what no retry can mend: authentication, billing, unknown model or address.

    Raises:
        PodiumError: one line with the vendor's words and the remedy.
    """
    text = " ".join(scrub(message).split())[:300]
    if status in (401, 403):
        raise PodiumError(f"{where} refuses our credentials (HTTP {status}: {text}); check the key and its permissions")
    if status == 402 or (status in (400, 403, 429) and any(word in text.casefold() for word in _BILLING)):
        raise PodiumError(
            f"{where} refuses for billing (HTTP {status}: {text}); top up or raise the limit, then run again"
        )
    if status == 404:
        raise PodiumError(
            f"{where} knows no such model or address (HTTP 404: {text}); check endpoint.model and base_url"
        )
