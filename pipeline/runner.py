"""Walks the graph: reuse what is done, run the rest, and say how the workflow ended."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from contextlib import nullcontext

from cluster.errors import UserError
from cluster.isolation import IsolationWatch
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.head import Head, State, read_head
from pipeline.identity import fingerprint, references
from pipeline.keeper import LeaseKeeper, exit_process
from pipeline.record import EventLog, mark
from pipeline.retries import Retries, read_retries
from pipeline.reuse import Finished, identify, reusable
from pipeline.room import Door
from pipeline.stage_run import Drive, StageFailed, StageRun, Tracker, waiting_for


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
        self.tracker, self.number = tracker, number
        self.events = EventLog(storage, workflow_id)
        self.finished: dict[str, Finished] = {}
        self.failed: dict[str, str] = {}
        self._retries = Retries()
        self._keeper = LeaseKeeper(storage, workflow_id, lease_seconds, on_lost or exit_process, number)
        self._drive = Drive(
            storage=storage,
            workflow_id=workflow_id,
            owner=owner,
            ray=ray,
            lease_seconds=lease_seconds,
            tracker=tracker,
            events=self.events,
            keeper=self._keeper,
            door=Door(),
        )

    @property
    def stop(self) -> threading.Event:
        """Set it to stop the workflow after a checkpoint."""
        return self._keeper.stop

    def run(self, show: Callable[[State], None] = lambda state: None) -> State:
        """Run every stage that is not done. Raises LeaseLost where another driver took the workflow over.

        `show` is called once the end has been told to all but the index. A driver that is lost in it, with a
        workflow that is done, is missed by a supervisor, whose next one shows what is still to be shown.
        """
        ttl, waiting = self._drive.lease_seconds, waiting_for(self._drive, None)
        head = Head.acquire(self.storage, f"workflows/{self.id}", self.owner, ttl=ttl, waiting=waiting)
        if head is None:
            # Asked to stop while another driver still held the workflow: nothing of it is ours.
            return "stopped"
        self._keeper.start(head)
        self.events.epoch = head.epoch
        alone = IsolationWatch(self._give_up) if self._drive.ray else nullcontext()
        try:
            mark(self.storage, self.id, "running", head.epoch)
            self.events.append("workflow_started", owner=self.owner, driver=self.number)
            self._retries = read_retries(self.storage, self.id)
            with alone:
                self._walk()
            state = self._state()
        finally:
            self._keeper.close()
        # Before anybody is told: a driver that has lost its lease raises here.
        head.release(state)
        self.events.append("workflow_ended", state=state, driver=self.number)
        show(state)
        now = read_head(self.storage, f"workflows/{self.id}")
        if now is not None and now[0].epoch == head.epoch:
            # It may have been resumed since, or deleted.
            mark(self.storage, self.id, state, head.epoch)
        return state

    def _give_up(self, reason: str) -> None:
        """End this process, whose leases run out: what it holds is held up, and the next driver is elsewhere."""
        print(f"giving up: {reason}", flush=True)
        try:
            self.events.append("driver_gave_up", number=self.number, reason=reason)
        finally:
            os._exit(os.EX_UNAVAILABLE)

    def _walk(self) -> None:
        """Run the stages, each after what it refers to: side by side on a cluster, one by one in this process."""
        pending, running = self.workflow.order(), set[str]()
        ended: queue.Queue[tuple[str, BaseException | None]] = queue.Queue()
        while pending or running:
            for name in [] if self._keeper.stop.is_set() else [name for name in pending if self._ready(name)]:
                if running and not self._drive.ray:
                    break
                pending.remove(name)
                running.add(name)
                self._start(name, ended)
            if not running:
                return
            name, error = ended.get()
            running.remove(name)
            if error is not None:
                raise error

    def _ready(self, name: str) -> bool:
        targets = references(self.workflow.stages[name]).values()
        return all(target in self.finished or target in self.failed for target in targets)

    def _start(self, name: str, ended: queue.Queue[tuple[str, BaseException | None]]) -> None:
        def work() -> None:
            try:
                self._stage(name)
            except BaseException as error:
                ended.put((name, error))
            else:
                ended.put((name, None))

        if self._drive.ray:
            # A process that has lost its lease does not wait for what its other stages are at.
            threading.Thread(target=work, name=f"stage-{name}", daemon=True).start()
        else:
            work()

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
            run = StageRun(
                drive=self._drive,
                name=name,
                config=config,
                seed=self.workflow.seed_of(name),
                identity=document,
                folder=self._retries.folder(self.id, name, config.kind, fingerprint(document)),
                inputs=needed,
            )
            done = self._done(run)
        except (UserError, StageFailed) as error:
            self._fail(name, str(error))
            return
        if done is not None:
            self.finished[name] = done

    def _done(self, run: StageRun) -> Finished | None:
        """A stage that is done, by others before or by us now; None where it was stopped."""
        digests = {field: item.output.digest for field, item in run.inputs.items()}
        while True:
            done = reusable(self.storage, run.folder, run.config, digests)
            if done is None:
                done = run.run()
            else:
                run.reused(done)
            # Nobody removes what an event of ours names; before it did, `gc` may have.
            if done is None or not done.reused or reusable(self.storage, run.folder, run.config, digests) is not None:
                return done

    def _fail(self, name: str, message: str) -> None:
        self.failed[name] = message
        self.events.append("stage_failed", name, message=message)
        self.tracker.stage_ended(name, "failed", None)
