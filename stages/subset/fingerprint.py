"""What an image is recognised by: its exact pixels, and how it looks.

The perceptual hash is the DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions" (2010): 32 × 32 luminance, its cosine transform (type II), the 8 × 8 lowest frequencies, each
above the median or not. It says little where hardly anything is in those frequencies, and pictures of
one kind of thing in one pose share it; so a small thumbnail is kept beside it, to be compared too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

SIDE, LOW, THUMBNAIL = 32, 8, 16
LEAST_CONTRAST = 4.0
"""Standard deviation of the luminance, in grey levels, below which an image is compared exactly alone: the
frequencies of a flat image are noise of its encoding."""


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Of n images."""

    exact: NDArray[np.uint8]
    """sha256 of height, width and decoded RGB pixels, [n, 32]."""
    looks: NDArray[np.uint64]
    """Perceptual hashes [n]."""
    thumbnails: NDArray[np.int8]
    """Luminance [n, THUMBNAIL²], each with mean 0 and standard deviation 32."""
    flat: NDArray[np.bool_]
    """Whether an image has too little contrast for the last two, [n]."""

    def __len__(self) -> int:
        return len(self.looks)

    def to_bytes(self) -> bytes:
        """The stored form, which `read_fingerprints` takes."""
        return safetensors.numpy.save(dict(vars(self)))


def read_fingerprints(data: bytes) -> Fingerprints:
    """Fingerprints from their stored form."""
    return Fingerprints(**safetensors.numpy.load(data))


def join(parts: Sequence[Fingerprints]) -> Fingerprints:
    """Several images' after several others'."""
    return Fingerprints(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def fingerprints(images: Sequence[Image.Image]) -> Fingerprints:
    """Of RGB images."""
    looks, thumbnails, flat = zip(*(_look(image) for image in images), strict=True) if images else ((), (), ())
    return Fingerprints(
        exact=np.frombuffer(b"".join(map(_exact, images)), np.uint8).reshape(-1, 32),
        looks=np.array(looks, dtype=np.uint64),
        thumbnails=np.array(thumbnails, dtype=np.int8).reshape(-1, THUMBNAIL**2),
        flat=np.array(flat, dtype=bool),
    )


def _exact(image: Image.Image) -> bytes:
    pixels = np.asarray(image)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def _look(image: Image.Image) -> tuple[int, NDArray[np.int8], bool]:
    small = image.convert("L").resize(
        (SIDE, SIDE), Image.Resampling.BOX if min(image.size) >= SIDE else Image.Resampling.BILINEAR
    )
    luminance = np.asarray(small, dtype=np.float64)
    frequencies = np.asarray(dctn(luminance))[:LOW, :LOW]
    bits = frequencies > np.median(frequencies)
    look = int.from_bytes(np.packbits(bits).tobytes(), "big")
    blocks = luminance.reshape(THUMBNAIL, SIDE // THUMBNAIL, THUMBNAIL, SIDE // THUMBNAIL).mean(axis=(1, 3))
    contrast = float(luminance.std())
    normal = (blocks - blocks.mean()) / max(float(blocks.std()), 1e-9) * 32
    return look, np.clip(np.rint(normal), -127, 127).astype(np.int8).reshape(-1), contrast < LEAST_CONTRAST
