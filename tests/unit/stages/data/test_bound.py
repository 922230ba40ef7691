"""A run that waits for its images says so once, with what helps."""

import pytest

from stages.data.bound import Host, InputBound
from stages.data.config import DataConfig

HOST = Host(cores=16, loaders=2, threads=2, native=True)
NONE = (None, None, None)


def told(*waits, storage=0.0, config=None, host=HOST):
    bound = InputBound(config or DataConfig(), host)
    return [bound.look(wait, storage) for wait in waits]


@pytest.mark.parametrize("waits", [(0.9, 0.09, 0.09), (0.9, 0.5, 0.05), (0.9, 0.5), (0.05, 0.5, 0.05, 0.5)], ids=str)
def test_a_run_that_waits_for_one_interval_says_nothing(waits):
    assert told(*waits) == [None] * len(waits)


def test_what_waits_for_two_in_a_row_says_so_once():
    first, second, third, *others = told(0.9, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert (first, second, others) == (None, None, [None] * 3)
    assert third == (
        "input-bound: training waits for images 50% of the time. The limit is decoding, by 2 threads for each of 2 "
        "ranks on 16 cores: set input.loader_threads to 5"
    )


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        (Host(cores=16, loaders=2, threads=2, native=False), "install a C compiler and libjpeg's header"),
        (Host(cores=4, loaders=2, threads=1, native=True), "set input.loader_threads to 2, or take machines with more"),
        (Host(cores=4, loaders=2, threads=2, native=True), "on 4 cores: take machines with more cores for each rank"),
        (
            Host(cores=4, loaders=1, threads=0, native=True),
            "training thread on 4 cores: set input.loader_threads to 3",
        ),
        (Host(cores=1, loaders=1, threads=1, native=True), "by 1 thread on 1 cores: take machines"),
    ],
    ids=["no helper", "few threads", "few cores", "no threads", "one core"],
)
def test_where_decoding_is_the_limit_it_says_what_would_decode_more(host, advice):
    assert advice in (told(0, 0.6, 0.6, host=host)[-1] or "")


def test_the_time_of_randaugment_is_told_to_be_in_it():
    config = DataConfig(randaugment={"layers": 2})
    assert "fewer layers of RandAugment" in (told(0, 0.6, 0.6, config=config)[-1] or "")


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        ({}, "keep the shards in the cache from epoch to epoch (input.cache_gigabytes, now 40,"),
        ({"fetch": "samples"}, "set input.fetch to shards"),
        ({"fetch_ahead": False}, "set input.fetch_ahead to true"),
    ],
    ids=str,
)
def test_where_storage_is_the_limit_it_says_what_would_ask_less_of_it(config, advice):
    found = told(0, 0.3, 0.3, storage=0.7, config=DataConfig(**config))[-1]
    assert found is not None
    assert "The limit is storage, for which the loader's threads wait 70% of theirs: " in found
    assert advice in found
