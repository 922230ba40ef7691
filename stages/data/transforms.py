"""Random crops and resizing, as functions of images and of numbers drawn elsewhere.

Images are uint8 arrays [H, W, 3]. Resizing is bilinear between pixel centres, without antialiasing, the
crop cut out first, as `tf.image.resize` does in the paper's code (`input_pipeline.py`). It is computed in
8 bits and rounded after each of the two directions, so a value lies within one grey level of the exact one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

TRIES = 10
"""Random rectangles that are tried before the fallback."""

CROP_LANES = 2 * TRIES + 2
"""Uniform numbers that the crop of one image takes."""

Range = tuple[float, float]
Floats = NDArray[np.float64]


def crop_boxes(sizes: NDArray[np.int64], numbers: Floats, *, area: Range, ratio: Range, sampling: str) -> NDArray:
    """Inception crops (top, left, height, width) [n, 4] of images with `sizes` (height, width) [n, 2].

    `numbers` [n, CROP_LANES] are uniform in [0, 1): two for the shape in each try, two for the place.

    "tensorflow" follows `sample_distorted_bounding_box`, which the paper's code and big_vision use: the
    ratio is uniform, then the height is uniform among those that keep the area in its range; the
    fallback is the whole image. It differs in two points that matter to tiny images alone: all places
    are equally likely (TensorFlow never draws the last one), and 10 tries are made, not 100.
    "torchvision" follows `RandomResizedCrop`: the area is uniform and the logarithm of the ratio is; the
    fallback is the largest central crop whose ratio is in its range.
    """
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    first, second = numbers[:, 0 : 2 * TRIES : 2], numbers[:, 1 : 2 * TRIES : 2]
    if sampling == "tensorflow":
        tall, wide, fits = _tensorflow_shapes(height, width, first, second, area, ratio)
        fallback = sizes
    else:
        tall, wide, fits = _torchvision_shapes(height, width, first, second, area, ratio)
        fallback = _central_shapes(sizes, ratio)
    rows, chosen = np.arange(len(sizes)), np.argmax(fits, axis=1)
    shapes = np.stack([tall[rows, chosen], wide[rows, chosen]], axis=1).astype(np.int64)
    found = np.any(fits, axis=1, keepdims=True)
    shapes = np.where(found, shapes, fallback)
    slack = sizes - shapes
    corners = np.where(found, np.floor(numbers[:, 2 * TRIES :] * (slack + 1)), slack // 2)
    return np.concatenate([corners.astype(np.int64), shapes], axis=1)


def _tensorflow_shapes(
    height: Floats, width: Floats, first: Floats, second: Floats, area: Range, ratio: Range
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    aspect = ratio[0] + first * (ratio[1] - ratio[0])
    least, most = area[0] * height * width, area[1] * height * width
    tallest = np.rint(np.sqrt(most / aspect))
    # The greatest height whose width, rounded, still fits into the image.
    tallest = np.where(np.rint(tallest * aspect) > width, np.floor((width + 0.5 - 1e-7) / aspect), tallest)
    tallest = np.minimum(np.where(np.rint(tallest * aspect) > width, tallest - 1, tallest), height)
    shortest = np.minimum(np.rint(np.sqrt(least / aspect)), tallest)
    tall = shortest + np.floor(second * (tallest - shortest + 1))
    # Rounding may have left the range of areas by a row.
    tall = np.where(tall * np.rint(tall * aspect) < least, tall + 1, tall)
    tall = np.where(tall * np.rint(tall * aspect) > most, tall - 1, tall)
    wide = np.rint(tall * aspect)
    inside = (tall <= height) & (wide <= width) & (tall > 0) & (wide > 0)
    return tall, wide, inside & (tall * wide >= least) & (tall * wide <= most)


def _torchvision_shapes(
    height: Floats, width: Floats, first: Floats, second: Floats, area: Range, ratio: Range
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    target = (area[0] + first * (area[1] - area[0])) * height * width
    low, high = np.log(ratio)
    aspect = np.exp(low + second * (high - low))
    wide, tall = np.rint(np.sqrt(target * aspect)), np.rint(np.sqrt(target / aspect))
    return tall, wide, (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)


def _central_shapes(sizes: NDArray[np.int64], ratio: Range) -> NDArray[np.int64]:
    height, width = sizes[:, 0], sizes[:, 1]
    tall = np.where(width < ratio[0] * height, np.rint(width / ratio[0]), height)
    wide = np.where(width > ratio[1] * height, np.rint(height * ratio[1]), width)
    return np.stack([np.minimum(tall, height), np.minimum(wide, width)], axis=1).astype(np.int64)


def train_crop(image: NDArray[np.uint8], box: NDArray[np.int64], flip: bool, resolution: int) -> NDArray[np.uint8]:
    """Cut out a box (top, left, height, width), resize it to [resolution, resolution, 3], mirror it or not."""
    top, left, height, width = box.tolist()
    resized = _resize(image[top : top + height, left : left + width], resolution)
    return resized[:, ::-1] if flip else resized


def evaluation_resize(image: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """The whole image at [resolution, resolution, 3], whatever its proportions, as in the paper's code."""
    return _resize(image, resolution)


def _resize(image: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (resolution, resolution):
        return image
    # A copy, since torch wants memory that it may write to.
    planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    sized = functional.interpolate(planes, size=(resolution, resolution), mode="bilinear", align_corners=False)
    return sized[0].permute(1, 2, 0).numpy()
