import numpy as np
import pytest

from stages.data.random import permutation, philox4x32, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    zeros = [0, 0, 0, 0]
    words = philox4x32(np.array([zeros, counter, counter], dtype=np.uint32), key)
    assert words[1].tolist() == expected
    assert words[2].tolist() == expected


def test_numbers_do_not_depend_on_what_else_is_asked_for():
    whole = uniform(7, "crop", np.arange(1000), 5)
    assert np.array_equal(uniform(7, "crop", np.array([999, 3]), 5), whole[[999, 3]])
    assert np.array_equal(uniform(7, "crop", np.arange(1000), 2), whole[:, :2])


def test_seed_purpose_and_high_counter_bits_all_matter():
    drawn = [
        uniform(7, "crop", np.arange(8), 1),
        uniform(8, "crop", np.arange(8), 1),
        uniform(7, "flip", np.arange(8), 1),
        uniform(7, "crop", np.arange(8) + 2**32, 1),
    ]
    assert len(np.unique(np.concatenate(drawn))) == 32


def test_numbers_are_uniform():
    numbers = uniform(0, "check", np.arange(20_000), 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    expected = numbers.size / 20
    # Chi-squared with 19 degrees of freedom: 43.8 is exceeded once in a thousand seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 43.8
    assert abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.03


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_permutation_holds_each_number_once(n):
    assert sorted(permutation(n, 3, "samples", 1, 2).tolist()) == list(range(n))


def test_permutations_differ_by_label_and_seed():
    base = permutation(100, 3, "samples", 1, 2)
    for other in (permutation(100, 3, "samples", 2, 1), permutation(100, 4, "samples", 1, 2)):
        assert not np.array_equal(base, other)


def test_permutation_never_changes():
    """A new numpy, another machine: the order of a run that has begun must stay."""
    assert permutation(10, 0, "shards", 0).tolist() == [6, 2, 4, 1, 0, 5, 7, 8, 9, 3]
