import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.data.mixup import mix_classes, mix_images, mix_multi_hot, mixup_weights, partners
from stages.data.order import rank_rows
from stages.data.random import uniform

batches = st.integers(1, 300)


def weights(samples, global_batch=8, seed=1, alpha=0.2):
    return mixup_weights(np.asarray(samples, dtype=np.int64), seed=seed, global_batch=global_batch, alpha=alpha)


@given(st.integers(0, 2**40), batches)
def test_partners_come_in_pairs_within_the_global_batch(start, global_batch):
    samples = np.arange(start, start + 3 * global_batch)
    others = partners(samples, global_batch)
    assert np.array_equal(partners(others, global_batch), samples)
    assert np.array_equal(others // global_batch, samples // global_batch)
    alone = others == samples
    last = samples % global_batch == global_batch - 1
    assert np.array_equal(alone, last & (global_batch % 2 == 1))


def test_rows_of_an_even_and_of_an_odd_batch_have_these_partners():
    assert partners(np.arange(8), 4).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert partners(np.arange(10), 5).tolist() == [1, 0, 3, 2, 4, 6, 5, 8, 7, 9]
    assert partners(np.arange(3), 1).tolist() == [0, 1, 2]


@given(st.integers(0, 1000), st.integers(1, 16), st.integers(1, 16))
def test_no_rank_needs_another_ones_samples_where_it_has_an_even_number_of_rows(batch, pairs, world_size):
    global_batch = 2 * pairs * world_size
    for rank in range(world_size):
        start, stop = rank_rows(global_batch, rank, world_size)
        mine = np.arange(start, stop) + batch * global_batch
        assert set(partners(mine, global_batch)) == set(mine)


@given(st.permutations(range(24)), st.integers(0, 24))
def test_what_a_sample_gets_depends_on_its_number_alone(order, cut):
    parts = torch.cat([weights(part) for part in (order[:cut], order[cut:])])
    assert torch.equal(parts, weights(np.arange(24))[list(order)])
    assert np.array_equal(partners(np.array(order), 8), partners(np.arange(24), 8)[order])


def test_a_weight_is_a_global_batchs_own():
    drawn = weights(np.arange(800)).reshape(100, 8)
    assert torch.equal(drawn, drawn[:, :1].expand(100, 8))
    # Most of Beta(0.2, 0.2) lies next to 0 and 1, where single precision has few numbers.
    assert len(drawn.unique()) > 80
    assert not torch.equal(drawn, weights(np.arange(800), seed=2).reshape(100, 8))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 0.8, 1.0, 4.0])
def test_weights_have_the_distribution_of_the_larger_part(alpha):
    """Kolmogorov-Smirnov against numpy's own Beta draws; 0.0163 is exceeded once in a hundred seeds."""
    drawn = np.sort(weights(np.arange(20_000), global_batch=1, alpha=alpha).numpy())
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0.5
    assert drawn.max() <= 1
    sample = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    reference = np.sort(np.maximum(sample, 1 - sample).astype(np.float32))
    places = np.concatenate([drawn, reference])
    below = [np.searchsorted(values, places, side="right") / 20_000 for values in (drawn, reference)]
    assert abs(below[0] - below[1]).max() < 0.0163


def test_weights_of_a_flat_beta_are_half_a_uniform_number_from_one():
    drawn = weights(np.arange(100), global_batch=1, alpha=1.0).numpy()
    assert drawn == pytest.approx(1 - uniform(1, "mixup", np.arange(100), 1)[:, 0] / 2, abs=1e-7)


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 1e3])
def test_extreme_shapes_give_finite_weights(alpha):
    drawn = weights(np.arange(2000), global_batch=1, alpha=alpha)
    assert torch.isfinite(drawn).all()
    assert (drawn.mean() > 0.98) if alpha < 1 else (drawn.mean() < 0.52)


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_an_alpha_that_is_no_betas_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be above 0"):
        weights(np.arange(4), alpha=alpha)


def shares(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_images_are_mixed_by_their_own_shares():
    images = torch.tensor([[[[0, 100, 255]]], [[[200, 0, 255]]]], dtype=torch.uint8)
    mixed = mix_images(images, images[[1, 0]], shares(0.75, 0.5))
    assert mixed.dtype == torch.float32
    assert mixed.tolist() == [[[[50, 75, 255]]], [[[100, 50, 255]]]]
    assert images.tolist() == [[[[0, 100, 255]]], [[[200, 0, 255]]]]


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**30))
def test_mixing_is_a_straight_line_between_two_images(n, height, width, seed):
    rng = np.random.default_rng(seed)
    pair = rng.integers(0, 256, (2, n, height, width, 3), dtype=np.uint8)
    share = torch.from_numpy(rng.uniform(0.5, 1, n).astype(np.float32))
    images, others = torch.from_numpy(pair)
    mixed = mix_images(images, others, share)
    for row, weight in enumerate(share.tolist()):
        exact = weight * pair[0, row].astype(float) + (1 - weight) * pair[1, row].astype(float)
        assert mixed[row].numpy() == pytest.approx(exact, abs=1e-4)
    assert torch.equal(mix_images(images, others, torch.ones(n)), images.float())
    assert mix_images(images, images, share).numpy() == pytest.approx(pair[0].astype(float), abs=1e-4)


def test_the_pairs_of_a_batch_are_mixed_as_the_mean_of_the_batch_stays():
    samples = np.arange(6)
    images = torch.arange(6 * 12, dtype=torch.uint8).reshape(6, 2, 2, 3)
    share = mixup_weights(samples, seed=3, global_batch=6, alpha=1.0)
    mixed = mix_images(images, images[torch.from_numpy(partners(samples, 6))], share)
    assert mixed.mean(dim=0).numpy() == pytest.approx(images.float().mean(dim=0).numpy())
    assert not torch.equal(mixed, images.float())


def test_classes_become_soft_targets():
    found = mix_classes(torch.tensor([0, 2, 1]), torch.tensor([2, 0, 1]), shares(0.75, 0.5, 0.7), 3)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.75, 0, 0.25], [0.5, 0, 0.5], [0, 1, 0]]


@given(st.integers(0, 30), st.integers(1, 9), st.integers(0, 2**30))
def test_soft_targets_are_those_of_rows_of_zeros_and_ones_and_sum_to_one(n, classes, seed):
    rng = np.random.default_rng(seed)
    labels, others = torch.from_numpy(rng.integers(0, classes, (2, n)))
    share = torch.from_numpy(rng.uniform(0.5, 1, n).astype(np.float32))
    targets = mix_classes(labels, others, share, classes)
    hot = torch.eye(classes)
    assert torch.equal(targets, mix_multi_hot(hot[labels], hot[others], share))
    assert (targets.double().sum(dim=1) == 1).all()
    assert torch.equal(targets.argmax(dim=1)[share > 0.5], labels[share > 0.5])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_samples_of_several_classes_are_mixed_class_by_class(dtype):
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=dtype)
    others = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]], dtype=dtype)
    mixed = mix_multi_hot(labels, others, shares(0.75, 0.5))
    assert mixed.dtype == torch.float32
    assert mixed.tolist() == [[0.75, 1, 0.25, 0], [0.5, 0, 0, 0.5]]


@pytest.mark.parametrize(("labels", "others"), [([3], [0]), ([0], [3]), ([-1], [0]), ([0], [-1])])
def test_a_label_that_is_no_class_is_refused(labels, others):
    with pytest.raises(RuntimeError, match="out of bounds"):
        mix_classes(torch.tensor(labels), torch.tensor(others), shares(0.75), 3)
