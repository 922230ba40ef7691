import json
import threading
import time

import pytest

from cluster.errors import UserError
from cluster.gang import GangError, NoRoom
from cluster.gang_failure import MachineLost
from cluster.storage import open_storage
from pipeline import failures, stage_run
from pipeline.config import Workflow
from pipeline.display import describe
from pipeline.head import Head, commit_checkpoint, read_head
from pipeline.keeper import request_cancel
from pipeline.record import EventLog, listed, mark, read_record
from pipeline.runner import Runner
from pipeline.status import StatusReader
from stages.config import placement
from stages.context import CheckpointDamaged, Rank, Rollback, RollbackWanted, Stopped, StopRequest, write_fault
from stages.metrics import now_ms
from tests.unit.pipeline.toys import CALLS, TABLE, Meeting, Source, Upper


class Silent:
    """A tracker that shows nothing."""

    def stage_started(self, *_):
        pass

    def attempt_started(self, *_):
        pass

    def attempt_ended(self, *_):
        pass

    def went_back(self, *_):
        pass

    def stage_ended(self, *_):
        pass


@pytest.fixture
def storage(tmp_path):
    CALLS.clear()
    return open_storage(f"file://{tmp_path}")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(failures, "BACKOFF_SECONDS", 0.01)
    # One that a test before has left broken stays so.
    TABLE.reset()


def workflow(source: dict | None = None, upper: dict | None = None) -> Workflow:
    stages = {"first": Source(**(source or {})), "second": Upper(text="first", **(upper or {}))}
    return Workflow(name="toy", stages=stages)


def run(storage, flow: Workflow, name: str = "toy-1", *, ttl: float = 5.0, lost=None, ray: bool = False) -> str:
    runner = Runner(
        storage, name, flow, owner=f"test {name}", ray=ray, tracker=Silent(),
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


def branches(**fields) -> Workflow:
    left, right = Meeting(text="first", name="left", **fields), Meeting(text="first", name="right")
    after = {"after_left": Upper(text="left"), "after_right": Upper(text="right")}
    return Workflow(name="toy", stages={"first": Source(), "left": left, "right": right, **after})


def test_on_a_cluster_branches_run_side_by_side(storage):
    assert run(storage, branches(), ray=True) == "done"


def test_a_branch_that_fails_stops_what_depends_on_it_and_nothing_else(storage):
    assert run(storage, branches(mistake="left is wrong"), ray=True) == "failed"
    outcomes = {name: stage.outcome for name, stage in status(storage).stages.items()}
    assert outcomes == {
        "first": "done", "left": "failed", "right": "done", "after_left": "skipped", "after_right": "done",
        "second": "pending",
    }  # fmt: skip


def test_two_branches_that_are_the_same_stage_do_it_once(storage):
    stages = {"first": Source(), "second": Upper(text="first"), "third": Upper(text="first")}
    assert run(storage, Workflow(name="toy", stages=stages), ray=True) == "done"
    assert CALLS == ["source", "upper"]
    assert sorted(status(storage).stages[name].outcome for name in ("second", "third")) == ["done", "reused"]


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
                gate.wait(300)
                return Upper.function()(config, inputs, context)

            return wait

    flow = Workflow(name="toy", stages={"first": Source(), "second": Paused(text="first")})
    zombie = Runner(
        storage, "toy-1", flow, owner="zombie", ray=False, tracker=Silent(),
        lease_seconds=0.3, on_lost=lost.append,
    )  # fmt: skip
    errors = []
    told = []

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
    assert entered.wait(120)
    assert run(storage, workflow()) == "done"
    before = {key: storage.read(key) for key in storage.list("stages/") if key.endswith("HEAD.json")}
    assert len(before) == 2
    told.append((status(storage), listed(storage)))
    gate.set()
    thread.join(300)
    assert type(errors[0]).__name__ == "LeaseLost"
    assert (status(storage), listed(storage)) == told[0]
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
                assert lost.wait(120)
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
                deadline = time.monotonic() + 120
                while not context.stop_wanted():
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
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


def test_a_cancel_means_the_driver_that_waits_for_the_lease_too(storage):
    for number in range(2):
        storage.write(f"workflows/toy-1/drivers/{number:04d}", b"")
    holder = Head.acquire(storage, "workflows/toy-1", "holder", ttl=30)
    assert holder is not None
    waiting = Runner(storage, "toy-1", workflow(), owner="waiting", ray=False, tracker=Silent(), number=1)
    states: list[str] = []
    thread = threading.Thread(target=lambda: states.append(waiting.run()))
    thread.start()
    request_cancel(storage, "toy-1")
    holder.release("stopped")
    thread.join(300)
    assert states == ["stopped"]
    assert CALLS == []
    # A driver that `resume` submits is another one.
    storage.write("workflows/toy-1/drivers/0002", b"")
    resumed = Runner(storage, "toy-1", workflow(), owner="resumed", ray=False, tracker=Silent(), number=2)
    assert resumed.run() == "done"


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


@pytest.mark.parametrize("ray", [False, True])
def test_on_a_cluster_nobody_trains_in_the_driver_s_process(storage, monkeypatch, ray):
    """Where other stages are beside it, which would draw from the same random numbers."""
    asked = []
    monkeypatch.setattr(stage_run, "run_gang", lambda function, argument, *, workers, **_: asked.append(workers))
    monkeypatch.setattr(stage_run, "wait_for_room", lambda *_: True)

    class Trained(Upper):
        workers: int = placement(0, "processes", rounding=True)

        @classmethod
        def function(cls):
            def train(config, inputs, context):
                context.gang(Source.function(), None, workers=config.workers, cpus=1, gpus=0)
                return Upper.function()(config, inputs, context)

            return train

    assert run(storage, Workflow(name="toy", stages={"first": Source(), "second": Trained(text="first")}), ray=ray)
    record = read_record(storage, read_head(storage, status(storage).stages["second"].folder)[0].record)
    assert asked == [record.placement["workers"]] == [1 if ray else 0]


@pytest.mark.parametrize(("workers", "most"), [(1, None), (4, 4), ((1, 8), 8)])
def test_one_process_says_that_it_does_the_work_of_several(storage, workers, most):
    class Wide(Upper):
        workers: int | tuple[int, int] = placement(1, "processes", rounding=True)

    assert run(storage, Workflow(name="toy", stages={"first": Source(), "second": Wide(text="first", workers=workers)}))
    told = [describe(e) for e in EventLog(storage, "toy-1").new_events() if e.type == "attempt_started"]
    more = f" in one process, not {most} workers, which rounds otherwise" if most else ""
    assert told == ["first: attempt 1 started", f"second: attempt 1 started{more}"]


def failing_in_turn(*acts) -> type[Upper]:
    """A stage whose n-th attempt does the n-th act, and whose last attempts succeed."""

    class Disturbed(Upper):
        @classmethod
        def function(cls):
            def act(config, inputs, context):
                if context.attempt <= len(acts):
                    acts[context.attempt - 1](context)
                return Upper.function()(config, inputs, context)

            return act

    return Disturbed


def disturbed_flow(*acts, **fields) -> Workflow:
    return Workflow(name="toy", stages={"first": Source(), "second": failing_in_turn(*acts)(text="first", **fields)})


def second_head(storage):
    return read_head(storage, status(storage).stages["second"].folder)[0]


def committed(storage, update: int):
    """An act: write and commit a checkpoint."""

    def act(context) -> None:
        prefix = f"{context.folder}/checkpoints/{update:08d}-a{context.attempt}"
        for name in ("MANIFEST.json", "rank-0000.safetensors"):
            storage.write(f"{prefix}/{name}", b"x")
        head = read_head(storage, context.folder)[0]
        commit_checkpoint(storage, context.folder, head.epoch, context.attempt, prefix, update, lambda updates: updates)

    return act


def then(*steps):
    def act(context) -> None:
        for step in steps:
            step(context)

    return act


def throw(error: Exception):
    def act(context) -> None:
        raise error

    return act


def test_training_that_goes_back_leaves_the_data_out_and_counts_no_failure(storage):
    rollback = Rollback(update=8, start=700, stop=800, reason="the loss is nan")
    seen = []
    flow = disturbed_flow(
        then(committed(storage, 5), throw(RollbackWanted(rollback, 2))),
        then(lambda context: seen.append(context.rollbacks), throw(RollbackWanted(rollback, 2))),
        lambda context: seen.append(context.rollbacks),
        retries=0,
    )
    assert run(storage, flow) == "done"
    assert seen == [(rollback,), (rollback, rollback)]
    assert [(item.attempt, item.start, item.stop) for item in second_head(storage).left_out] == [
        (1, 700, 800),
        (2, 700, 800),
    ]
    told = [describe(event) for event in EventLog(storage, "toy-1").new_events() if event.type == "stage_rolled_back"]
    assert told[0] == "second: went back at update 8: the loss is nan; samples 700 to 800 left out"
    # What is left out is kept by a driver that comes later.
    assert read_record(storage, second_head(storage).record).attempt == 3


def test_training_goes_back_a_limited_number_of_times(storage):
    act = throw(RollbackWanted(Rollback(update=8, start=700, stop=800, reason="the loss is nan"), 1))
    assert run(storage, disturbed_flow(act, act, act)) == "failed"
    assert status(storage).stages["second"].message == (
        "update 8: the loss is nan. Training went back 1 times already (update 8: the loss is nan), and "
        "guards.max_rollbacks=1: lower lr, or raise warmup_updates or max_rollbacks"
    )


def test_a_damaged_checkpoint_gives_way_to_the_one_before(storage):
    prefixes = []

    def damaged(context) -> None:
        head = read_head(storage, context.folder)[0]
        prefixes.append(head.checkpoint.prefix)
        raise CheckpointDamaged(head.checkpoint.prefix, f"{head.checkpoint.prefix}/rank-0000.safetensors is missing")

    def note(context) -> None:
        prefixes.append(read_head(storage, context.folder)[0].checkpoint.prefix)

    first = then(committed(storage, 5), committed(storage, 10), throw(ConnectionError("cable pulled")))
    assert run(storage, disturbed_flow(first, damaged, note, retries=1)) == "done"
    assert [prefix[-11:] for prefix in prefixes] == ["00000010-a1", "00000005-a1"]
    told = [describe(event) for event in EventLog(storage, "toy-1").new_events() if event.type == "checkpoint_refused"]
    assert told[0].endswith("00000010-a1/rank-0000.safetensors is missing; the checkpoint before it is used")


def test_what_a_dead_attempt_left_is_collected_and_what_tells_of_it_stays(storage):
    def litter(context) -> None:
        committed(storage, 5)(context)
        # An upload that nobody committed, and a half-made output.
        storage.write(f"{context.folder}/checkpoints/00000010-a1/rank-0000.safetensors", b"half")
        storage.write(f"{context.prefix}/model.safetensors", b"half")
        storage.write(f"{context.prefix}/logs/rank-0000/000000.log", b"told")
        point = {"name": "loss", "value": 1.0, "step": 1, "time_ms": now_ms()}
        storage.write(f"{context.prefix}/metrics/000000.jsonl", json.dumps(point).encode())
        raise ConnectionError("cable pulled")

    assert run(storage, disturbed_flow(litter)) == "done"
    folder = status(storage).stages["second"].folder
    left = [key.removeprefix(f"{folder}/") for key in storage.list(f"{folder}/") if "/attempts/2/" not in key]
    assert left == [
        "HEAD.json",
        "attempts/1/attempt.json",
        "attempts/1/logs/rank-0000/000000.log",
        "attempts/1/metrics/000000.jsonl",
        "checkpoints/00000005-a1/MANIFEST.json",
        "checkpoints/00000005-a1/rank-0000.safetensors",
        "record-2.json",
    ]


def test_a_stage_whose_machine_is_taken_away_goes_on_from_a_budget_of_its_own(storage):
    notice = StopRequest(reason="preempted", notice_seconds=30.0)
    act = throw(Stopped(notice, 41.0))
    resized = throw(Stopped(StopRequest(reason="resized"), 1.0))
    assert run(storage, disturbed_flow(act, resized, act, retries=0, preemptions=2)) == "done"
    told = [describe(event) for event in EventLog(storage, "toy-1").new_events() if event.type == "stage_interrupted"]
    assert told[0] == (
        "second: saved a checkpoint, since its machine is taken away; saving took 41 s, and the notice was 30 s: "
        "ask for a longer one; going on"
    )
    assert told[1] == "second: there is room for more workers: going on with them"
    assert run(storage, disturbed_flow(act, act, retries=0, preemptions=1), "toy-2") == "done"


def test_the_budget_for_machines_that_are_taken_away_is_finite(storage):
    act = throw(Stopped(StopRequest(reason="terminated"), 1.0))
    assert run(storage, disturbed_flow(act, act, preemptions=1)) == "failed"
    assert status(storage).stages["second"].message == "its machines were taken away 2 times"


def test_room_that_another_workflow_was_faster_to_take_is_no_failure(storage):
    act = throw(NoRoom(2))
    assert run(storage, disturbed_flow(act, act, retries=0)) == "done"
    ended = [
        event.data["outcome"] for event in EventLog(storage, "toy-1").new_events() if event.type == "attempt_ended"
    ]
    assert ended == ["stopped", "stopped"]


def test_the_budget_for_room_that_is_taken_by_others_is_finite(storage):
    act = throw(NoRoom(2))
    assert run(storage, disturbed_flow(act, act, retries=0, preemptions=1)) == "failed"
    assert status(storage).stages["second"].message.startswith("2 workers could not be started")


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (GangError("rank 0 died", died=True), ""),
        (MachineLost("machine 10.0.0.3 is lost"), "; machine 10.0.0.3 is lost"),
    ],
)
def test_what_the_ranks_found_is_told_of_a_gang_that_died_and_what_they_cannot_know(storage, error, more):
    def die(context) -> None:
        rank = Rank(
            rank=0, world_size=2, local_rank=0, storage=storage, folder=context.folder, attempt=context.attempt,
            checkpoint=None, commit_checkpoint=lambda *_: (), stop_requested=lambda: None,
        )  # fmt: skip
        write_fault(rank, "rank 1 gave no sign of life for 600 s: update 7 computes")
        raise error

    assert run(storage, disturbed_flow(die, retries=0)) == "failed"
    told = status(storage).stages["second"].message
    assert told == f"rank 1 gave no sign of life for 600 s: update 7 computes{more}"


def test_the_wait_before_a_retry_grows_only_while_the_stage_stands_still():
    def wait(*updates: int) -> float:
        found = failures.Failures(retries=100)
        for update in updates:
            found.add(failures.Failure(message="died", machine=True, update=update))
        return found.wait_seconds

    waits = [wait(*updates) for updates in ((0,), (0, 0), (0, 0, 0), (0, 0, 10), (0,) * 50)]
    assert waits == [0.01, 0.02, 0.04, 0.01, 300.0]


@pytest.mark.parametrize("act", ["its stage fails", "its workflow ends"])
def test_what_a_zombie_says_is_not_what_has_happened(storage, monkeypatch, act):
    """It is paused just before it tells of a failure, or of the workflow's end, and another driver finishes first."""
    gate, paused, errors = threading.Event(), threading.Event(), []

    def pause() -> None:
        paused.set()
        gate.wait(300)

    class Failing(Upper):
        @classmethod
        def function(cls):
            def fail(config, inputs, context):
                pause()
                raise UserError("the zombie cannot read")

            return fail

    second = Failing(text="first") if act == "its stage fails" else Upper(text="first")
    flow = Workflow(name="toy", stages={"first": Source(), "second": second})
    zombie = Runner(storage, "toy-1", flow, owner="zombie", ray=False, tracker=Silent(), lease_seconds=0.3)
    zombie._keeper.start = lambda head: None
    zombie._keeper.close = lambda: pause() if act == "its workflow ends" else None

    def drive() -> None:
        try:
            zombie.run()
        except Exception as error:
            errors.append(type(error).__name__)

    thread = threading.Thread(target=drive)
    thread.start()
    assert paused.wait(120)
    assert run(storage, workflow()) == "done"
    before = (status(storage), listed(storage), len(EventLog(storage, "toy-1").new_events()))
    gate.set()
    thread.join(300)
    assert errors == ["LeaseLost"]
    assert (status(storage), listed(storage), len(EventLog(storage, "toy-1").new_events())) == before
    assert status(storage).state == "done"


def test_a_driver_that_was_taken_over_is_not_listened_to(storage):
    """Its last words may come after those of the next one, who has a higher epoch."""
    old, new = EventLog(storage, "toy-1"), EventLog(storage, "toy-1")
    old.epoch, new.epoch = 1, 2
    old.append("workflow_started")
    new.append("workflow_started")
    old.append("workflow_ended", state="failed")
    EventLog(storage, "toy-1").append("driver_submitted", number=2)
    new.append("workflow_ended", state="done")
    mark(storage, "toy-1", "running", 2)
    mark(storage, "toy-1", "failed", 1)
    assert [event.type for event in EventLog(storage, "toy-1").new_events()] == [
        "workflow_started", "workflow_started", "driver_submitted", "workflow_ended",
    ]  # fmt: skip
    assert listed(storage) == {"toy-1": "running"}
    mark(storage, "toy-1", "submitted")
    assert listed(storage) == {"toy-1": "submitted"}


class Noting(Silent):
    """A tracker that keeps what it is told of stages."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def stage_started(self, stage, config, folder, inputs):
        self.told.append(("started", stage, *sorted(inputs)))

    def stage_ended(self, stage, outcome, finished):
        self.told.append((outcome, stage))


def test_what_is_reused_is_shown_from_its_start_also_where_somebody_else_finished_it_meanwhile(storage):
    """Its parameters and inputs are told at the start."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Upper):
        @classmethod
        def function(cls):
            def wait(config, inputs, context):
                begun.set()
                assert go_on.wait(300)
                return Upper.function()(config, inputs, context)

            return wait

    def runner(name: str, tracker: Silent) -> Runner:
        flow = Workflow(name="toy", stages={"first": Source(), "second": Slow(text="first")})
        return Runner(storage, name, flow, owner=f"test {name}", ray=False, tracker=tracker, lease_seconds=600)

    first = threading.Thread(target=lambda: runner("toy-1", Silent()).run())
    first.start()
    assert begun.wait(120)
    noting = Noting()
    second = threading.Thread(target=lambda: runner("toy-2", noting).run())
    second.start()
    deadline = time.monotonic() + 120
    while not [event for event in EventLog(storage, "toy-2").new_events() if event.type == "waiting"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    go_on.set()
    first.join(300)
    second.join(300)
    assert noting.told == [
        ("started", "first"),
        ("reused", "first"),
        ("started", "second", "text"),
        ("reused", "second"),
    ]
    assert CALLS == ["source", "upper"]
