import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from stages.data.mixed_order import PERIOD, MixedOrder, mixed_order, turns
from stages.data.order import Order

WEIGHTS = st.lists(st.floats(0.1, 10), min_size=2, max_size=4)


def places(order, numbers):
    return list(zip(*(column.tolist() for column in order.locate(numbers)), strict=True))


def mixture(weights, counts=((40, 7), (3, 3, 3), (500,)), seed=5):
    own = counts[: len(weights)]
    parts = [(len(part), weight) for part, weight in zip(own, weights, strict=True)]
    return mixed_order(np.concatenate(own), parts, seed=seed, streams=2, window=16)


@given(WEIGHTS)
def test_a_period_has_as_many_turns_of_each_part_as_its_weight_says(weights):
    found = turns(weights)
    assert found.sum() == PERIOD
    np.testing.assert_allclose(found / PERIOD, np.array(weights) / sum(weights), atol=1 / PERIOD)


def test_each_period_holds_the_exact_shares_in_an_arrangement_of_its_own():
    order = mixture([3, 1])
    parts, _ = order.turn(np.arange(2 * PERIOD))
    periods = parts.reshape(2, PERIOD)
    assert (periods == 0).sum(axis=1).tolist() == [3 * PERIOD // 4] * 2
    assert not (periods[0] == periods[1]).all()
    # No row of a batch belongs to one part for ever: neighbours are mixed with each other.
    assert abs((periods[0, 0::2] == 1).mean() - 0.25) < 0.02


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=3), st.integers(0, 3 * PERIOD), st.integers(0, 2**40))
@settings(max_examples=30)
def test_every_part_goes_through_its_own_order_without_a_gap(weights, start, seed):
    order = mixture(weights, seed=seed)
    parts, positions = order.turn(np.arange(start + 300))
    for part in range(len(weights)):
        own = positions[parts == part]
        assert own.tolist() == list(range(len(own)))
    found = places(order, range(start, start + 300))
    first_shard = [0, 2, 5]
    for number, (epoch, shard, index) in enumerate(found, start):
        part = parts[number]
        expected = places(order.parts[part], int(positions[number]))[0]
        assert (epoch, shard - first_shard[part], index) == expected


@given(st.integers(0, 2 * PERIOD), st.sampled_from([1, 2, 3, 5, 6, 8]))
@settings(max_examples=20)
def test_any_number_of_ranks_from_any_place_reads_the_same(start, world_size):
    order, batch = mixture([1, 2, 4]), 240
    expected = places(order, range(start, start + batch))
    fresh = [mixture([1, 2, 4]) for _ in range(world_size)]
    rows = batch // world_size
    found = [
        place
        for rank, own in enumerate(fresh)
        for place in places(own, range(start + rank * rows, start + (rank + 1) * rows))
    ]
    assert found == expected


def test_parts_of_equal_sizes_are_not_shuffled_alike():
    order = mixture([1, 1], counts=((50, 50), (50, 50)))
    assert places(order.parts[0], range(100)) != places(order.parts[1], range(100))


def test_one_part_is_read_in_the_plain_order():
    plain = Order(counts=np.array([5, 3]), seed=1, streams=2, window=4)
    alone = mixed_order(np.array([5, 3]), [(2, 0.5)], seed=1, streams=2, window=4)
    assert places(alone, range(16)) == places(plain, range(16))


def test_a_share_too_small_for_a_turn_is_told():
    with pytest.raises(UserError, match=r"part 1 of the mixture has the share 1e-06, less than one sample in 65536"):
        turns([1, 1e-6])


def test_an_order_in_use_can_be_sent_to_another_process():
    order = mixture([2, 1])
    here = places(order, range(50))
    assert isinstance(order, MixedOrder)
    assert places(pickle.loads(pickle.dumps(order)), range(50)) == here
