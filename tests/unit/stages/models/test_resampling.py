"""Resampled position embeddings against scipy, which the paper's code calls (`vit_jax/checkpoint.py`)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import zoom
from torch.nn import functional

from stages.models.resampling import Mode, resample_position_embeddings
from tests.unit.stages.models.peers import import_timm

MODES: list[Mode] = ["scipy_bilinear", "bicubic", "bicubic_antialias"]


def embeddings(rows, columns, prefix_tokens=1, width=3):
    random = np.random.default_rng((rows, columns))
    return torch.from_numpy(random.normal(size=(1, prefix_tokens + rows * columns, width)).astype(np.float32))


def assert_zoomed(old, new, **options):
    """`old` and `new` are rows and columns."""
    before = embeddings(*old)
    after = resample_position_embeddings(before, old, new)
    image = before[0, 1:].reshape(*old, -1).numpy()
    expected = zoom(image, (new[0] / old[0], new[1] / old[1], 1), order=1, **options)
    assert isinstance(expected, np.ndarray)
    # A place of up to `old` in float32 is off by up to old · 2^-23, and the value by that times the slope.
    tolerance = max(old) * 2**-23 * float(np.ptp(image)) + 1e-6
    assert np.abs(after[0, 1:].numpy() - expected.reshape(new[0] * new[1], -1)).max() <= tolerance
    assert torch.equal(after[:, :1], before[:, :1])  # The class token's stays.


@pytest.mark.parametrize(
    ("old", "new"), [(14, 24), (14, 32), (16, 37), (7, 12), (24, 14), (7, 5), (2, 3), (3, 2), (5, 9), (4, 1), (1, 4)]
)
def test_the_papers_mode_is_scipys_zoom_of_order_1(old, new):
    assert_zoomed((old, old), (new, new))


@pytest.mark.parametrize(("old", "new"), [((7, 9), (14, 5)), ((3, 5), (6, 11)), ((14, 14), (24, 31)), ((1, 6), (4, 6))])
def test_rows_and_columns_may_differ(old, new):
    assert_zoomed(old, new, mode="nearest")


SIDES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@given(old=SIDES, new=SIDES)
def test_the_papers_mode_is_scipys_zoom_for_all_grids(old, new):
    # Not in scipy's default mode: where the last place is rounded to beyond the border, as from 8 to 26 or from 28 to
    # 14, that one fills the last row and column with zeros.
    if old != new:
        assert_zoomed(old, new, mode="nearest")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("new", [(3, 3), (5, 8), (11, 11)])
def test_a_constant_grid_stays_constant_and_takes_the_new_shape(mode, new):
    before = torch.full((1, 1 + 7 * 7, 4), 0.25)
    before[:, 0] = -3.0
    after = resample_position_embeddings(before, (7, 7), new, mode=mode)
    assert after.shape == (1, 1 + new[0] * new[1], 4)
    assert torch.equal(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1:], torch.full_like(after[:, 1:], 0.25), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_rows_and_columns_keep_their_places(mode):
    # The value of a token is its column, plus 100 for each row: an order that resampling to twice the size keeps.
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    before = (100 * rows + columns).reshape(1, 24, 1)
    after = resample_position_embeddings(before, (4, 6), (8, 12), prefix_tokens=0, mode=mode).reshape(8, 12)
    assert (after.diff(dim=0) > 0).all()
    assert (after.diff(dim=1)[:, 2:-2] > 0).all()
    assert after[-1, 0] - after[0, 0] > 250 > 10 > after[0, -1] - after[0, 0]


@pytest.mark.parametrize("mode", ["bicubic", "bicubic_antialias"])
@pytest.mark.parametrize(("old", "new"), [((7, 7), (4, 4)), ((14, 14), (24, 24)), ((5, 8), (9, 3)), ((8, 3), (2, 7))])
def test_the_bicubic_modes_are_torchs(mode, old, new):
    before = embeddings(*old)
    image = before[0, 1:].T.reshape(1, -1, *old)
    expected = functional.interpolate(image, size=new, mode="bicubic", antialias=mode == "bicubic_antialias")
    after = resample_position_embeddings(before, old, new, mode=mode)
    torch.testing.assert_close(after[0, 1:], expected[0].reshape(-1, new[0] * new[1]).T, rtol=0, atol=1e-6)
    plain = functional.interpolate(image, size=new, mode="bicubic")
    # torch's two have other coefficients even where nothing becomes smaller.
    assert torch.allclose(expected, plain, atol=1e-2) == (mode == "bicubic")


def test_with_antialiasing_they_are_those_of_timm():
    import_timm()
    from timm.layers.pos_embed import resample_abs_pos_embed

    before = embeddings(7, 7)
    after = resample_position_embeddings(before, (7, 7), (4, 12), mode="bicubic_antialias")
    torch.testing.assert_close(after, resample_abs_pos_embed(before, [4, 12]), rtol=0, atol=1e-6)


def test_the_same_grid_gives_the_same_tensor():
    before = embeddings(5, 5)
    assert resample_position_embeddings(before, (5, 5), (5, 5)) is before


@pytest.mark.parametrize("prefix_tokens", [0, 2])
def test_a_number_of_embeddings_that_is_not_the_grids_is_refused(prefix_tokens):
    expected = 25 + prefix_tokens
    with pytest.raises(ValueError, match=rf"26 position embeddings; a grid of \(5, 5\) has {expected}"):
        resample_position_embeddings(embeddings(5, 5), (5, 5), (7, 7), prefix_tokens=prefix_tokens)


def test_the_type_of_the_numbers_is_kept():
    assert resample_position_embeddings(embeddings(5, 5).double(), (5, 5), (3, 3)).dtype == torch.float64
