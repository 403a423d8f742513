"""Random numbers as a pure function of what they are for.

Every draw (negatives, topic and rationale dropout, order of options) takes a generator keyed by
(seed, epoch, id): the same key gives the same stream on any machine, in any worker, after any resume.
"""

import hashlib

import numpy as np


def key(*parts: int | str) -> int:
    """A 128-bit key for the given parts; ("a", "b") and ("ab",) differ."""
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{int(part)}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def generator(*parts: int | str) -> np.random.Generator:
    """A counter-based generator (Philox 4x64) keyed by `parts`."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def permutation(count: int, *parts: int | str) -> np.ndarray:
    """A permutation of range(count) keyed by `parts`."""
    return generator(*parts).permutation(count)


def torch_seed(*parts: int | str) -> int:
    """A seed for torch.manual_seed keyed by `parts`."""
    return key(*parts) % (2**63)
