"""A run that is killed at every named point ends in the bits of the undisturbed one; the long form is `make chaos`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.local.stack import Stack
from tests.chaos import plan
from tests.chaos.harness import SAVE_EVERY, UPDATES, Kill, disturb, repeated_too_much, summary

SEED = 1


@given(st.integers(0, 2**32), st.integers(6, 60))
def test_a_plan_hits_every_point_and_can_be_met_in_its_order(seed, kills):
    drawn = plan.draw(seed, kills, updates=UPDATES, save_every=SAVE_EVERY)
    assert len(drawn) == kills
    assert {item.point for item in drawn} == set(plan.POINTS)
    assert {item.victim for item in drawn} == set(plan.VICTIMS)
    committed = 0
    for item in drawn:
        # A run that goes on after `committed` comes past every later update, and saves every later multiple.
        assert committed < item.update <= UPDATES
        assert item.point == "update" or item.update % SAVE_EVERY == 0
        committed = item.update if item.point == "committed" else committed
    assert drawn == plan.draw(seed, kills, updates=UPDATES, save_every=SAVE_EVERY)


def test_too_much_is_what_lies_further_back_than_an_interval_and_an_upload():
    def kill(update: int, resumed_after: int) -> Kill:
        return Kill(
            point="update", update=update, victim="rank 0", pids=(1,), checkpoint=None,
            resumed_after=resumed_after, recovery_seconds=1.0,
        )  # fmt: skip

    assert not repeated_too_much(kill(20, 10))
    assert repeated_too_much(kill(21, 10))


@pytest.mark.cluster
def test_the_bits_are_those_of_the_undisturbed_run_whatever_is_killed(stack_environment: Stack, s3_root: str):
    undisturbed = disturb(stack_environment, f"{s3_root}/undisturbed", [])
    drawn = plan.draw(SEED, len(plan.POINTS), updates=UPDATES, save_every=SAVE_EVERY)
    disturbed = disturb(stack_environment, f"{s3_root}/disturbed", drawn)
    found = summary(undisturbed, disturbed, SEED)
    assert found["kills"] == len(plan.POINTS)
    assert found["same_bits"]
    assert found["broken"] == []
