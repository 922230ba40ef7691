import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.subset.choice import kept_of, thresholds

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=200)
FRACTIONS = st.floats(0.01, 1)


def chosen(hashes, labels, numbers, fraction=1.0, per_class=None):
    """Which of `numbers` are kept."""
    limits = thresholds(hashes[numbers], labels[numbers], 5, fraction, per_class)
    return numbers[hashes[numbers] <= limits[labels[numbers]]]


def drawn(labels, seed):
    return np.random.default_rng(seed).random(len(labels)), np.array(labels, dtype=np.int32), np.arange(len(labels))


@given(st.integers(0, 3000), st.floats(0.001, 1), st.floats(0.001, 1))
def test_more_is_kept_of_a_larger_fraction_and_one_at_least(count, one, other):
    small, large = sorted((one, other))
    assert kept_of(count, small, None) <= kept_of(count, large, None) <= count
    assert bool(kept_of(count, small, None)) == bool(count)
    assert abs(kept_of(count, large, None) - large * count) <= 1


@given(LABELS, FRACTIONS, st.integers(0, 2**32))
def test_each_class_has_exactly_its_share(labels, fraction, seed):
    hashes, own, numbers = drawn(labels, seed)
    found = np.bincount(own[chosen(hashes, own, numbers, fraction)], minlength=5)
    assert found.tolist() == [kept_of(labels.count(label), fraction, None) for label in range(5)]


@given(LABELS, FRACTIONS, FRACTIONS, st.integers(0, 2**32))
def test_a_smaller_fraction_lies_in_a_larger_one(labels, one, other, seed):
    hashes, own, numbers = drawn(labels, seed)
    small, large = (set(chosen(hashes, own, numbers, fraction)) for fraction in sorted((one, other)))
    assert small <= large


@given(LABELS, FRACTIONS, st.integers(1, 30), st.integers(0, 2**32))
def test_a_part_of_a_part_is_the_smaller_part(labels, fraction, per_class, seed):
    hashes, own, numbers = drawn(labels, seed)
    part = chosen(hashes, own, numbers, fraction)
    again = chosen(hashes, own, part, per_class=per_class)
    direct = set(chosen(hashes, own, numbers, per_class=per_class))
    assert set(again) == direct & set(part)
    assert (
        np.bincount(own[again], minlength=5).tolist()
        == np.minimum(np.bincount(own[part], minlength=5), per_class).tolist()
    )
