"""RandAugment (Cubuk et al., 2020) as the AugReg recipes use it: big_vision's `randaug(layers, magnitude)`.

Follows `pp/archive/autoaugment.py` there, which has habits that Pillow's and torchvision's versions lack,
and with which the published models were trained. They are kept:

- Each layer draws one of 16 operations, and always applies it. Magnitude 0 is not nothing: Invert and
  Equalize have no strength, Posterize and Solarize are strongest there, and colours are nearly gone.
- Fractions of grey levels are cut off, not rounded.
- Contrast blends with a grey that is the number of pixels over 256, not the mean of the image.
- Solarize's threshold, 25.6 times the magnitude, is stored in 8 bits, so that it starts again at 0 at
  magnitude 10: 10 and 20 invert the whole image.
- Posterize keeps 0.4 times the magnitude in bits, but at least 1, as TensorFlow shifts by 7 at most.
- Rotating, shearing and translating take the nearest pixel, shearing about the corner; translations are
  10 times the magnitude in pixels, and cutouts twice 4 times it wide, at any resolution.

Given the same choices, every pixel is the reference's own (compared at magnitudes 0 to 22, under
TensorFlow 2.15, TensorFlow Addons 0.23 and numpy 1.26), which is why single precision and the order of sums
are spelt out. It differs in two points: random numbers are given, not drawn; and above magnitude 22, where
Posterize would have more than 8 bits, which the reference does not define, Posterize does nothing.

Images are uint8 arrays [H, W, 3] of any size, 1 × 1 included, and are never written to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]
Operation = Callable[[Image, float, Floats], Image]

LANES = 4
"""Uniform numbers that each layer takes of an image: which operation, its sign, and the cutout's row and column."""

REPLACE = 128
"""What takes the place of pixels that come from outside the image or are cut out."""

# Pillow's SMOOTH.
_SMOOTHING = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / np.float32(13)


def randaugment(image: Image, numbers: Floats, *, layers: int, magnitude: float) -> Image:
    """Apply `layers` operations, one after the other, as `numbers` [layers * LANES] in [0, 1) choose them."""
    operations = tuple(OPERATIONS.values())
    for chosen, *rest in numbers.reshape(layers, LANES).tolist():
        image = operations[int(chosen * len(operations))](image, magnitude / 10, np.array(rest))
    return image


# Each operation takes the image, its strength (the magnitude over 10) and the three other numbers of the layer.


def _auto_contrast(image: Image, strength: float, numbers: Floats) -> Image:
    """Stretch each channel to 0..255."""
    return np.stack([_stretch(image[..., channel]) for channel in range(3)], axis=-1)


def _stretch(channel: Image) -> Image:
    low, high = np.float32(channel.min()), np.float32(channel.max())
    if low == high:
        return channel
    scale = np.float32(255) / (high - low)
    return _cut_off(np.arange(256, dtype=np.float32) * scale + -low * scale)[channel]


def _equalize(image: Image, strength: float, numbers: Floats) -> Image:
    return np.array(ImageOps.equalize(Pillow.fromarray(image)))


def _rotate(image: Image, strength: float, numbers: Floats) -> Image:
    """About the centre by 30 degrees at magnitude 10; `tfa.image.rotate` computes it in single precision."""
    angle = np.float32(_signed(strength * 30, numbers)) * np.float32(math.pi / 180)
    # Python's functions, since numpy's own in single precision differ between processors.
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    bottom, right = (np.float32(side - 1) for side in image.shape[:2])
    across = (right - (cos * right - sin * bottom)) / np.float32(2)
    down = (bottom - (sin * right + cos * bottom)) / np.float32(2)
    return _affine(image, (cos, -sin, across), (sin, cos, down))


def _posterize(image: Image, strength: float, numbers: Floats) -> Image:
    bits = min(max(int(strength * 4), 1), 8)
    return image & np.uint8(256 - 2 ** (8 - bits))


def _solarize(image: Image, strength: float, numbers: Floats) -> Image:
    return np.where(image < int(strength * 256) % 256, image, 255 - image)


def _solarize_add(image: Image, strength: float, numbers: Floats) -> Image:
    brighter = np.minimum(image.astype(np.int64) + int(strength * 110), 255).astype(np.uint8)
    return np.where(image < 128, brighter, image)


def _color(image: Image, strength: float, numbers: Floats) -> Image:
    """Against the grey of `tf.image.rgb_to_grayscale`, whose way back to 8 bits is by 255.5 and cutting off."""
    red, green, blue = np.moveaxis(image.astype(np.float32) * np.float32(1 / 255), -1, 0)
    luma = red * np.float32(0.2989) + green * np.float32(0.5870) + blue * np.float32(0.1140)
    grey = _cut_off(luma * np.float32(255.5))
    return _blend(np.broadcast_to(grey[..., None], image.shape), image, strength)


def _contrast(image: Image, strength: float, numbers: Floats) -> Image:
    pixels = image.shape[0] * image.shape[1]
    return _blend(np.full_like(image, min(pixels // 256, 255)), image, strength)


def _brightness(image: Image, strength: float, numbers: Floats) -> Image:
    return _blend(np.zeros_like(image), image, strength)


def _sharpness(image: Image, strength: float, numbers: Floats) -> Image:
    """Away from the mean over 3 × 3 pixels in which the middle counts five times; the border stays."""
    smooth = image.copy()
    height, width = image.shape[:2]
    if min(height, width) >= 3:
        levels = image.astype(np.float32)
        parts = (
            levels[row : row + height - 2, column : column + width - 2] * weight
            for (row, column), weight in np.ndenumerate(_SMOOTHING)
        )
        smooth[1:-1, 1:-1] = _cut_off(np.asarray(sum(parts)))
    return _blend(smooth, image, strength)


def _cutout(image: Image, strength: float, numbers: Floats) -> Image:
    """Grey out a square about a pixel that is drawn from the whole image; what lies outside is lost."""
    half = int(strength * 40)
    row, column = int(numbers[1] * image.shape[0]), int(numbers[2] * image.shape[1])
    cut = image.copy()
    cut[max(0, row - half) : row + half, max(0, column - half) : column + half] = REPLACE
    return cut


def _signed(value: float, numbers: Floats) -> float:
    return value if numbers[0] >= 0.5 else -value


def _blend(degenerate: Image, image: Image, strength: float) -> Image:
    """From the degenerate image towards this one and beyond: by 0.1 at magnitude 0, 1 at 5, 1.9 at 10."""
    start, factor = degenerate.astype(np.float32), np.float32(strength * 1.8 + 0.1)
    return _cut_off(start + factor * (image.astype(np.float32) - start))


def _affine(image: Image, across: tuple, down: tuple) -> Image:
    """Each pixel (x, y) from the one nearest to (across · (x, y, 1), down · (x, y, 1))."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    columns, rows = (_nearest(np.float32(a) * x + np.float32(b) * y + np.float32(c)) for a, b, c in (across, down))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    found = image[np.where(inside, rows, 0), np.where(inside, columns, 0)]
    return np.where(inside[..., None], found, np.uint8(REPLACE))


def _nearest(places: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rounded half away from zero, as C++ does it."""
    # In double precision, since adding a half must not round.
    return (np.sign(places) * np.floor(np.abs(places.astype(np.float64)) + 0.5)).astype(np.int64)


def _cut_off(values: NDArray) -> Image:
    return np.clip(values, 0, 255).astype(np.uint8)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": lambda image, strength, numbers: 255 - image,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": lambda image, strength, numbers: _affine(image, (1, _signed(0.3 * strength, numbers), 0), (0, 1, 0)),
    "ShearY": lambda image, strength, numbers: _affine(image, (1, 0, 0), (_signed(0.3 * strength, numbers), 1, 0)),
    "TranslateX": lambda image, strength, numbers: _affine(image, (1, 0, _signed(100 * strength, numbers)), (0, 1, 0)),
    "TranslateY": lambda image, strength, numbers: _affine(image, (1, 0, 0), (0, 1, _signed(100 * strength, numbers))),
    "Cutout": _cutout,
    "SolarizeAdd": _solarize_add,
}
"""In the reference's order, which the numbers choose from."""
