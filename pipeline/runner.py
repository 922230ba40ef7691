"""Walks the graph: reuse what is done, run the rest, retry what a machine broke, record what came out."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from cluster.errors import UserError
from cluster.gang import GangError, run_gang
from cluster.storage import Storage
from cluster.tasks import map_tasks
from pipeline.config import Workflow
from pipeline.head import Head, HeadDocument, LeaseLost, State
from pipeline.identity import differences, fields_with_role, fingerprint, references, rounding_fields, stage_folder
from pipeline.keeper import LeaseKeeper, exit_process
from pipeline.record import (
    AttemptNote,
    EventLog,
    Record,
    RecordedInput,
    builds,
    mark,
    read_note,
    write_note,
    write_record,
)
from pipeline.reuse import Finished, finished, identify, reusable
from pipeline.worker import Assignment, enter
from stages.config import StageConfig
from stages.context import Context, Rank, Result, Stopped
from stages.metrics import now_ms

BACKOFF_SECONDS = 1.0
"""Wait before the first retry of a stage; doubles with every further one."""


class Tracker(Protocol):
    """What the runner tells an experiment tracker. No call may block the work or raise."""

    def stage_started(self, stage: str, config: StageConfig, folder: str, inputs: dict[str, Finished]) -> None: ...
    def attempt_started(self, stage: str, folder: str, attempt: int, placement: dict[str, Any]) -> None: ...
    def attempt_ended(self, stage: str, attempt: int, outcome: str) -> None: ...
    def stage_ended(self, stage: str, outcome: str, finished: Finished | None) -> None: ...


class Runner:
    """Runs one workflow under its lease, over a Ray cluster (`ray`) or within this process.

    `run` returns the workflow's state: done, failed or stopped. `number` is that of the submitted driver.
    """

    def __init__(
        self,
        storage: Storage,
        workflow_id: str,
        workflow: Workflow,
        *,
        owner: str,
        ray: bool,
        tracker: Tracker,
        number: int | None = None,
        lease_seconds: float = 15.0,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.storage, self.id, self.workflow, self.owner = storage, workflow_id, workflow, owner
        self.ray, self.tracker, self.number, self.lease_seconds = ray, tracker, number, lease_seconds
        self.events = EventLog(storage, workflow_id)
        self.finished: dict[str, Finished] = {}
        self.failed: dict[str, str] = {}
        self._keeper = LeaseKeeper(storage, workflow_id, lease_seconds, on_lost or exit_process)

    @property
    def stop(self) -> threading.Event:
        """Set it to stop the workflow after a checkpoint."""
        return self._keeper.stop

    def run(self) -> State:
        """Run every stage that is not done. Raises LeaseLost where another driver took the workflow over."""
        head = Head.acquire(
            self.storage, f"workflows/{self.id}", self.owner, ttl=self.lease_seconds, waiting=self._waiting_for(None)
        )
        if head is None:
            # Asked to stop while another driver still held the workflow: nothing of it is ours.
            return "stopped"
        self._keeper.start(head)
        try:
            mark(self.storage, self.id, "running")
            self.events.append("workflow_started", owner=self.owner, driver=self.number)
            for name in self.workflow.order():
                if self._keeper.stop.is_set():
                    break
                self._stage(name)
            state = self._state()
            self.events.append("workflow_ended", state=state, driver=self.number)
            mark(self.storage, self.id, state)
        finally:
            self._keeper.close()
        head.release(state)
        return state

    def _state(self) -> State:
        if len(self.finished) == len(self.workflow.stages):
            return "done"
        return "stopped" if self._keeper.stop.is_set() and not self.failed else "failed"

    # One stage

    def _stage(self, name: str) -> None:
        config = self.workflow.stages[name]
        needed = {f: self.finished[target] for f, target in references(config).items() if target in self.finished}
        missing = [target for target in references(config).values() if target not in self.finished]
        if missing:
            self.failed[name] = f"needs {', '.join(missing)}"
            self.events.append("stage_skipped", name, reason=self.failed[name])
            return
        try:
            document = identify(self.workflow, name, {f: done.fingerprint for f, done in needed.items()})
            folder = stage_folder(config.kind, fingerprint(document))
            done = reusable(self.storage, folder, config, {f: item.output.digest for f, item in needed.items()})
            if done is None:
                done = self._run(name, config, document, folder, needed)
            else:
                self.tracker.stage_started(name, config, folder, needed)
                self._reused(name, done)
        except UserError as error:
            self._fail(name, str(error))
            return
        if done is not None:
            self.finished[name] = done

    def _reused(self, name: str, done: Finished) -> None:
        record = done.record
        self.events.append("stage_reused", name, folder=done.folder, metrics=record.metrics, seconds=record.seconds)
        self.tracker.stage_ended(name, "reused", done)

    def _fail(self, name: str, message: str) -> None:
        self.failed[name] = message
        self.events.append("stage_failed", name, message=message)
        self.tracker.stage_ended(name, "failed", None)

    def _run(
        self, name: str, config: StageConfig, document: dict[str, Any], folder: str, needed: dict[str, Finished]
    ) -> Finished | None:
        """Take the stage's lease and try it until it is done, stopped, or out of retries."""
        digests = {field: done.output.digest for field, done in needed.items()}
        head = Head.acquire(self.storage, folder, self.owner, ttl=self.lease_seconds, waiting=self._waiting_for(name))
        if head is None:
            return None
        # Whoever held the lease meanwhile may have finished the stage.
        state = head.read()
        done = self._finished_by(head, state, config, digests)
        if done is not None:
            self._reused(name, done)
            return done
        head.begin(digests)
        self.tracker.stage_started(name, config, folder, needed)
        self.events.append("stage_started", name, folder=folder)
        self._keeper.hold(head)
        try:
            return self._attempts(name, config, document, head, needed)
        finally:
            self._keeper.drop()

    def _finished_by(
        self, head: Head, state: HeadDocument, config: StageConfig, digests: dict[str, str]
    ) -> Finished | None:
        if state.record is None:
            return None
        done = finished(self.storage, head.folder, state.record, config, digests)
        if done is not None:
            head.commit_record(state.record)
        return done

    def _attempts(
        self, name: str, config: StageConfig, document: dict[str, Any], head: Head, needed: dict[str, Finished]
    ) -> Finished | None:
        failures: list[_Failure] = []
        while True:
            state = head.new_attempt()
            note = AttemptNote(placement=self._placement(config), builds=dict(builds()))
            differs = self._compare(config, head, state, note)
            self.events.append(
                "attempt_started",
                name,
                attempt=state.attempt,
                folder=head.folder,
                checkpoint=state.checkpoint.model_dump() if state.checkpoint else None,
                differs=differs,
            )
            self.tracker.attempt_started(name, head.folder, state.attempt, note.placement)
            try:
                key, record, result = self._attempt(name, config, document, head, state, needed, note)
            except Stopped:
                self._end_attempt(name, head, state.attempt, "stopped", "")
                self.tracker.stage_ended(name, "stopped", None)
                self.events.append("stage_stopped", name)
                self._release(head, "stopped")
                return None
            except LeaseLost:
                raise
            except UserError as error:
                self._end_attempt(name, head, state.attempt, "failed", str(error))
                self._release(head, "failed")
                raise
            except Exception as error:
                failures.append(_Failure.of(error, _newest_update(head, state)))
                self._end_attempt(name, head, state.attempt, "failed", failures[-1].message)
                if _give_up(failures, config.retries) or self._keeper.stop.is_set():
                    self._release(head, "failed")
                    self._fail(name, failures[-1].message)
                    return None
                wait = BACKOFF_SECONDS * 2 ** (len(failures) - 1)
                self.events.append("stage_retried", name, wait_seconds=wait, left=config.retries - len(failures))
                self._keeper.stop.wait(wait)
            else:
                return self._commit(name, head, key, record, result)

    def _attempt(
        self,
        name: str,
        config: StageConfig,
        document: dict[str, Any],
        head: Head,
        state: HeadDocument,
        needed: dict[str, Finished],
        note: AttemptNote,
    ) -> tuple[str, Record, Result]:
        """Run the stage's function and store its record, which counts once HEAD points to it."""
        self._keeper.attempt = f"{head.folder}/attempts/{state.attempt}"
        write_note(self.storage, self._keeper.attempt, note)
        started = now_ms()
        context = Context(
            storage=self.storage,
            folder=head.folder,
            attempt=state.attempt,
            seed=self.workflow.seed_of(name),
            tasks=partial(map_tasks, ray=self.ray),
            gang=partial(self._gang, head, state),
            expect=lambda total: self._expect(name, total),
        )
        inputs = {field: done.output for field, done in needed.items()}
        result = type(config).function()(config, inputs, context)
        record = Record(
            kind=config.kind,
            fingerprint=fingerprint(document),
            attempt=state.attempt,
            identity=document,
            placement=note.placement,
            inputs={
                field: RecordedInput(fingerprint=d.fingerprint, digest=d.output.digest, prefix=d.output.prefix)
                for field, d in needed.items()
            },
            output_prefix=result.output.prefix,
            output_digest=result.output.digest,
            metrics=dict(result.metrics),
            tables=dict(result.tables),
            builds=note.builds,
            started_ms=started,
            ended_ms=now_ms(),
        )
        return write_record(self.storage, head.folder, record), record, result

    def _commit(self, name: str, head: Head, key: str, record: Record, result: Result) -> Finished:
        self._keeper.drop()
        head.commit_record(key)
        done = Finished(
            fingerprint=record.fingerprint, output=result.output, record=record, folder=head.folder, reused=False
        )
        self.tracker.attempt_ended(name, record.attempt, "done")
        self.tracker.stage_ended(name, "done", done)
        self.events.append("stage_done", name, metrics=record.metrics, seconds=record.seconds)
        return done

    def _placement(self, config: StageConfig) -> dict[str, Any]:
        """The placement as it is: without a cluster every gang is one process, whatever the config asks for."""
        asked = fields_with_role(config, "placement")
        return {**asked, "workers": 0} if "workers" in asked and not self.ray else asked

    def _compare(self, config: StageConfig, head: Head, state: HeadDocument, note: AttemptNote) -> list[str]:
        """What keeps this attempt from giving the bits that the attempt before would have given."""
        if not state.history:
            return []
        before = read_note(self.storage, f"{head.folder}/attempts/{state.history[-1].attempt}")
        if before is None:
            return []
        names = rounding_fields(type(config))
        old, new = ({name: item.placement.get(name) for name in names} | item.builds for item in (before, note))
        return differences(old, new)

    def _release(self, head: Head, state: State) -> None:
        self._keeper.drop()
        head.release(state)

    def _end_attempt(self, name: str, head: Head, attempt: int, outcome: str, message: str) -> None:
        self._keeper.attempt = None
        self.events.append("attempt_ended", name, attempt=attempt, outcome=outcome, message=message)
        self.tracker.attempt_ended(name, attempt, outcome)

    def _expect(self, name: str, total: int) -> None:
        self.events.append("stage_length", name, updates=total)

    def _gang(
        self,
        head: Head,
        state: HeadDocument,
        function: Callable[[Any, Rank], Any],
        argument: Any,
        *,
        workers: int,
        cpus: float,
        gpus: float,
    ) -> Any:
        assignment = Assignment(
            root=self.storage.url,
            folder=head.folder,
            epoch=head.epoch,
            attempt=state.attempt,
            checkpoint=state.checkpoint.prefix if state.checkpoint else None,
            function=function,
            argument=argument,
        )
        return run_gang(
            enter,
            assignment,
            workers=workers if self.ray else 0,
            cpus=cpus,
            gpus=gpus,
            name=f"{self.id}-a{state.attempt}",
        )

    def _waiting_for(self, name: str | None) -> Callable[[HeadDocument], bool]:
        said: list[str] = []

        def waiting(document: HeadDocument) -> bool:
            if document.owner not in said:
                said.append(document.owner)
                self.events.append("waiting", name, holder=document.owner, ttl_seconds=document.ttl_seconds)
            return not self._keeper.stop.is_set()

        return waiting


@dataclass(frozen=True, kw_only=True)
class _Failure:
    message: str
    machine: bool
    """Whether a machine did it (a process died, a connection broke), as far as one can tell."""
    update: int

    @classmethod
    def of(cls, error: Exception, update: int) -> _Failure:
        machine = isinstance(error, OSError) or (isinstance(error, GangError) and error.died)
        if not isinstance(error, GangError):
            traceback.print_exception(error)
        message = f"{type(error).__name__}: {error}" if not isinstance(error, GangError) else str(error)
        return cls(message=message, machine=machine, update=update)


def _newest_update(head: Head, state: HeadDocument) -> int:
    """Update of the newest checkpoint; as it was at the attempt's start where storage is away just now."""
    try:
        state = head.read()
    except LeaseLost:
        raise
    except Exception as error:
        print(f"cannot read {head.folder}/HEAD.json: {error}", flush=True)
    return state.checkpoint.update if state.checkpoint else 0


def _give_up(failures: list[_Failure], retries: int) -> bool:
    if len(failures) > retries:
        return True
    # Code that fails twice in the same way at the same place will fail a third time.
    return len(failures) > 1 and not failures[-1].machine and failures[-1] == failures[-2]
