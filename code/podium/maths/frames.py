"""Length-prefixed JSON over pipes: how the evaluator talks to its sandbox and grading processes."""

import json
import os
import select
import struct
import time
from typing import Any

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 16 * 2**20


def write_frame(descriptor: int, message: dict[str, Any]) -> None:
    """Write one message.

    Raises:
        OSError: the other end is gone.
    """
    body = json.dumps(message).encode()
    view = memoryview(HEADER.pack(len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_exactly(descriptor: int, count: int, deadline: float | None) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < count:
        if deadline is not None:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no complete frame before the deadline ({len(chunks)} of {count} bytes)")
        chunk = os.read(descriptor, count - len(chunks))
        if not chunk:
            return None
        chunks += chunk
    return bytes(chunks)


def read_frame(descriptor: int, timeout: float | None = None) -> dict[str, Any] | None:
    """Read one message; None when the other end is gone.

    Args:
        descriptor: the pipe.
        timeout: seconds to wait for the whole message; None waits for ever.

    Raises:
        TimeoutError: the message did not arrive in time.
        ValueError: what arrived is not a frame.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    header = _read_exactly(descriptor, HEADER.size, deadline)
    if header is None:
        return None
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    body = _read_exactly(descriptor, length, deadline)
    if body is None:
        return None
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError(f"a frame holds a {type(message).__name__}, not an object")
    return message
