"""Branches of a workflow on a real cluster: side by side, and the choice among them."""

from __future__ import annotations

import pytest

from cluster.local.stack import Stack
from pipeline.config import parse_workflow
from pipeline.record import EventLog
from pipeline.settings import resolve
from tests.integration.flows import TEXT, record, state, wait_for

SWEPT = f"""{TEXT}
    cpus_per_worker: 0.4
    sweep: {{lr: [0.002, 0.00002]}}
    choose: {{metric: validation/accuracy}}
"""


@pytest.mark.cluster
def test_the_stages_of_a_sweep_run_side_by_side_and_the_best_one_is_chosen(stack_environment: Stack, s3_root: str):
    workflow = parse_workflow(SWEPT, "swept.yaml", ["pretrain.workers=1", "pretrain.updates=40"])
    storage = resolve(root=s3_root, mlflow="").storage()
    workflow_id = workflow.submit(root=s3_root)
    wait_for(lambda: state(storage, workflow_id) in ("done", "failed"), 300, "end of the workflow")
    assert state(storage, workflow_id) == "done"
    events = EventLog(storage, workflow_id).new_events()
    swept = [f"pretrain-lr-{value}" for value in ("0_002", "2e-05")]
    begun = {event.stage: event.number for event in events if event.type == "attempt_started"}
    ended = {event.stage: event.number for event in events if event.type == "stage_done"}
    assert max(begun[name] for name in swept) < min(ended[name] for name in swept)
    best, other = (record(storage, workflow_id, name) for name in swept)
    chosen = record(storage, workflow_id, "pretrain")
    assert chosen.output_prefix == best.output_prefix
    assert chosen.metrics["validation/accuracy"] > other.metrics["validation/accuracy"]
