"""Whose the alias `champion` is, whatever versions there are and in whatever order they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.champion import Candidate, decide

FIGURES = st.one_of(st.none(), st.sampled_from([0.1, 0.5, 0.9, float("nan"), float("inf")]), st.floats(0, 1))
VERSIONS = st.lists(st.tuples(FIGURES, st.sampled_from(["a", "b", None])), min_size=1, max_size=6)


def candidates(rows) -> list[Candidate]:
    return [Candidate(version=i + 1, figure=figure, data=data) for i, (figure, data) in enumerate(rows)]


def decided(found: list[Candidate], holder: int | None, own: int, higher: bool = True) -> int | None:
    return decide(found, holder=holder, own=own, metric="x/accuracy", higher=higher).version


def better(one: Candidate, other: Candidate, higher: bool) -> bool:
    assert one.figure is not None
    assert other.figure is not None
    return one.figure > other.figure if higher else one.figure < other.figure


@given(VERSIONS, st.booleans(), st.data())
def test_it_moves_to_better_ones_on_the_same_data_alone_and_never_from_the_best(rows, higher, data):
    found = candidates(rows)
    own = data.draw(st.integers(1, len(found)))
    holder = data.draw(st.one_of(st.none(), st.integers(1, len(found))))
    chosen = decided(found, holder, own, higher)
    by_number = {candidate.version: candidate for candidate in found}
    if holder is not None:
        held = by_number[holder]
        assert chosen is not None, "an alias is never taken away"
        if chosen != holder:
            assert held.measured
            assert by_number[chosen].data == held.data
            assert better(by_number[chosen], held, higher)
    if chosen is not None and by_number[chosen].measured:
        best = by_number[chosen]
        rivals = [one for one in found if one.measured and one.data == best.data]
        assert not [one for one in rivals if better(one, best, higher)]
    # Asked again, nothing changes.
    assert decided(found, chosen, own, higher) == chosen


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.booleans(), st.data())
def test_drivers_at_once_end_with_the_best(figures, higher, data):
    """Each makes its version, then reads, decides and sets until nothing changes; any call of any may come next."""
    made: list[Candidate] = []
    holder: list[int | None] = [None]
    every = [Candidate(version=i + 1, figure=figure, data="a") for i, figure in enumerate(figures)]

    def driver(own: Candidate):
        made.append(own)
        yield
        while True:
            seen, held = list(made), holder[0]
            yield
            wanted = decided(seen, held, own.version, higher)
            if wanted == held:
                return
            yield
            holder[0] = wanted
            yield

    running = [driver(own) for own in every]
    while running:
        one = data.draw(st.sampled_from(running))
        try:
            next(one)
        except StopIteration:
            running.remove(one)
    final = every[(holder[0] or 0) - 1]
    assert holder[0] is not None
    assert not [one for one in every if better(one, final, higher)]


@pytest.mark.parametrize(
    ("rows", "holder", "own", "reason"),
    [
        ([(0.5, "a")], None, 1, "goes to version 1: x/accuracy 0.5"),
        ([(None, None)], None, 1, "goes to nobody: version 1 has no x/accuracy"),
        ([(0.5, "a"), (0.6, "a")], 1, 2, "moves from version 1 to version 2: x/accuracy 0.6 beats 0.5"),
        ([(0.6, "a"), (0.5, "a")], 1, 2, "stays with version 1: x/accuracy 0.6 against 0.5 of version 2"),
        ([(0.6, "a"), (0.6, "a")], 1, 2, "stays with version 1: x/accuracy 0.6 against 0.6 of version 2"),
        ([(0.6, "a"), (None, None)], 1, 2, "stays with version 1: x/accuracy 0.6; version 2 has no such figure"),
        (
            [(0.5, "a"), (0.6, "b")],
            1,
            2,
            "stays with version 1: x/accuracy 0.5, on another data set than version 2: move it by hand "
            "if that is meant",
        ),
        ([(None, None), (0.6, "b")], 1, 2, "stays with version 1, of which no x/accuracy is known"),
        ([(float("nan"), "a"), (0.6, "a")], 1, 2, "stays with version 1, of which no x/accuracy is known"),
        ([(0.6, "a"), (float("inf"), "a")], 1, 2, "stays with version 1: x/accuracy 0.6; version 2 has no such figure"),
        # A version that is not ready, or was removed this moment.
        ([(0.6, "b")], 7, 1, "stays with version 7, of which no x/accuracy is known"),
    ],
)
def test_it_says_why(rows, holder, own, reason):
    assert decide(candidates(rows), holder=holder, own=own, metric="x/accuracy", higher=True).reason == reason
