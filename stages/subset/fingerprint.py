"""What an image is recognised by: its exact pixels, and how it looks.

The perceptual hash is the DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions" (2010): 32 × 32 luminance, its cosine transform (type II), the 8 × 8 lowest frequencies, each
above the median or not. It says little where hardly anything is in those frequencies, and pictures of
one kind of thing in one pose share it; so a small thumbnail is kept beside it, to be compared too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

SIDE, LOW, THUMBNAIL = 32, 8, 16
LEAST_CONTRAST = 4.0
"""Standard deviation of the luminance, in grey levels, below which an image is compared exactly alone: the
frequencies of a flat image are mostly noise of its encoding, and all blank ones have one hash."""


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Of n images. One that cannot be decoded matches nothing: its digest is zero, and it counts as flat."""

    exact: NDArray[np.uint8]
    """sha256 of height, width and decoded RGB pixels, [n, 32]."""
    looks: NDArray[np.uint64]
    """Perceptual hashes [n]."""
    thumbnails: NDArray[np.int8]
    """Luminance [n, THUMBNAIL²], each with mean 0 and standard deviation 32."""
    flat: NDArray[np.bool_]
    """Whether an image has too little contrast for the last two, [n]."""
    small: NDArray[np.bool_]
    """Whether a side is shorter than the SIDE pixels that the last three are made from, [n]."""

    def __len__(self) -> int:
        return len(self.looks)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Whether an image could be decoded, [n]."""
        return np.any(self.exact, axis=1, keepdims=True)[:, 0]

    def to_bytes(self) -> bytes:
        """The stored form, which `read_fingerprints` takes."""
        return safetensors.numpy.save(dict(vars(self)))


def read_fingerprints(data: bytes) -> Fingerprints:
    """Fingerprints from their stored form."""
    return Fingerprints(**safetensors.numpy.load(data))


def join(parts: Sequence[Fingerprints]) -> Fingerprints:
    """Several images' after several others'."""
    return Fingerprints(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def fingerprints(images: Iterable[Image.Image | None]) -> Fingerprints:
    """Of RGB images, taken one by one; None stands for one that cannot be decoded."""
    rows = [_UNREADABLE if image is None else (_exact(image), *_look(image)) for image in images]
    exact, looks, thumbnails, flat, small = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Fingerprints(
        exact=np.frombuffer(b"".join(exact), np.uint8).reshape(-1, 32),
        looks=np.array(looks, dtype=np.uint64),
        thumbnails=np.array(thumbnails, dtype=np.int8).reshape(-1, THUMBNAIL**2),
        flat=np.array(flat, dtype=bool),
        small=np.array(small, dtype=bool),
    )


_UNREADABLE = (bytes(32), 0, np.zeros(THUMBNAIL**2, dtype=np.int8), True, True)


def _exact(image: Image.Image) -> bytes:
    pixels = np.asarray(image)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def _look(image: Image.Image) -> tuple[int, NDArray[np.int8], bool, bool]:
    small = min(image.size) < SIDE
    reduced = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR if small else Image.Resampling.BOX)
    luminance = np.asarray(reduced, dtype=np.float64)
    # Rounded, so that what symmetry makes zero is zero on every machine, not the noise of its sums.
    frequencies = np.round(np.asarray(dctn(luminance))[:LOW, :LOW], 3)
    bits = frequencies > np.median(frequencies)
    look = int.from_bytes(np.packbits(bits).tobytes(), "big")
    blocks = luminance.reshape(THUMBNAIL, SIDE // THUMBNAIL, THUMBNAIL, SIDE // THUMBNAIL).mean(axis=(1, 3))
    normal = (blocks - blocks.mean()) / max(float(blocks.std()), 1e-9) * 32
    thumbnail = np.clip(np.rint(normal), -127, 127).astype(np.int8).reshape(-1)
    return look, thumbnail, float(luminance.std()) < LEAST_CONTRAST, small
