import numpy as np
import pytest
import torch

from stages.data.pixels import normalise
from stages.data.random import uniform
from stages.data.transforms import CROP_LANES, crop_boxes, evaluation_resize, train_crop

AREA, RATIO = (0.05, 1.0), (0.75, 1.3333)
SAMPLINGS = ("tensorflow", "torchvision")


def boxes(height, width, sampling, n=4000, area=AREA, ratio=RATIO):
    sizes = np.tile(np.array([[height, width]]), (n, 1))
    numbers = uniform(1, "crop", np.arange(n), CROP_LANES)
    return crop_boxes(sizes, numbers, area=area, ratio=ratio, sampling=sampling)


def exact_bilinear(image, resolution):
    """Half-pixel centres, clamped at the edges, in double precision."""

    def axis(n):
        place = np.clip((np.arange(resolution) + 0.5) * n / resolution - 0.5, 0, n - 1)
        low = np.minimum(place.astype(int), max(n - 2, 0))
        return low, np.minimum(low + 1, n - 1), place - low

    (top, bottom, down), (left, right, across) = axis(image.shape[0]), axis(image.shape[1])
    across = across[None, :, None]
    rows = image[:, left] * (1 - across) + image[:, right] * across
    down = down[:, None, None]
    return rows[top] * (1 - down) + rows[bottom] * down


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (375, 500), (500, 90), (1, 1), (1, 50)])
def test_crops_lie_within_the_image(sampling, size):
    top, left, height, width = boxes(*size, sampling).T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_area_and_ratio_stay_in_their_ranges_and_fill_them(sampling):
    _, _, height, width = boxes(375, 500, sampling).T
    area, ratio = height * width / (375 * 500), width / height
    assert 0.049 < area.min() < 0.06
    assert 0.9 < area.max() <= 1
    assert 0.73 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.35


def test_the_two_samplings_have_their_own_distributions():
    """In a large square: the reference draws the height uniformly, torchvision the area and the log ratio."""
    _, _, height, width = boxes(4000, 4000, "tensorflow").T
    ratio = width / height
    assert abs(np.median(ratio) - (0.75 + 1.3333) / 2) < 0.02
    narrow = height[(ratio > 0.95) & (ratio < 1.05)]
    assert abs(np.median(narrow) / 4000 - (np.sqrt(0.05) + 1) / 2) < 0.04
    _, _, height, width = boxes(4000, 4000, "torchvision", area=(0.05, 0.5)).T
    assert abs(np.median(width / height) - 1) < 0.02
    assert abs(np.median(width * height / 4000**2) - 0.275) < 0.02


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_place_is_equally_likely(sampling):
    top, _, height, _ = boxes(10, 10, sampling, area=(0.64, 0.64), ratio=(1, 1)).T
    assert set(height.tolist()) == {8}
    assert np.bincount(top).min() > 4000 / 3 * 0.9


def test_an_image_that_no_crop_fits_falls_back():
    """A strip of 1 × 400 cannot give 30 % of its area at a ratio near 1."""
    assert set(map(tuple, boxes(4, 400, "tensorflow", area=(0.3, 1)).tolist())) == {(0, 0, 4, 400)}
    assert set(map(tuple, boxes(4, 400, "torchvision", area=(0.3, 1)).tolist())) == {(0, 197, 4, 5)}


@pytest.mark.parametrize("shape", [(8, 8), (37, 53), (375, 500), (300, 20)])
def test_resizing_is_bilinear_between_pixel_centres_without_antialiasing(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    difference = evaluation_resize(image, 32) - exact_bilinear(image.astype(float), 32)
    assert abs(difference).max() < 1.01
    assert abs(difference.mean()) < 0.2, "values are rounded, not cut off, which would make this 0.5"


def test_the_crop_is_cut_out_before_it_is_resized():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[10:20, 5:25] = 200
    resized = train_crop(image, np.array([10, 5, 10, 20]), False, 64)
    assert resized.shape == (64, 64, 3)
    assert (resized == 200).all()


def test_a_flip_mirrors_left_and_right():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    box = np.array([1, 2, 8, 8])
    assert np.array_equal(train_crop(image, box, True, 8), image[1:9, 2:10][:, ::-1])


def test_an_image_of_the_right_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(evaluation_resize(image, 16), image)


def test_normalised_images_span_minus_one_to_one_in_channels_first():
    images = torch.tensor([0, 51, 102, 153, 204, 255] * 2, dtype=torch.uint8).reshape(1, 2, 2, 3)
    out = normalise(images)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert out[0, :, 0, 0].tolist() == pytest.approx([-1, -0.6, -0.2])
    assert out[0, :, 1, 1].tolist() == pytest.approx([0.2, 0.6, 1])
