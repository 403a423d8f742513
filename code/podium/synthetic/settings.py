"""Settings that every script with a model behind it shares."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True)
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Dollars = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


@dataclass(config=STRICT, kw_only=True)
class Endpoint:
    """Which model, where, and with which parameters."""

    provider: Literal["anthropic", "openai"]
    model: str
    api: Literal["messages", "responses", "chat"]
    api_key_env: str | None
    """Name of the environment variable that holds the key; null for a server that needs none."""
    base_url: str | None = None
    """null: the vendor's own."""
    max_tokens: Positive = 4000
    max_tokens_limit: Positive = 16000
    """A cut-off answer is asked for again with twice the room, up to this."""
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    thinking: Literal["adaptive", "between_tools", "disabled"] | None = None
    """null: the model's default. Which values a model takes differs: claude-sonnet-5-5 refuses `disabled`."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    cache_ttl: Literal["5m", "1h"] | None = "5m"
    """null sends no cache hints. OpenAI gets a cache key for either value; its servers choose how long they keep it."""
    timeout_seconds: Seconds = 600.0


@dataclass(config=STRICT, kw_only=True)
class Pace:
    """How fast, how often, how patiently."""

    max_concurrency: Positive = 16
    first_concurrency: Positive = 4
    max_invalid_retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Paid answers that break schema or checks, before the item fails."""
    max_errors: Positive = 8
    """Unpaid errors (429, 5xx, expired) of one item, before it fails."""
    resend_unknown: Annotated[int, Field(ge=0, le=1)] = 1
    """Times that a request of unknown fate is sent again; its greatest cost stays charged."""
    retry_failed: bool = False
    first_backoff_seconds: Seconds = 1.0
    max_backoff_seconds: Seconds = 60.0
    poll_seconds: Seconds = 30.0
    reconcile_grace_seconds: Seconds = 120.0
    """A batch that may have been created counts as lost only when it is not listed this long after."""
    max_batch_requests: Positive = 10_000
    max_batch_bytes: Positive = 100_000_000
    max_open_batches: Positive = 4
    max_failed_share: Share = 0.1
    """More failed, refused or unknown items than this end the run with exit code 7."""
