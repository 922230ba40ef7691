"""A run that is killed at every named point ends in the bits of the undisturbed one; the long form is `make chaos`."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.environment import in_force
from cluster.local.stack import Stack
from cluster.storage import open_storage
from pipeline.checkpoints import audit
from pipeline.driver import read_workflow
from pipeline.record import listed
from tests.chaos import plan
from tests.chaos.harness import CURVES, SAVE_EVERY, UPDATES, Kill, Outcome, disturb, late, repeated_too_much, summary

# Each is a whole workflow or two, on a machine that may do other things too.
pytestmark = pytest.mark.timeout(1800)
SEED = 1


@given(st.integers(0, 2**32), st.integers(6, 60))
def test_a_plan_hits_every_point_and_can_be_met_in_its_order(seed, kills):
    drawn = plan.draw(seed, kills, updates=UPDATES, save_every=SAVE_EVERY)
    assert len(drawn) == kills
    assert {item.point for item in drawn} == set(plan.POINTS)
    assert {item.victim for item in drawn} == set(plan.VICTIMS)
    committed = 0
    for item in drawn:
        # A run that goes on after a checkpoint comes past every later update, and saves every later multiple.
        assert committed < item.update <= UPDATES
        assert item.point == "update" or item.update % SAVE_EVERY == 0
        committed = item.update if plan.may_stand(item.point, item.victim) else committed
    assert drawn == plan.draw(seed, kills, updates=UPDATES, save_every=SAVE_EVERY)


def test_too_much_is_what_lies_further_back_than_an_interval_and_an_upload():
    def kill(saved: int, resumed_after: int, committed: int = 0) -> Kill:
        return Kill(
            point="update", update=17, victim="rank 0", pids=(1,), at=17, saved=saved, committed=committed,
            checkpoint=None, resumed_after=resumed_after, recovery_seconds=1.0,
        )  # fmt: skip

    assert not repeated_too_much(kill(15, 10))
    assert repeated_too_much(kill(15, 5))
    assert repeated_too_much(kill(15, 10, committed=15))
    assert not repeated_too_much(kill(15, 15, committed=15))


@pytest.mark.parametrize(("timed", "enough"), [(4, True), (2, True), (1, False), (0, False)])
def test_recoveries_are_counted_and_have_to_be_half_of_the_kills_of_workers(timed, enough):
    kills = tuple(
        Kill(
            point="update", update=17, victim="driver" if number > 3 else "rank 0", pids=(1,), at=17, saved=15,
            committed=15, checkpoint=None, resumed_after=15, recovery_seconds=9.0 if number < timed else None,
        )
        for number in range(6)
    )  # fmt: skip
    curves = {name: [] for name in CURVES}
    whole = Outcome(sha256={}, curves=curves, kills=(), drivers=1, starts=1, refused=(), seconds=1.0)
    found = summary(whole, replace(whole, kills=kills, drivers=3, starts=7), SEED, 6)
    assert found["recoveries_measured"] == timed
    assert (f"{timed} recoveries measured after 4 kills of workers" in found["broken"]) == (not enough)
    assert not any(late(kill) for kill in kills)


@pytest.fixture(scope="module")
def undisturbed(stack: Stack) -> Outcome:
    with in_force(stack.environment()):
        found = disturb(stack, f"{stack.root}/{uuid.uuid4().hex}", [])
    assert [step for step, _ in found.curves["train/loss"]] == list(range(1, UPDATES + 1))
    assert [step for step, _ in found.curves["raw/validation/loss"]] == [10, 20, 30, 40, 50]
    return found


@pytest.mark.cluster
def test_a_manifest_that_comes_before_its_parts_is_found_out(stack_environment, s3_root, undisturbed):
    drawn = [plan.Disturbance(point="upload", update=20, victim="rank 0")]
    disturbed = disturb(stack_environment, f"{s3_root}/manifest-first", drawn, manifest_first=True)
    assert len(disturbed.kills) == 1
    broken = summary(undisturbed, disturbed, SEED, 1)["broken"]
    whole = [item for item in broken if "committed and not whole" in item]
    assert len(whole) == 1
    assert "/checkpoints/00000020-a1" in whole[0]
    # It is what was made and evaluated before it that does not count twice.
    assert [item for item in broken if "differ" in item] == []


LOOP = """
import contextlib, sys, time
from cluster.storage import open_storage
from pipeline.collection import collect_root
from pipeline.head import LeaseLost
while True:
    with contextlib.suppress(LeaseLost, ConnectionError):
        collect_root(open_storage(sys.argv[1]), older_than=0)
        print("once more", flush=True)
    # It leaves the machine to the others in between.
    time.sleep(1)
"""


@contextmanager
def collecting(root: str, rounds: list[str]) -> Iterator[None]:
    """`gc` of all that is not reached, however young, in a process of its own, again and again."""
    process = subprocess.Popen([sys.executable, "-c", LOOP, root], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: rounds.extend(process.stdout or ()))
    reader.start()
    try:
        yield
        assert process.poll() is None, "gc has ended"
    finally:
        process.kill()
        process.wait()
        reader.join()


@pytest.mark.cluster
def test_the_bits_are_those_of_the_undisturbed_run_whatever_is_killed_while_gc_runs_over_and_over(
    stack_environment, s3_root, undisturbed
):
    drawn = plan.draw(SEED, len(plan.POINTS), updates=UPDATES, save_every=SAVE_EVERY)
    root, rounds = f"{s3_root}/disturbed", list[str]()
    with collecting(root, rounds):
        disturbed = disturb(stack_environment, root, drawn)
    assert len(rounds) >= 2
    found = summary(undisturbed, disturbed, SEED, len(drawn))
    assert found["kills"] == len(plan.POINTS)
    assert found["same_bits"]
    assert found["broken"] == []
    assert disturbed.refused == ()
    storage = open_storage(root)
    (workflow_id,) = listed(storage)
    kept = list(audit(storage, workflow_id, read_workflow(storage, workflow_id), fast=False))
    assert len(kept) > 2
    assert [problem for item in kept for problem in item.problems] == []
