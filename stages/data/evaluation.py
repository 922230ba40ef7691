"""Images for evaluation, in each of the ways that the reference codes bring them to the network's resolution.

Three are used with Vision Transformers:

- `resize`: the whole image to R × R, whatever its proportions. The paper's code does this
  (vision_transformer, `vit_jax/input_pipeline.py`): `tf.image.resize`, bilinear, no antialiasing. It goes
  on with fractions of grey levels, for which the nearest whole level stands here.
- `resize_then_crop`: both sides to S in the same way, proportions ignored, then the central R × R. This is
  big_vision's few-shot evaluation, `resize(256)|central_crop(224)` (`configs/common_fewshot.py`).
- `resize_small_then_crop`: the shorter side to S, proportions kept, then the central R × R. This is
  big_vision's evaluation of transfer, `resize_small(448)|central_crop(384)` (`configs/transfer.py`), and of
  pretraining, with 256 and 224. Its `resize_small` (`pp/ops_image.py`) is `tf.image.resize` by `area`, to
  which antialiasing makes no difference: each new pixel is the mean over the rectangle of the image that it
  covers, pixels at the rectangle's border counting by the part that lies inside. The sides are the old
  ones times S / shorter side in single precision, rounded half to even.

big_vision turns its resized images back into 8 bits by cutting fractions off, in both of its ways, so that
they are half a grey level darker on average than rounded ones. That is done here too, of values that are
exact: TensorFlow's sums over areas, in single precision, often end just below a whole level and lose it, so
that flat parts of an image can come out one level darker there.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from stages.data.config import EvaluationResize
from stages.data.transforms import evaluation_resize

Image = NDArray[np.uint8]

_ROUNDING = 2.0**-10
"""Added before fractions are cut off: sums of fractions must not turn a flat 200 into 199."""


def evaluation_image(image: Image, spec: EvaluationResize, resolution: int) -> Image:
    """An image [H, W, 3] at [resolution, resolution, 3]. Raises ValueError where the crop is larger than `size`."""
    spec.check(resolution)
    if spec.method == "resize":
        return evaluation_resize(image, resolution)
    assert spec.size is not None, "every other method has one"
    if spec.method == "resize_then_crop":
        return _central_crop(_bilinear(image, spec.size), resolution)
    return _resize_small_then_crop(image, spec.size, resolution)


def _bilinear(image: Image, size: int) -> Image:
    """Both sides to `size` without antialiasing, fractions cut off."""
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    sized = functional.interpolate(planes, size=(size, size), mode="bilinear", align_corners=False)
    return _cut_off(sized[0].permute(1, 2, 0).numpy())


def _central_crop(image: Image, resolution: int) -> Image:
    top, left = (_margin(side, resolution) for side in image.shape[:2])
    return image[top : top + resolution, left : left + resolution]


def _resize_small_then_crop(image: Image, size: int, resolution: int) -> Image:
    tall, wide = _small_sides(image.shape[0], image.shape[1], size)
    # Only what the crop keeps is computed: a strip of 1 × 1000 pixels would grow to 448 × 448,000.
    rows = _area_means(image, 0, tall, _margin(tall, resolution), resolution)
    return _cut_off(_area_means(rows, 1, wide, _margin(wide, resolution), resolution))


def _small_sides(height: int, width: int, size: int) -> tuple[int, int]:
    factor = np.float32(size) / np.float32(min(height, width))
    return int(np.rint(np.float32(height) * factor)), int(np.rint(np.float32(width) * factor))


def _margin(side: int, resolution: int) -> int:
    """Pixels before a central crop; where they are odd in number, the one over lies behind it."""
    return (side - resolution) // 2


def _area_means(values: NDArray, axis: int, parts: int, first: int, count: int) -> NDArray[np.float32]:
    """Means over an axis cut into equal parts: of `count` of them, from part `first` on."""
    n = values.shape[axis]
    edges = np.arange(first, first + count + 1) * n / parts
    starts, ends = edges[:-1], edges[1:]
    means = np.float32(0)
    # The most pixels that a part can lie on: as many as it is long, and one more where it begins within one.
    for offset in range(math.ceil(n / parts) + 1):
        pixels = starts.astype(np.int64) + offset
        covered = np.maximum(np.minimum(ends, pixels + 1) - np.maximum(starts, pixels), 0)
        weights = (covered * parts / n).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1 - axis))
        means = means + np.take(values, pixels, axis=axis, mode="clip") * weights
    return np.asarray(means)


def _cut_off(values: NDArray) -> Image:
    return (values + _ROUNDING).astype(np.uint8)
