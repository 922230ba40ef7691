"""One stage, tried until it is done, stopped, or out of tries: leases, attempts, and what each failure leads to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from cluster.errors import UserError
from cluster.gang import NoRoom, run_gang
from cluster.storage import Storage
from cluster.tasks import map_tasks
from pipeline.failures import Failure, Failures
from pipeline.garbage import collect
from pipeline.head import Head, HeadDocument, LeaseLost, LeftOut, State
from pipeline.identity import determining, differences, fields_with_role, fingerprint, rounding_fields
from pipeline.keeper import LeaseKeeper
from pipeline.kinds import builds_for
from pipeline.record import (
    AttemptNote,
    EventLog,
    Record,
    RecordedInput,
    read_note,
    seconds_before,
    write_note,
    write_record,
)
from pipeline.reuse import Finished, finished
from pipeline.room import Door, GrowthWatch, wait_for_room
from pipeline.task_progress import Counted
from pipeline.told import rolled_back
from pipeline.trunk import trunk_checkpoint
from pipeline.worker import Assignment, enter
from stages.config import StageConfig
from stages.context import (
    CheckpointDamaged,
    Context,
    Keep,
    Rank,
    Result,
    Rollback,
    RollbackWanted,
    Stopped,
    read_faults,
)
from stages.metrics import now_ms
from stages.training.keeping import delete_checkpoint


class Tracker(Protocol):
    """What the runner tells an experiment tracker. No call may block the work or raise."""

    def stage_started(self, stage: str, config: StageConfig, folder: str, inputs: dict[str, Finished]) -> None: ...
    def attempt_started(self, stage: str, folder: str, attempt: int, placement: dict[str, Any]) -> None: ...
    def attempt_ended(self, stage: str, attempt: int, outcome: str) -> None: ...
    def went_back(self, stage: str, each: list[str]) -> None: ...
    def stage_ended(self, stage: str, outcome: str, finished: Finished | None) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Drive:
    """What all stages of a workflow share while one driver runs it."""

    storage: Storage
    workflow_id: str
    owner: str
    ray: bool
    lease_seconds: float
    tracker: Tracker
    events: EventLog
    keeper: LeaseKeeper
    door: Door
    """Through which gangs come to the cluster's room, one after the other."""


class StageFailed(Exception):
    """The stage is given up, for now."""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A stage to be done: what it is, where, and from what."""

    drive: Drive
    name: str
    config: StageConfig
    seed: int
    identity: dict[str, Any]
    folder: str
    inputs: dict[str, Finished]

    def run(self) -> Finished | None:
        """Take the stage's lease and try it until it is done; None where it was stopped.

        Raises UserError for what the user can mend, StageFailed where it is given up, LeaseLost.
        """
        drive = self.drive
        head = Head.acquire(
            drive.storage, self.folder, drive.owner, ttl=drive.lease_seconds, waiting=waiting_for(drive, self.name)
        )
        if head is None:
            return None
        # Whoever held the lease meanwhile may have finished the stage.
        done = self._finished_by(head, head.read())
        if done is not None:
            self.reused(done)
            return done
        head.begin(self._digests())
        drive.tracker.stage_started(self.name, self.config, self.folder, self.inputs)
        drive.events.append("stage_started", self.name, folder=self.folder)
        drive.keeper.hold(head)
        try:
            return self._attempts(head)
        finally:
            drive.keeper.drop(head)

    def reused(self, done: Finished) -> None:
        """Tell that the stage had been done before."""
        record = done.record
        self.drive.tracker.stage_started(self.name, self.config, self.folder, self.inputs)
        self.drive.events.append(
            "stage_reused", self.name, folder=done.folder, metrics=record.metrics, seconds=record.seconds
        )
        self.drive.tracker.stage_ended(self.name, "reused", done)

    def _digests(self) -> dict[str, str]:
        digests = {field: done.output.digest for field, done in self.inputs.items()}
        return determining(self.config, digests)

    def _finished_by(self, head: Head, state: HeadDocument) -> Finished | None:
        if state.record is None:
            return None
        done = finished(self.drive.storage, head.folder, state.record, self.config, self._digests())
        if done is not None:
            head.commit_record(state.record)
        return done

    def _attempts(self, head: Head) -> Finished | None:
        failures = Failures(self.config.retries)
        interruptions = 0
        while True:
            state = self._new_attempt(head)
            if state is None:
                return None
            note = AttemptNote(placement=self._placement(), builds=builds_for(self.config))
            self._attempt_started(state, note)
            try:
                key, record, result = self._attempt(head, state, note)
            except Stopped as stop:
                if stop.request.reason == "cancelled" or self.drive.keeper.stop.is_set():
                    self._stop(head, state.attempt)
                    return None
                interruptions += stop.request.reason != "resized"
                self._interrupted(state.attempt, stop, self.config.preemptions - interruptions)
                if interruptions > self.config.preemptions:
                    raise self._given_up(head, f"its machines were taken away {interruptions} times") from None
            except RollbackWanted as wanted:
                self._roll_back(head, state, wanted)
            except CheckpointDamaged as damage:
                self._end_attempt(state.attempt, "failed", damage.reason)
                if not damage.prefix.startswith(f"{head.folder}/"):
                    raise self._given_up(head, f"{damage.reason}; it is a checkpoint of the trunk") from None
                left = len(head.forget_checkpoint(damage.prefix).checkpoints)
                refused = {"reason": damage.reason, "checkpoint": damage.prefix, "left": left}
                self.drive.events.append("checkpoint_refused", self.name, **refused)
                if not left:
                    message = f"{damage.reason}; it was the last checkpoint: `resume` starts from the beginning"
                    raise self._given_up(head, message) from None
            except LeaseLost:
                raise
            except UserError as error:
                self._release(head, "failed")
                self._end_attempt(state.attempt, "failed", str(error))
                raise
            except NoRoom as error:
                # Another workflow was faster; nothing of this one has failed. It waits for room again.
                self._end_attempt(state.attempt, "stopped", str(error))
                interruptions += 1
                if interruptions > self.config.preemptions:
                    raise self._given_up(head, str(error)) from None
            except Exception as error:
                failure = Failure.of(error, _newest_update(head, state), self._faults(state))
                failures.add(failure)
                self._end_attempt(state.attempt, "failed", failure.message)
                if failures.too_many or self.drive.keeper.stop.is_set():
                    raise self._given_up(head, failure.message) from None
                wait = failures.wait_seconds
                self.drive.events.append("stage_retried", self.name, wait_seconds=wait, left=failures.left)
                self.drive.keeper.stop.wait(wait)
            else:
                return self._commit(head, key, record, result)

    def _new_attempt(self, head: Head) -> HeadDocument | None:
        """Count one more attempt, once there is room for it; None where the workflow is stopped meanwhile.

        Raises UserError where a branch has nothing to begin with: room would be of no use to it.
        """
        if self.config.begins_at is not None:
            try:
                self._begins_with(head.read())
            except UserError:
                self._release(head, "failed")
                raise
        workers = self._placement().get("workers")
        if workers and not wait_for_room(self.drive, self.name, self.config, workers):
            self._stop(head, None)
            return None
        state = head.new_attempt()
        try:
            collect(self.drive.storage, head)
        except LeaseLost:
            raise
        except Exception as error:
            # It is there to save room; the next attempt tries again.
            print(f"what dead attempts have left stays for now: {error}", flush=True)
        return state

    def _attempt_started(self, state: HeadDocument, note: AttemptNote) -> None:
        self.drive.events.append(
            "attempt_started",
            self.name,
            attempt=state.attempt,
            folder=self.folder,
            checkpoint=state.checkpoint.model_dump() if state.checkpoint else None,
            **({"branch_at": self.config.begins_at[1]} if self.config.begins_at else {}),
            **self._alone(),
            differs=self._compare(state, note),
        )
        self.drive.tracker.attempt_started(self.name, self.folder, state.attempt, note.placement)

    def _attempt(self, head: Head, state: HeadDocument, note: AttemptNote) -> tuple[str, Record, Result]:
        """Run the stage's function and store its record, which counts once HEAD points to it."""
        storage, prefix = self.drive.storage, f"{head.folder}/attempts/{state.attempt}"
        self.drive.keeper.attempt_begins(head.folder, prefix)
        earlier = seconds_before(storage, head.folder, state.attempt)
        write_note(storage, prefix, note.model_copy(update={"earlier_seconds": earlier}))
        started = now_ms()
        context = Context(
            storage=storage,
            folder=head.folder,
            attempt=state.attempt,
            seed=self.seed,
            tasks=Counted(storage, prefix, partial(map_tasks, ray=self.drive.ray)),
            gang=partial(self._gang, head, state),
            expect=self._expect,
            rollbacks=_rollbacks(state),
            checkpoints=lambda: [item.prefix for item in head.read().checkpoints],
            keep_checkpoints=partial(self._keep_checkpoints, head),
            stop_wanted=self.drive.keeper.stop.is_set,
            side_by_side=self.drive.ray,
        )
        inputs = {field: done.output for field, done in self.inputs.items()}
        result = type(self.config).function()(self.config, inputs, context)
        record = Record(
            kind=self.config.kind,
            fingerprint=fingerprint(self.identity),
            attempt=state.attempt,
            identity=self.identity,
            placement=note.placement,
            inputs={
                field: RecordedInput(fingerprint=d.fingerprint, digest=d.output.digest, prefix=d.output.prefix)
                for field, d in self.inputs.items()
            },
            output_prefix=result.output.prefix,
            output_digest=result.output.digest,
            metrics=dict(result.metrics),
            tables=dict(result.tables),
            builds={**note.builds, **result.builds},
            started_ms=started,
            ended_ms=now_ms(),
            earlier_seconds=earlier,
        )
        return write_record(storage, head.folder, record), record, result

    def _commit(self, head: Head, key: str, record: Record, result: Result) -> Finished:
        self.drive.keeper.drop(head)
        head.commit_record(key)
        done = Finished(
            fingerprint=record.fingerprint, output=result.output, record=record, folder=head.folder, reused=False
        )
        self.drive.keeper.attempt_ended(self.folder)
        self.drive.tracker.attempt_ended(self.name, record.attempt, "done")
        self.drive.tracker.stage_ended(self.name, "done", done)
        self.drive.events.append("stage_done", self.name, metrics=record.metrics, seconds=record.seconds)
        return done

    def _placement(self) -> dict[str, Any]:
        """The placement as it is: without a cluster every gang is one process, whatever the config asks for."""
        asked = fields_with_role(self.config, "placement")
        return {**asked, "workers": self._workers(asked["workers"])} if "workers" in asked else asked

    def _workers(self, asked: Any) -> Any:
        # On a cluster nobody trains in the driver's process, which has other stages beside: they would draw from the
        # same random numbers.
        return (asked or 1) if self.drive.ray else 0

    def _alone(self) -> dict[str, Any]:
        """How many workers were asked for, where one process does the work of several."""
        asked = fields_with_role(self.config, "placement").get("workers", 0)
        most = asked if isinstance(asked, int) else asked[1]
        return {"alone_for": most} if most > 1 and not self.drive.ray else {}

    def _compare(self, state: HeadDocument, note: AttemptNote) -> list[str]:
        """What keeps this attempt from giving the bits that the attempt before would have given."""
        if not state.history:
            return []
        before = read_note(self.drive.storage, f"{self.folder}/attempts/{state.history[-1].attempt}")
        if before is None:
            return []
        names = rounding_fields(type(self.config))
        old, new = ({name: item.placement.get(name) for name in names} | item.builds for item in (before, note))
        for found in (old, new):
            # The runner's own process and a gang of one compute the same.
            if found.get("workers") == 0:
                found["workers"] = 1
        return differences(old, new)

    # How an attempt may end

    def _stop(self, head: Head, attempt: int | None) -> None:
        self._release(head, "stopped")
        if attempt is not None:
            self._end_attempt(attempt, "stopped", "")
        self.drive.events.append("stage_stopped", self.name)
        self.drive.tracker.stage_ended(self.name, "stopped", None)

    def _interrupted(self, attempt: int, stop: Stopped, left: int) -> None:
        request = stop.request
        self._end_attempt(attempt, "stopped", str(stop))
        self.drive.events.append(
            "stage_interrupted",
            self.name,
            reason=request.reason,
            notice_seconds=request.notice_seconds,
            save_seconds=stop.save_seconds,
            left=left,
        )

    def _roll_back(self, head: Head, state: HeadDocument, wanted: RollbackWanted) -> None:
        """Leave the data out from now on. Raises UserError where that has been done too often."""
        self._end_attempt(state.attempt, "failed", str(wanted))
        if len(state.left_out) >= wanted.limit:
            self._release(head, "failed")
            before = "; ".join(f"update {item.update}: {item.reason}" for item in state.left_out)
            raise UserError(
                f"{wanted}. Training went back {len(state.left_out)} times already ({before or 'never'}), and "
                f"guards.max_rollbacks={wanted.limit}: lower lr, or raise warmup_updates or max_rollbacks"
            )
        head.leave_out(LeftOut(attempt=state.attempt, **asdict(wanted.rollback)))
        self.drive.events.append("stage_rolled_back", self.name, **asdict(wanted.rollback))
        self.drive.tracker.went_back(self.name, [rolled_back(item.model_dump()) for item in head.read().left_out])

    def _given_up(self, head: Head, message: str) -> StageFailed:
        self._release(head, "failed")
        return StageFailed(message)

    def _release(self, head: Head, state: State) -> None:
        """End the lease before anybody is told: after this, nothing that is told can be a zombie's."""
        self.drive.keeper.drop(head)
        head.release(state)

    def _end_attempt(self, attempt: int, outcome: str, message: str) -> None:
        self.drive.keeper.attempt_ended(self.folder)
        self.drive.events.append("attempt_ended", self.name, attempt=attempt, outcome=outcome, message=message)
        self.drive.tracker.attempt_ended(self.name, attempt, outcome)

    def _faults(self, state: HeadDocument) -> list[str]:
        try:
            return read_faults(self.drive.storage, self.folder, state.attempt)
        except OSError as error:
            print(f"cannot read the attempt's notes: {error}", flush=True)
            return []

    def _begins_with(self, state: HeadDocument) -> str | None:
        """Key prefix of the checkpoint that an attempt goes on from. Raises UserError where a trunk's is not kept."""
        if state.checkpoint is not None or self.config.begins_at is None:
            return state.checkpoint.prefix if state.checkpoint else None
        return trunk_checkpoint(self.drive.storage, self.config, self.inputs[self.config.begins_at[0]].folder)

    def _keep_checkpoints(self, head: Head, keep: Keep) -> None:
        for prefix in head.keep(keep):
            delete_checkpoint(self.drive.storage, prefix)

    def _expect(self, total: int) -> None:
        self.drive.events.append("stage_length", self.name, updates=total)

    def _gang(
        self,
        head: Head,
        state: HeadDocument,
        function: Callable[[Any, Rank], Any],
        argument: Any,
        *,
        workers: int | tuple[int, int],
        cpus: float,
        gpus: float,
        memory: float = 0.0,
        labels: Mapping[str, str] | None = None,
        usable: Callable[[int], int] = lambda ranks: ranks,
    ) -> Any:
        drive = self.drive
        assignment = Assignment(
            root=drive.storage.url,
            folder=head.folder,
            epoch=head.epoch,
            owner=head.owner,
            attempt=state.attempt,
            checkpoint=self._begins_with(state),
            rollbacks=_rollbacks(state),
            function=function,
            argument=argument,
        )
        name = f"{drive.workflow_id}-{self.name}-a{state.attempt}"
        size: dict[str, Any] = {"cpus": cpus, "gpus": gpus, "memory": memory, "labels": labels}
        try:
            if not drive.ray or isinstance(workers, int):
                return run_gang(enter, assignment, workers=self._workers(workers), **size, name=name)
            with GrowthWatch(drive, self.name, assignment.prefix, workers, **size, usable=usable) as watch:
                return run_gang(enter, assignment, workers=(workers[0], watch.workers), **size, name=name)
        finally:
            drive.door.left(self.name)


def waiting_for(drive: Drive, name: str | None) -> Callable[[HeadDocument], bool]:
    """What to do while another driver holds a lease: say so once, and go on until the workflow is stopped."""
    said: list[str] = []

    def waiting(document: HeadDocument) -> bool:
        if document.owner not in said:
            said.append(document.owner)
            drive.events.append("waiting", name, holder=document.owner, ttl_seconds=document.ttl_seconds)
        return not drive.keeper.stop.is_set()

    return waiting


def _rollbacks(state: HeadDocument) -> tuple[Rollback, ...]:
    return tuple(
        Rollback(update=item.update, start=item.start, stop=item.stop, reason=item.reason) for item in state.left_out
    )


def _newest_update(head: Head, state: HeadDocument) -> int:
    """Update of the newest checkpoint; as it was at the attempt's start where storage is away just now."""
    try:
        state = head.read()
    except LeaseLost:
        raise
    except Exception as error:
        print(f"cannot read {head.folder}/HEAD.json: {error}", flush=True)
    return state.checkpoint.update if state.checkpoint else 0
