"""Why a stage would run: all that differs, for programs, and the first of it for people."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Console

from cluster.storage import open_storage
from pipeline.config import Workflow
from pipeline.display import plan_table
from pipeline.driver import create
from pipeline.plan import PlannedStage, plan
from pipeline.runner import Runner
from tests.unit.pipeline.test_runner import Silent
from tests.unit.pipeline.toys import Source


class Many(Source):
    """A stage with many fields that matter."""

    kind: ClassVar[str] = "many"
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0


def flow(**fields: int) -> Workflow:
    return Workflow(name="many", stages={"first": Many(**fields)})


def table(stages: list[PlannedStage]) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(plan_table("many", stages))
    return capture.get()


def test_all_that_differs_is_in_the_document_and_three_of_it_in_the_table(tmp_path):
    storage = open_storage(f"file://{tmp_path}")
    workflow = flow()
    runner = Runner(storage, create(storage, workflow), workflow, owner="test", ray=False, tracker=Silent())
    assert runner.run() == "done"
    found = plan(storage, flow(a=1, b=2, c=3, d=4, e=5))
    lines = ["a: 0 → 1", "b: 0 → 2", "c: 0 → 3", "d: 0 → 4", "e: 0 → 5"]
    assert found[0].document()["why"] == ["differs from the nearest many that is done:", *lines]
    shown = table(found)
    assert all(line in shown for line in [*lines[:3], "and 2 more"])
    assert not any(line in shown for line in lines[3:])
    few = table(plan(storage, flow(a=1, b=2, c=3)))
    assert "more" not in few


def test_warnings_are_shown_also_where_the_work_is_not_known():
    stage = PlannedStage(name="short", kind="pretrain", action="run", why=["so"], folder="", warnings=["cannot start"])
    assert "! cannot start" in table([stage])
