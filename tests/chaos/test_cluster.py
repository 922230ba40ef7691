"""A workflow on a head and three machines with addresses of their own, one of which is cut off from the others while
its rank goes on writing; the long form, with all that can happen to a cluster, is `make chaos-cluster`."""

from __future__ import annotations

import pytest

from cluster.local.stack import Stack
from tests.chaos.cluster import compare, late_commits, run_on
from tests.chaos.machines import Machines, missing
from tests.chaos.scenarios import SCENARIOS


@pytest.mark.cluster
def test_a_rank_that_is_cut_off_and_writes_on_makes_nothing_visible_and_the_bits_are_the_same(stack: Stack):
    if reason := missing():
        pytest.skip(f"no network namespaces: {reason}")
    with Machines(stack, 3, late_commits()) as machines:
        undisturbed = run_on(machines, f"{stack.root}/machines", None, ranks=2)
        assert undisturbed.attempts == 1
        disturbed = run_on(machines, f"{stack.root}/machines-cut", SCENARIOS["cut"], ranks=2)
    assert compare(undisturbed, disturbed, SCENARIOS["cut"]) == []
