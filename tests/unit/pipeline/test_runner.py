import threading
import time

import pytest

from cluster.errors import UserError
from cluster.storage import open_storage
from pipeline import stage_run
from pipeline.config import Workflow
from pipeline.display import describe
from pipeline.head import Head, commit_checkpoint, read_head
from pipeline.keeper import request_cancel
from pipeline.record import EventLog, listed, read_record
from pipeline.runner import Runner
from pipeline.status import StatusReader
from stages.config import placement
from tests.unit.pipeline.toys import CALLS, Source, Upper


class Silent:
    """A tracker that shows nothing."""

    def stage_started(self, *_):
        pass

    def attempt_started(self, *_):
        pass

    def attempt_ended(self, *_):
        pass

    def stage_ended(self, *_):
        pass


@pytest.fixture
def storage(tmp_path):
    CALLS.clear()
    return open_storage(f"file://{tmp_path}")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stage_run, "BACKOFF_SECONDS", 0.01)


def workflow(source: dict | None = None, upper: dict | None = None) -> Workflow:
    stages = {"first": Source(**(source or {})), "second": Upper(text="first", **(upper or {}))}
    return Workflow(name="toy", stages=stages)


def run(storage, flow: Workflow, name: str = "toy-1", *, ttl: float = 5.0, lost=None) -> str:
    runner = Runner(
        storage, name, flow, owner=f"test {name}", ray=False, tracker=Silent(),
        lease_seconds=ttl, on_lost=lost,
    )  # fmt: skip
    return runner.run()


def status(storage, name: str = "toy-1"):
    reader = StatusReader(storage, name, ["first", "second"])
    reader.update()
    return reader.status


def output(storage, name: str = "toy-1") -> bytes:
    head = read_head(storage, status(storage, name).stages["second"].folder)
    record = read_record(storage, head[0].record)
    return storage.read(f"{record.output_prefix}/text")


def test_stages_run_in_order_and_leave_records(storage):
    assert run(storage, workflow()) == "done"
    assert CALLS == ["source", "upper"]
    assert output(storage) == b"HELLO"
    assert listed(storage) == {"toy-1": "done"}


def test_a_second_workflow_reuses_everything_across_workflows(storage):
    run(storage, workflow())
    CALLS.clear()
    keys = list(storage.list("stages/"))
    assert run(storage, workflow(), "toy-2") == "done"
    assert CALLS == []
    assert list(storage.list("stages/")) == keys
    assert {stage.outcome for stage in status(storage, "toy-2").stages.values()} == {"reused"}


def test_a_changed_field_runs_its_stage_and_what_depends_on_it_alone(storage):
    run(storage, workflow())
    CALLS.clear()
    assert run(storage, workflow(upper={"times": 2}), "toy-2") == "done"
    assert CALLS == ["upper"]
    assert output(storage, "toy-2") == b"HELLOHELLO"
    CALLS.clear()
    assert run(storage, workflow(source={"text": "bye"}), "toy-3") == "done"
    assert CALLS == ["source", "upper"]


def test_placement_changes_nothing(storage):
    run(storage, workflow())
    CALLS.clear()
    run(storage, workflow(source={"width": 64}), "toy-2")
    assert CALLS == []


def test_machine_failures_are_retried_and_counted(storage):
    assert run(storage, workflow(upper={"failures": 2, "retries": 2})) == "done"
    assert CALLS == ["source", "upper", "upper", "upper"]
    assert status(storage).stages["second"].attempt == 3


def test_the_retry_budget_is_finite_and_resume_goes_on(storage):
    flow = workflow(upper={"failures": 2, "retries": 1})
    assert run(storage, flow) == "failed"
    assert "cable pulled in attempt 2" in status(storage).stages["second"].message
    assert run(storage, flow) == "done"
    assert output(storage) == b"HELLO"


def test_user_errors_are_not_retried(storage):
    assert run(storage, workflow(upper={"mistake": "lr=-1: expected more than 0"})) == "failed"
    assert CALLS == ["source", "upper"]
    assert status(storage).stages["second"].message == "lr=-1: expected more than 0"


def test_an_output_whose_bytes_are_gone_is_made_again(storage):
    run(storage, workflow())
    head = read_head(storage, status(storage).stages["second"].folder)
    record = read_record(storage, head[0].record)
    storage.delete(f"{record.output_prefix}/MANIFEST.json")
    CALLS.clear()
    assert run(storage, workflow(), "toy-2") == "done"
    assert CALLS == ["upper"]
    assert output(storage, "toy-2") == b"HELLO"


def test_a_driver_that_was_fenced_out_is_told_and_changes_nothing(storage):
    """The zombie pauses for longer than its lease; another driver finishes; the zombie comes back."""
    lost, gate, entered = [], threading.Event(), threading.Event()

    class Paused(Upper):
        @classmethod
        def function(cls):
            def wait(config, inputs, context):
                entered.set()
                gate.wait(20)
                return Upper.function()(config, inputs, context)

            return wait

    flow = Workflow(name="toy", stages={"first": Source(), "second": Paused(text="first")})
    zombie = Runner(
        storage, "toy-1", flow, owner="zombie", ray=False, tracker=Silent(),
        lease_seconds=0.3, on_lost=lost.append,
    )  # fmt: skip
    errors = []

    def drive() -> None:
        try:
            zombie.run()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=drive)
    # The zombie's leases are not renewed: it is as good as paused, while its stage function runs on.
    zombie._keeper.start = lambda head: None
    zombie._keeper.close = lambda: None
    thread.start()
    assert entered.wait(10)
    assert run(storage, workflow()) == "done"
    before = {key: storage.read(key) for key in storage.list("stages/") if key.endswith("HEAD.json")}
    assert len(before) == 2
    gate.set()
    thread.join(20)
    assert type(errors[0]).__name__ == "LeaseLost"
    assert {key: storage.read(key) for key in storage.list("stages/") if key.endswith("HEAD.json")} == before


def test_the_keeper_tells_of_a_lost_lease(storage):
    lost = threading.Event()

    class Slow(Upper):
        @classmethod
        def function(cls):
            def wait(config, inputs, context):
                body = read_head(storage, "workflows/toy-1")
                taken = body[0].changed(epoch=body[0].epoch + 1, owner="thief")
                storage.compare_and_swap("workflows/toy-1/HEAD.json", taken.body(), body[1])
                assert lost.wait(10)
                return Upper.function()(config, inputs, context)

            return wait

    flow = Workflow(name="toy", stages={"first": Source(), "second": Slow(text="first")})
    with pytest.raises(Exception, match="thief"):
        run(storage, flow, ttl=0.3, lost=lambda reason: lost.set())


def test_cancel_stops_before_the_next_stage_and_resume_goes_on(storage):
    class Cancelling(Source):
        @classmethod
        def function(cls):
            def cancel(config, inputs, context):
                request_cancel(storage, "toy-1")
                time.sleep(1.5)
                return Source.function()(config, inputs, context)

            return cancel

    flow = Workflow(name="toy", stages={"first": Cancelling(), "second": Upper(text="first")})
    assert run(storage, flow) == "stopped"
    assert CALLS == ["source"]
    with pytest.raises(UserError, match="does not run"):
        request_cancel(storage, "toy-1")
    # The request was for the driver before.
    assert run(storage, workflow()) == "done"
    assert CALLS == ["source", "upper"]


def test_a_driver_that_is_stopped_while_it_waits_leaves_the_workflow_to_its_holder(storage):
    holder = Head.acquire(storage, "workflows/toy-1", "holder", ttl=30)
    before = storage.read("workflows/toy-1/HEAD.json")
    waiting = Runner(storage, "toy-1", workflow(), owner="waiting", ray=False, tracker=Silent(), lease_seconds=5)
    waiting.stop.set()
    assert waiting.run() == "stopped"
    assert holder is not None
    assert storage.read("workflows/toy-1/HEAD.json") == before
    assert CALLS == []


def test_a_failure_after_the_commit_is_told_as_what_it_is(storage, monkeypatch):
    """Storage goes away between the commit and the event: the stage is done, and the next driver finds it so."""
    append = EventLog.append

    def away(self, type_, stage=None, **data):
        if type_ == "stage_done" and stage == "second":
            raise ConnectionError("away")
        return append(self, type_, stage, **data)

    monkeypatch.setattr(EventLog, "append", away)
    with pytest.raises(ConnectionError, match="away"):
        run(storage, workflow(), ttl=0.3)
    assert run(storage, workflow(), ttl=0.3) == "done"
    assert CALLS == ["source", "upper"]


def test_an_attempt_elsewhere_says_that_its_bits_may_differ(storage):
    """What a checkpoint was made with is compared with what goes on from it."""

    class Trained(Upper):
        threads: int = placement(1, "of each worker", rounding=True)

        @classmethod
        def function(cls):
            def train(config, inputs, context):
                if context.attempt == 1:
                    epoch = read_head(storage, context.folder)[0].epoch
                    prefix = f"{context.folder}/checkpoints/7-a1"
                    commit_checkpoint(storage, context.folder, epoch, 1, prefix, 7, lambda updates: updates)
                    raise UserError("stop here")
                return Upper.function()(config, inputs, context)

            return train

    def flow(threads: int) -> Workflow:
        return Workflow(name="toy", stages={"first": Source(), "second": Trained(text="first", threads=threads)})

    assert run(storage, flow(1)) == "failed"
    assert run(storage, flow(4)) == "done"
    started = [
        e for e in EventLog(storage, "toy-1").new_events() if e.type == "attempt_started" and e.stage == "second"
    ]
    assert [event.data["differs"] for event in started] == [[], ["threads: 1 → 4"]]
    assert describe(started[1]) == "second: attempt 2 started from update 7, not bit-exact: threads: 1 → 4"
