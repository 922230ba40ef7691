"""A workflow on a head and three machines with addresses of their own, to which happens what can happen to machines.

The long form, each in a run of its own on four machines, is `make chaos-cluster`.
"""

from __future__ import annotations

import pytest

from cluster.local.stack import Stack
from tests.chaos.cluster import Outcome, compare, machines_for, run_on
from tests.chaos.machines import missing
from tests.chaos.scenarios import ALL, SCENARIOS, Scenario

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def undisturbed(stack: Stack) -> Outcome:
    if reason := missing():
        pytest.skip(f"no network namespaces: {reason}")
    found = on_machines(stack, "undisturbed", None)
    assert found.attempts == 1
    return found


def on_machines(stack: Stack, name: str, scenario: Scenario | None) -> Outcome:
    with machines_for(stack, 3, scenario) as machines:
        return run_on(machines, f"{stack.root}/machines-{name}", scenario, ranks=2)


def test_a_rank_that_is_cut_off_and_writes_on_makes_nothing_visible_and_the_bits_are_the_same(stack, undisturbed):
    assert compare(undisturbed, on_machines(stack, "cut", SCENARIOS["cut"]), SCENARIOS["cut"]) == []


def test_machines_that_are_slow_or_lost_one_after_the_other_change_nothing_and_are_named(stack, undisturbed):
    assert compare(undisturbed, on_machines(stack, "all", ALL), ALL) == []
