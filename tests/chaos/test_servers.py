"""A whole workflow whose S3 server is killed and comes back ends like an undisturbed one; the long form, with all the
others, is `make chaos-servers`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.servers import VICTIMS, compare, draw, run, run_undisturbed

AWAY_SECONDS = 8.0
"""With the seconds in which S3 starts, longer than a request is tried again before its storage counts as away."""


@given(st.integers(0, 2**32), st.integers(6, 30))
def test_everybody_is_hit_in_turn_at_moments_of_the_whole_workflow(seed, kills):
    drawn = draw(seed, kills)
    assert len(drawn) == kills
    assert {plan.victim for plan in drawn} == set(VICTIMS)
    assert all(0 < plan.share < 1 for plan in drawn)
    assert drawn == draw(seed, kills)


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_workflow_survives_the_loss_of_its_s3_server(stack, tmp_path):
    undisturbed = run_undisturbed(stack, f"{stack.root}/undisturbed-whole", tmp_path)
    disturbed = run("s3", 0.5 * undisturbed.seconds, away=AWAY_SECONDS)
    assert disturbed.killed.startswith("killed s3")
    assert compare(undisturbed, disturbed, "s3") == []
