import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from stages.data.order import Order, in_turn, rank_rows

orders = st.builds(
    Order,
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any).map(np.array),
    seed=st.integers(0, 2**40),
    streams=st.integers(1, 50),
    window=st.integers(1, 60),
)


def places(order, numbers):
    return list(zip(*(column.tolist() for column in order.locate(numbers)), strict=True))


@given(orders, st.integers(0, 5))
def test_every_epoch_holds_each_sample_once(order, epoch):
    found = places(order, range(epoch * order.total, (epoch + 1) * order.total))
    expected = [(epoch, shard, index) for shard, count in enumerate(order.counts.tolist()) for index in range(count)]
    assert sorted(found) == expected


@given(orders, st.data())
@settings(max_examples=50)
def test_world_size_accumulation_and_start_change_nothing(order, data):
    world_size, accumulation, rows = (data.draw(st.integers(1, 4)) for _ in range(3))
    start = data.draw(st.integers(0, 3 * order.total))
    batch = world_size * accumulation * rows
    read = []
    for first in (start, start + batch):
        for rank in range(world_size):
            low, high = rank_rows(batch, rank, world_size)
            for micro in range(accumulation):
                begin = first + low + micro * rows
                read += places(order, range(begin, min(begin + rows, first + high)))
    fresh = Order(counts=order.counts, seed=order.seed, streams=order.streams, window=order.window)
    assert read == places(fresh, range(start, start + 2 * batch))
    everything = places(fresh, range(start + 2 * batch))
    assert everything[start:] == read


@given(orders, st.lists(st.integers(0, 300), max_size=30))
@settings(max_examples=30)
def test_any_numbers_in_any_order_are_found_where_the_sequence_has_them(order, numbers):
    sequence = places(order, range(301))
    assert places(order, np.array(numbers, dtype=np.int64)) == [sequence[number] for number in numbers]


def test_a_single_number_is_located():
    order = Order(counts=np.array([5, 3]), seed=1, streams=2, window=4)
    assert places(order, 11) == [places(order, range(12))[11]]


def test_epochs_and_seeds_differ():
    order = Order(counts=np.array([30, 30]), seed=1, streams=4, window=10)
    first, second = ([place[1:] for place in places(order, range(start, start + 60))] for start in (0, 60))
    other = Order(counts=np.array([30, 30]), seed=2, streams=4, window=10)
    assert first != second
    assert first != [place[1:] for place in places(other, range(60))]


def test_one_stream_reads_shard_after_shard_within_a_small_window():
    order = Order(counts=np.array([100] * 5), seed=3, streams=1, window=20)
    shards = [place[1] for place in places(order, range(500))]
    assert [shards[i] for i in range(0, 500, 100)] == sorted(set(shards), key=shards.index)
    assert all(len(set(shards[i : i + 100])) == 1 for i in range(0, 500, 100))


def test_one_stream_with_a_window_over_all_mixes_everything():
    order = Order(counts=np.array([100] * 5), seed=3, streams=1, window=500)
    shards = [place[1] for place in places(order, range(500))]
    assert all(len(set(shards[i : i + 100])) == 5 for i in range(0, 500, 100))


def test_streams_are_read_in_turn_from_equal_ranges():
    """With a window of 1 nothing is shuffled but the shards, so the streams are seen as they lie."""
    order = Order(counts=np.array([11]), seed=0, streams=3, window=1)
    assert [place[2] for place in places(order, range(11))] == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7]


def test_another_process_finds_the_same_order():
    code = (
        "import numpy as np; from stages.data.order import Order;"
        "o = Order(counts=np.array([50, 70]), seed=9, streams=3, window=16);"
        "print([c.tolist() for c in o.locate(range(100, 200))])"
    )
    order = Order(counts=np.array([50, 70]), seed=9, streams=3, window=16)
    here = [column.tolist() for column in order.locate(range(100, 200))]
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


def test_an_order_in_use_can_be_sent_to_another_process():
    order = Order(counts=np.array([50, 70]), seed=9, streams=3, window=16)
    here = places(order, range(50))
    assert places(pickle.loads(pickle.dumps(order)), range(50)) == here


def test_a_far_place_costs_no_more_than_a_near_one():
    order = Order(counts=np.array([10_000] * 30_000), seed=0, streams=8, window=16)
    assert places(order, 2_000_000_000_000)[0][0] == 2_000_000_000_000 // order.total


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any).map(tuple))
def test_in_turn_walks_through_the_shards(counts):
    shards, indices = in_turn(np.array(counts), np.arange(sum(counts)))
    expected = [(shard, index) for shard, count in enumerate(counts) for index in range(count)]
    assert list(zip(shards.tolist(), indices.tolist(), strict=True)) == expected


def test_rank_rows_names_the_world_size_that_would_do():
    assert [rank_rows(12, rank, 3) for rank in range(3)] == [(0, 4), (4, 8), (8, 12)]
    with pytest.raises(UserError, match="run 6 workers"):
        rank_rows(12, 0, 7)
    with pytest.raises(UserError, match="run 4 workers"):
        rank_rows(4, 0, 5)


def test_a_split_without_samples_is_refused():
    with pytest.raises(UserError, match="no samples"):
        Order(counts=np.array([0, 0]), seed=0, streams=1, window=1)
