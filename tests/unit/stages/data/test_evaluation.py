import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from stages.data.config import EvaluationResize
from stages.data.evaluation import evaluation_image

RESIZE = EvaluationResize()


def resize_then_crop(size):
    return EvaluationResize(method="resize_then_crop", size=size)


def resize_small_then_crop(size):
    return EvaluationResize(method="resize_small_then_crop", size=size)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def linear_weights(n, size):
    """[size, n]: between pixel centres, clamped at the edges."""
    weights = np.zeros((size, n))
    for row in range(size):
        place = min(max((row + 0.5) * n / size - 0.5, 0), n - 1)
        low = int(place)
        weights[row, low] += 1 - (place - low)
        weights[row, min(low + 1, n - 1)] += place - low
    return weights


def area_weights(n, size):
    """[size, n]: the part of each new pixel that lies on each old one."""
    weights = np.zeros((size, n))
    for row in range(size):
        for pixel in range(n):
            overlap = min((row + 1) * n / size, pixel + 1) - max(row * n / size, pixel)
            weights[row, pixel] = max(0, overlap) * size / n
    return weights


def resized(image, rows, columns):
    return np.einsum("ab,bcx,dc->adx", rows, image.astype(float), columns)


def assert_cut_off(found, exact):
    """Equal to the whole part; at whole numbers, within the rounding of the sums."""
    assert found.dtype == np.uint8
    assert found.shape == exact.shape
    assert (found <= exact + 0.002).all()
    assert (found > exact - 1).all()


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
specs = st.one_of(
    st.just(RESIZE),
    st.integers(9, 30).map(resize_then_crop),
    st.integers(9, 30).map(resize_small_then_crop),
)


@given(shapes, specs, st.integers(1, 9))
def test_every_size_of_image_comes_to_the_resolution_and_flat_ones_stay_flat(shape, spec, resolution):
    for grey in (0, 1, 77, 200, 255):
        image = np.full((*shape, 3), grey, dtype=np.uint8)
        found = evaluation_image(image, spec, resolution)
        assert found.dtype == np.uint8
        assert np.array_equal(found, np.full((resolution, resolution, 3), grey))


@given(shapes, specs, st.integers(1, 9))
def test_the_image_is_not_written_to(shape, spec, resolution):
    image = noise(*shape)
    image.flags.writeable = False
    evaluation_image(image, spec, resolution)
    assert np.array_equal(image, noise(*shape))


@given(shapes, specs, st.integers(1, 9))
def test_channels_are_treated_alike_and_apart(shape, spec, resolution):
    image = noise(*shape)
    found = evaluation_image(image, spec, resolution)
    turned = evaluation_image(np.ascontiguousarray(image[..., [2, 0, 1]]), spec, resolution)
    assert np.array_equal(turned, found[..., [2, 0, 1]])


@given(shapes, st.integers(1, 30))
def test_resize_takes_the_whole_image_and_rounds(shape, resolution):
    image = noise(*shape)
    exact = resized(image, linear_weights(shape[0], resolution), linear_weights(shape[1], resolution))
    assert abs(evaluation_image(image, RESIZE, resolution) - exact).max() < 1.01


@given(shapes, st.integers(1, 30), st.integers(0, 20))
def test_resize_then_crop_ignores_proportions_and_cuts_fractions_off(shape, resolution, more):
    size = resolution + more
    image = noise(*shape)
    exact = resized(image, linear_weights(shape[0], size), linear_weights(shape[1], size))
    margin = more // 2
    exact = exact[margin : margin + resolution, margin : margin + resolution]
    assert_cut_off(evaluation_image(image, resize_then_crop(size), resolution), exact)


@given(shapes, st.integers(1, 30), st.integers(0, 20))
def test_resize_small_then_crop_keeps_proportions_and_takes_means_over_areas(shape, resolution, more):
    size = resolution + more
    # Where a side is half a pixel too long, single precision may say either.
    assume(all((side * size * 2) % min(shape) for side in shape if side != min(shape)))
    image = noise(*shape)
    tall, wide = (round(side * size / min(shape)) for side in shape)
    exact = resized(image, area_weights(shape[0], tall), area_weights(shape[1], wide))
    top, left = (tall - resolution) // 2, (wide - resolution) // 2
    exact = exact[top : top + resolution, left : left + resolution]
    assert_cut_off(evaluation_image(image, resize_small_then_crop(size), resolution), exact)


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
def test_whole_factors_give_the_means_of_blocks_as_pillow_has_them(factor):
    image = noise(8 * factor, 12 * factor)
    found = evaluation_image(image, resize_small_then_crop(8), 8)
    means = np.asarray(Image.fromarray(image).reduce(factor)).astype(int)
    assert set(np.unique(means[:, 2:10] - found)) <= {0, 1}, "Pillow rounds, the reference cuts off"


def test_an_image_is_doubled_by_doubling_its_pixels():
    image = noise(5, 9)
    found = evaluation_image(image, resize_small_then_crop(10), 10)
    assert np.array_equal(found, image.repeat(2, axis=0).repeat(2, axis=1)[:, 4:14])


def test_a_side_half_a_pixel_too_long_goes_to_the_even_number():
    """3 and 5 pixels by 1.5 are 4.5 and 7.5: 4 and 8 rows, of which the central 2 are means over their areas."""
    for long, sides in ((3, 4), (5, 8)):
        image = np.zeros((long, 2, 3), dtype=np.uint8)
        image[long // 2] = 240
        exact = resized(image, area_weights(long, sides), area_weights(2, 3))
        first = (sides - 2) // 2
        found = evaluation_image(image, resize_small_then_crop(3), 2)
        assert_cut_off(found, exact[first : first + 2, :2])


@pytest.mark.parametrize(("size", "first"), [(7, 1), (8, 2), (9, 2), (4, 0)])
def test_the_pixel_over_in_a_central_crop_lies_behind_it(size, first):
    image = noise(size, size)
    for spec in (resize_then_crop(size), resize_small_then_crop(size)):
        assert np.array_equal(evaluation_image(image, spec, 4), image[first : first + 4, first : first + 4])


def test_a_thin_strip_is_computed_only_where_the_crop_lies():
    strip = np.arange(1000, dtype=np.uint8).reshape(1, 1000, 1).repeat(3, axis=2)
    found = evaluation_image(strip, resize_small_then_crop(448), 384)
    columns = (np.arange(384) + (448_000 - 384) // 2) // 448
    assert np.array_equal(found, strip[[0] * 384][:, columns])


def test_fractions_are_rounded_by_resize_and_cut_off_by_the_others():
    image = np.array([[[0, 0, 0], [1, 3, 255]]], dtype=np.uint8)
    assert evaluation_image(image, resize_then_crop(1), 1).tolist() == [[[0, 1, 127]]]
    square = image.repeat(2, axis=0)
    assert evaluation_image(square, resize_small_then_crop(1), 1).tolist() == [[[0, 1, 127]]]
    rounded, cut = (evaluation_image(noise(64, 64), spec, 32).mean() for spec in (RESIZE, resize_then_crop(32)))
    assert rounded > cut + 0.3


def test_a_size_is_asked_for_where_there_is_a_crop_and_only_there():
    with pytest.raises(ValueError, match=r"resize_then_crop needs size"):
        EvaluationResize(method="resize_then_crop")
    with pytest.raises(ValueError, match="size=256"):
        EvaluationResize(size=256)


@pytest.mark.parametrize("spec", [resize_then_crop(8), resize_small_then_crop(8)])
def test_a_crop_larger_than_the_image_is_refused(spec):
    with pytest.raises(ValueError, match=r"size=8 .* resolution=9"):
        evaluation_image(noise(20, 20), spec, 9)
    assert evaluation_image(noise(20, 20), spec, 8).shape == (8, 8, 3)
