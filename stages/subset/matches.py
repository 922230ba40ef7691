"""Which images of a few look like one of many: exact matches, and near ones by multi-index hashing.

Hashes that differ in at most d of 64 bits agree in one of d + 1 bands of them, by the pigeonhole principle
(Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012). So every band has
a sorted table, and only images that agree in a whole band are compared.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.subset.fingerprint import Fingerprints

LEAST_LIKENESS = 0.97
"""Correlation of the thumbnails from which on near hashes are taken for the same picture."""
_PAIRS = 2**20
"""Pairs that are compared at once."""


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
        # Backwards, so that of equal ones the first stays; images without pixels are equal to none.
        rows = reversed(list(enumerate(others.exact)))
        self._exact = {row.tobytes(): number for number, row in rows if row.any()}
        self._candidates = np.flatnonzero(~others.flat)
        self._tables: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        for start, stop in _bands(near):
            values = _band(others.looks[self._candidates], start, stop)
            order = np.argsort(values, kind="stable")
            self._tables.append((values[order], self._candidates[order]))

    def matches(self, images: Fingerprints) -> list[Match]:
        """At most one match for each image: the same pixels, else the nearest hash, else the first of the others."""
        found = {}
        for sample, row in enumerate(images.exact):
            other = self._exact.get(row.tobytes())
            if other is not None:
                found[sample] = Match(sample=sample, other=other, distance=None)
        for sample, other, distance in self._looking_alike(images):
            known = found.get(sample)
            if known is None or (known.distance is not None and (distance, other) < (known.distance, known.other)):
                found[sample] = Match(sample=sample, other=other, distance=distance)
        return [found[sample] for sample in sorted(found)]

    def _looking_alike(self, images: Fingerprints) -> list[tuple[int, int, int]]:
        """Image, other and distance of all pairs that are near."""
        samples = np.flatnonzero(~images.flat)
        found: list[tuple[int, int, int]] = []
        for (start, stop), (values, others) in zip(_bands(self._near), self._tables, strict=True):
            wanted = _band(images.looks[samples], start, stop)
            first = np.searchsorted(values, wanted, side="left")
            counts = np.searchsorted(values, wanted, side="right") - first
            for rows in _groups(counts):
                pairs = np.repeat(np.arange(len(counts))[rows], counts[rows])
                places = np.arange(len(pairs)) - np.repeat(np.cumsum(counts[rows]) - counts[rows], counts[rows])
                found += self._near_pairs(images, samples[pairs], others[first[pairs] + places])
        return found

    def _near_pairs(
        self, images: Fingerprints, samples: NDArray[np.int64], others: NDArray[np.int64]
    ) -> list[tuple[int, int, int]]:
        assert self._near is not None
        distances = np.bitwise_count(images.looks[samples] ^ self._others.looks[others])
        close = distances <= self._near
        samples, others, distances = samples[close], others[close], distances[close]
        alike = likeness(images.thumbnails[samples], self._others.thumbnails[others]) >= LEAST_LIKENESS
        return list(zip(samples[alike].tolist(), others[alike].tolist(), distances[alike].tolist(), strict=True))


def likeness(one: NDArray[np.int8], other: NDArray[np.int8]) -> NDArray[np.float64]:
    """Correlation of thumbnails [n, p], row by row: 1 where they are the same but for brightness and contrast."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-9)


def _bands(near: int | None) -> list[tuple[int, int]]:
    """First bit and the one after the last of near + 1 bands; none where only exact matches count."""
    if near is None:
        return []
    edges = np.linspace(0, 64, near + 2).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def _band(hashes: NDArray[np.uint64], start: int, stop: int) -> NDArray[np.uint64]:
    return (hashes >> np.uint64(start)) & np.uint64(2 ** (stop - start) - 1)


def _groups(counts: NDArray[np.int64]) -> list[slice]:
    """Runs of rows with about _PAIRS pairs together."""
    cuts = np.flatnonzero(np.diff(np.cumsum(counts) // _PAIRS)) + 1
    edges = [0, *cuts.tolist(), len(counts)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges) if start < stop]
