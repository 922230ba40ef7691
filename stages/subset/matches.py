"""Which images of a few look like one of many: exact matches, and near ones by multi-index hashing.

Hashes that differ in at most d of 64 bits agree in one of d + 1 bands of them, by the pigeonhole principle
(Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012). So every band has
a sorted table, and only images that agree in a whole band are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.subset.fingerprint import Fingerprints

LEAST_LIKENESS, LEAST_LIKENESS_OF_SMALL = 0.97, 0.995
"""Correlation of the thumbnails from which on near hashes are taken for the same picture; the second where an image
is smaller than what its hash is made from: little tells such images apart (tests/bench/dedup.py measures both)."""
_PAIRS = 2**18
"""Pairs that are compared at once: their thumbnails take 128 MB."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Match:
    """An image that is one of the others."""

    sample: int
    other: int
    distance: int | None
    """Differing bits of the perceptual hashes; None where the pixels are the same."""


class Matcher:
    """Finds images among `others`, exactly and, unless `near` is None, within `near` bits of the hash."""

    def __init__(self, others: Fingerprints, near: int | None) -> None:
        self._others, self._near = others, near
        readable, shaped = np.flatnonzero(others.readable), np.flatnonzero(~others.flat)
        self._exact = _Table(_first_bytes(others.exact[readable]), readable)
        self._bands = [_Band(others.looks, shaped, start, stop) for start, stop in _bands(near)]

    def matches(self, images: Fingerprints) -> list[Match]:
        """At most one match for each image: the same pixels, else the nearest hash; of equals the first of the others.

        Sorted by image.
        """
        # The least rank is the best match: 0 bits and 1 up, then the number among the others.
        none = np.iinfo(np.int64).max
        best = np.full(len(images), none)
        for samples, rows in self._exact.pairs(_first_bytes(images.exact), np.flatnonzero(images.readable)):
            others = self._exact.numbers[rows]
            same = (images.exact[samples] == self._others.exact[others]).all(axis=1)
            np.minimum.at(best, samples[same], others[same])
        wanted = np.flatnonzero(~images.flat & (best == none))
        for band in self._bands:
            for samples, others, distances in band.near(images.looks, wanted, self._near or 0):
                alike = self._alike(images, samples, others)
                ranks = (distances + 1) * len(self._others) + others
                np.minimum.at(best, samples[alike], ranks[alike])
        found = np.flatnonzero(best != none)
        ranks, others = np.divmod(best[found], max(1, len(self._others)))
        return [
            Match(sample=sample, other=other, distance=rank - 1 if rank else None)
            for sample, other, rank in zip(found.tolist(), others.tolist(), ranks.tolist(), strict=True)
        ]

    def _alike(self, images: Fingerprints, samples: Numbers, others: Numbers) -> NDArray[np.bool_]:
        """Which pairs' thumbnails confirm what their hashes say."""
        small = images.small[samples] | self._others.small[others]
        least = np.where(small, LEAST_LIKENESS_OF_SMALL, LEAST_LIKENESS)
        return likeness(images.thumbnails[samples], self._others.thumbnails[others]) >= least


class _Table:
    """Numbers by a key, sorted by it."""

    def __init__(self, keys: NDArray[np.uint64], numbers: Numbers) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self.numbers = keys[order], numbers[order]

    def pairs(self, keys: NDArray[np.uint64], samples: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
        """Each of `samples` with each row that has its key, `keys[sample]`; about _PAIRS at once."""
        wanted = keys[samples]
        first = np.searchsorted(self._keys, wanted, side="left")
        counts = np.searchsorted(self._keys, wanted, side="right") - first
        for some in _groups(counts):
            own = counts[some]
            places = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
            yield np.repeat(samples[some], own), np.repeat(first[some], own) + places


class _Band:
    """Hashes by some of their bits."""

    def __init__(self, looks: NDArray[np.uint64], numbers: Numbers, start: int, stop: int) -> None:
        self._range = start, stop
        self._table = _Table(_bits(looks[numbers], start, stop), numbers)
        # Beside the table, so that rows of one key are read in a run.
        self._looks = looks[self._table.numbers]

    def near(
        self, looks: NDArray[np.uint64], samples: Numbers, near: int
    ) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
        """Each of `samples` with each number whose hash is within `near` bits of `looks[sample]`, and the distance.

        Only of those that agree with it in this band.
        """
        for own, rows in self._table.pairs(_bits(looks, *self._range), samples):
            distances = np.bitwise_count(looks[own] ^ self._looks[rows])
            close = distances <= near
            yield own[close], self._table.numbers[rows[close]], distances[close].astype(np.int64)


def likeness(one: NDArray[np.int8], other: NDArray[np.int8]) -> NDArray[np.float64]:
    """Correlation of thumbnails [n, p], row by row: 1 where they are the same but for brightness and contrast."""

    def products(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.float64]:
        # Sums of integers: exact, and converted in small pieces.
        return np.einsum("np,np->n", a, b, dtype=np.int32, casting="safe").astype(np.float64)

    return products(one, other) / np.sqrt(np.maximum(products(one, one) * products(other, other), 1.0))


def _bands(near: int | None) -> list[tuple[int, int]]:
    """First bit and the one after the last of near + 1 bands; none where only exact matches count."""
    if near is None:
        return []
    edges = np.linspace(0, 64, near + 2).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def _bits(hashes: NDArray[np.uint64], start: int, stop: int) -> NDArray[np.uint64]:
    return (hashes >> np.uint64(start)) & np.uint64(2 ** (stop - start) - 1)


def _first_bytes(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Of sha256 digests [n, 32], the first 64 bits [n]."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).reshape(-1)


def _groups(counts: Numbers) -> list[slice]:
    """Runs of rows with about _PAIRS pairs together."""
    cuts = np.flatnonzero(np.diff(np.cumsum(counts) // _PAIRS)) + 1
    edges = [0, *cuts.tolist(), len(counts)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges) if start < stop]
