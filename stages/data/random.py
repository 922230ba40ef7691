"""Counted randomness: numbers that depend on (seed, purpose, counter) and on nothing else.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), vectorised. The key
is made from the seed and the purpose, the counter from the sample's number, so that no rank, worker or
library version has a say in what is drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox: `counters` [n, 4] to random words [n, 4] under a key of two 32-bit words."""
    # 64-bit lanes hold the full product of two 32-bit words.
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * np.uint64(_MULTIPLIERS[0])
        product1 = c2 * np.uint64(_MULTIPLIERS[1])
        c0 = (product1 >> _HALF) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def uniform(seed: int, purpose: str, counters: NDArray[np.int64], lanes: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits: `counters` [n] (global sample numbers) to [n, `lanes`].

    A lane's numbers do not change when more lanes are asked for.
    """
    return (_words(_key(seed, purpose), counters, lanes) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, seed: int, purpose: str, *labels: int) -> NDArray[np.int64]:
    """A random order of range(n), by stable sorting of generated 64-bit keys.

    `labels` name which one it is, for example an epoch's number. Equal keys keep their places, so the
    result is defined by the keys alone.
    """
    keys = _words(_key(seed, purpose, *labels), np.arange((n + 1) // 2), 2).reshape(-1)[:n]
    return np.argsort(keys, kind="stable").astype(np.int64)


def derived_seed(seed: int, purpose: str, *labels: int) -> int:
    """A seed of 64 bits for one of several things of a purpose."""
    low, high = _key(seed, purpose, *labels)
    return low | high << 32


def _key(seed: int, purpose: str, *labels: int) -> tuple[int, int]:
    text = "\0".join([str(int(seed)), purpose, *(str(int(label)) for label in labels)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _words(key: tuple[int, int], counters: NDArray[np.int64], lanes: int) -> NDArray[np.uint64]:
    """64-bit words [n, lanes]; the counter is (number low, number high, block of two lanes, 0)."""
    numbers = np.asarray(counters, dtype=np.int64).astype(np.uint64)
    blocks = (lanes + 1) // 2
    words = np.zeros((len(numbers), blocks, 4), dtype=np.uint32)
    words[:, :, 0] = (numbers & _LOW)[:, None]
    words[:, :, 1] = (numbers >> _HALF)[:, None]
    words[:, :, 2] = np.arange(blocks)
    drawn = philox4x32(words.reshape(-1, 4), key).astype(np.uint64)
    pairs = drawn[:, 0::2] | (drawn[:, 1::2] << _HALF)
    return pairs.reshape(len(numbers), 2 * blocks)[:, :lanes]
