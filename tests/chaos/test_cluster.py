"""Workflows on a head and three machines with addresses of their own, to which happens what can happen to machines.

The long form, each in a cluster of its own of four machines, is `make chaos-cluster`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.local.stack import Stack
from tests.chaos.cluster import Outcome, compare, late_commits, run_on
from tests.chaos.machines import Machines, missing
from tests.chaos.scenarios import ALL, SCENARIOS, Scenario

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def machines(stack: Stack) -> Iterator[Machines]:
    """For all of them in turn: to start a cluster of four takes as long as a workflow on it."""
    if reason := missing():
        pytest.skip(f"no network namespaces: {reason}")
    with Machines(stack, 3, late_commits()) as machines:
        yield machines


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, machines: Machines) -> Outcome:
    for number in range(3):
        found = disturbed(stack, machines, f"undisturbed-{number}", None)
        if found.attempts == 1:
            return found
    raise AssertionError("nothing was left undisturbed by this machine itself")


def disturbed(stack: Stack, machines: Machines, name: str, scenario: Scenario | None) -> Outcome:
    return run_on(machines, f"{stack.root}/machines-{name}", scenario, ranks=2)


def test_a_rank_that_is_cut_off_and_writes_on_makes_nothing_visible_and_the_bits_are_the_same(
    stack, machines, undisturbed
):
    assert compare(undisturbed, disturbed(stack, machines, "cut", SCENARIOS["cut"]), SCENARIOS["cut"]) == []


def test_machines_that_are_slow_or_lost_one_after_the_other_change_nothing_and_are_named(stack, machines, undisturbed):
    assert compare(undisturbed, disturbed(stack, machines, "all", ALL), ALL) == []
