"""Ticks that can be read, whatever the range."""

from __future__ import annotations

import itertools

import pytest

from stages.scaling.axes import different_counts, rounded_ticks, short_count, tick_labels


def test_there_are_two_to_five_ticks_in_every_range():
    for low, ratio in itertools.product(
        (3.3e-7, 1e-5, 0.07, 0.99, 1.0, 47.0, 3.2e5, 8e9), (1.03, 1.4, 4, 30, 1e3, 1e9)
    ):
        ticks = rounded_ticks(low, low * ratio)
        assert 2 <= len(ticks) <= 5, (low, ratio, ticks)
        assert ticks == sorted(set(ticks))
        assert all(low <= tick <= low * ratio for tick in ticks)
        labels, _ = tick_labels(ticks)
        assert max(map(len, labels)) <= 9, labels
        assert len(set(labels)) == len(labels), (ticks, labels)


@pytest.mark.parametrize(
    ("low", "high", "labels", "power"),
    [
        (40, 3000, ["100", "300", "1,000", "3,000"], ""),
        (0.03, 700, ["0.1", "1", "10", "100"], ""),
        (1e-6, 7e-6, ["1", "2", "5"], r"$\times 10^{-6}$"),
        # Labels with a power each would lie on each other.
        (6.5e-10, 3.9e-9, ["0.8", "1.5", "3"], r"$\times 10^{-9}$"),
        (2e-9, 3e-5, ["$10^{-8}$", "$10^{-7}$", "$10^{-6}$", "$10^{-5}$"], ""),
        (2e5, 5e8, ["1M", "10M", "100M"], ""),
        (110, 140, ["110", "120", "130", "140"], ""),
    ],
)
def test_ticks_are_written_as_people_do(low, high, labels, power):
    assert tick_labels(rounded_ticks(low, high)) == (labels, power)


def test_large_numbers_are_short_unless_two_would_be_alike():
    assert [short_count(value) for value in (9, 12_544, 1_281_167, 303_000_000, 5.5e9)] == [
        "9", "12,544", "1.28M", "303M", "5.5B"
    ]  # fmt: skip
    assert different_counts([1_281_167, 1_281_000]) == ["1,281,167", "1,281,000"]
