"""HEAD.json: lease, pointer and commit of a folder at once, changed only by compare-and-swap.

Every stage folder and every workflow folder has one. Whoever holds it raised its `epoch` when taking it;
every later change checks that the epoch is still the holder's. So a process that was paused, lost its
lease and comes back can still upload bytes, but can make none of them visible: whatever HEAD does not
reach is garbage.

A lease is stale when HEAD has not changed for its time to live *on the observer's own monotonic clock*;
no two machines' clocks are ever compared.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.errors import check_format
from cluster.storage.base import Conflict, NotFound, Storage
from stages.config import Config
from stages.context import Keep
from stages.metrics import Point, is_evaluation, now_ms

FORMAT = 2
State = Literal["running", "stopped", "failed", "done"]


class LeaseLost(Exception):
    """Another process has taken the folder over: nothing of ours can become visible any more."""


class Committed(Config):
    """A committed checkpoint: its key prefix and its update."""

    prefix: str
    update: int


class Segment(Config):
    """Updates `start` + 1 to `end` of the final result were made by this attempt."""

    attempt: int
    start: int
    end: int

    def has(self, point: Point) -> bool:
        """Whether one of its attempt's points is in the final result.

        An evaluation that the attempt before could not make any more is one of the update at which this one begins.
        Where that one was damaged, the attempt made it again and evaluated it, as the one before had: of two, the
        earlier one counts.
        """
        return self.start < point.step <= self.end or (point.step == self.start and is_evaluation(point.name))


class LeftOut(Config):
    """Training went back at `update`, and leaves the samples [start, stop) out from then on."""

    attempt: int
    update: int
    start: int
    stop: int
    reason: str


class HeadDocument(Config):
    """The body of HEAD.json."""

    format: int = FORMAT
    owner: str
    epoch: int
    nonce: str
    ttl_seconds: float
    state: State
    attempt: int = 0
    inputs: dict[str, str] = Field(default_factory=dict, description="digests of what the checkpoints were made of")
    checkpoints: tuple[Committed, ...] = Field(default=(), description="those that are kept, by their updates")
    history: tuple[Segment, ...] = ()
    refused: tuple[str, ...] = Field(default=(), description="checkpoints that were found damaged, which are kept")
    left_out: tuple[LeftOut, ...] = Field(default=(), description="data that training leaves out, and why")
    record: str | None = None
    renewed_ms: int = Field(default=0, description="the holder's clock, to be shown to people; no decision rests on it")

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, values: Any) -> Any:
        """From format 1, which had one checkpoint, and left nothing out."""
        if isinstance(values, dict) and values.get("format") == 1:
            old = {name: value for name, value in values.items() if name not in ("checkpoint", "skipped")}
            newest = values.get("checkpoint")
            return {**old, "format": FORMAT, "checkpoints": [newest] if newest else []}
        return values

    @property
    def checkpoint(self) -> Committed | None:
        """The newest committed checkpoint."""
        return self.checkpoints[-1] if self.checkpoints else None

    def changed(self, **fields: object) -> HeadDocument:
        """A copy with some fields changed and a new nonce, so that no two bodies are ever equal."""
        new = {"nonce": secrets.token_hex(8), "renewed_ms": now_ms()}
        return HeadDocument.model_validate({**self.model_dump(), **fields, **new})

    def body(self) -> bytes:
        return self.model_dump_json().encode()


def read_head(storage: Storage, folder: str) -> tuple[HeadDocument, str] | None:
    """HEAD and its tag, or None where the folder has none. Raises UserError for a newer format."""
    try:
        body, tag = storage.read_tagged(f"{folder}/HEAD.json")
    except NotFound:
        return None
    document = json.loads(body)
    check_format(document["format"], FORMAT, f"{folder}/HEAD.json")
    return HeadDocument.model_validate(document), tag


class Head:
    """A folder's HEAD, held by this process. Made by `acquire`; every change raises LeaseLost once it is not."""

    def __init__(
        self, storage: Storage, folder: str, epoch: int, owner: str, *, before: HeadDocument | None = None
    ) -> None:
        self.storage, self.folder, self.epoch, self.owner = storage, folder, epoch, owner
        self.before = before
        """As it was found."""

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        folder: str,
        owner: str,
        *,
        ttl: float,
        waiting: Callable[[HeadDocument], bool] = lambda document: True,
    ) -> Head | None:
        """Take the folder: at once where nobody runs it, else when its lease is stale.

        `waiting` is called with the holder's document at each look; where it returns False, the wait is
        given up and None comes back.
        """
        watch = LeaseWatch()
        while True:
            found = read_head(storage, folder)
            if found is None:
                first = HeadDocument(owner=owner, epoch=1, nonce="", ttl_seconds=ttl, state="running")
                try:
                    storage.write_if_absent(f"{folder}/HEAD.json", first.changed().body())
                except Conflict:
                    continue
                return cls(storage, folder, 1, owner)
            document, tag = found
            gap = max(1.0, document.ttl_seconds / 2)
            if document.state == "running" and not watch.stale(tag, document.ttl_seconds, longest_gap=gap):
                if not waiting(document):
                    return None
                time.sleep(min(1.0, document.ttl_seconds / 10))
                continue
            taken = document.changed(owner=owner, epoch=document.epoch + 1, ttl_seconds=ttl, state="running")
            try:
                storage.compare_and_swap(f"{folder}/HEAD.json", taken.body(), tag)
            except Conflict:
                continue
            return cls(storage, folder, taken.epoch, owner, before=document)

    def read(self) -> HeadDocument:
        """The current document. Raises LeaseLost."""
        return self._read()[0]

    def renew(self) -> None:
        """Show that the holder is alive."""
        self._change(lambda document: document.changed())

    def new_attempt(self) -> HeadDocument:
        """Count one more attempt; its number is in the returned document."""
        return self._change(lambda document: document.changed(attempt=document.attempt + 1))

    def begin(self, inputs: dict[str, str]) -> None:
        """Start work on inputs with these digests, by field. What was made of others is forgotten, and so is a
        record, which somebody found to be of no use."""

        def change(document: HeadDocument) -> HeadDocument:
            if document.inputs == inputs:
                # Checkpoints are whole, also where a record's output is not: that is made of them again.
                return document.changed(record=None)
            return document.changed(inputs=inputs, checkpoints=(), refused=(), history=(), left_out=(), record=None)

        self._change(change)

    def leave_out(self, left_out: LeftOut) -> None:
        """Have every attempt from now on leave these samples out."""

        def change(document: HeadDocument) -> HeadDocument:
            # It stands there where the answer was lost and the lease was renewed before it was said again.
            return document.changed(left_out=(*(item for item in document.left_out if item != left_out), left_out))

        self._change(change)

    def forget_checkpoint(self, prefix: str) -> HeadDocument:
        """Go on from the checkpoint before this one, which cannot be used here. Its bytes stay, for whoever looks."""

        def change(document: HeadDocument) -> HeadDocument:
            left = [item for item in document.checkpoints if item.prefix != prefix]
            refused = [item for item in document.refused if item != prefix]
            return document.changed(checkpoints=left, refused=(*refused, prefix))

        return self._change(change)

    def keep(self, keep: Keep) -> tuple[str, ...]:
        """Give up the checkpoints that do not stay; returns their key prefixes."""
        given_up: tuple[str, ...] = ()

        def change(document: HeadDocument) -> HeadDocument:
            nonlocal given_up
            staying = _kept(document.checkpoints, keep)
            given_up = tuple(item.prefix for item in document.checkpoints if item not in staying)
            return document.changed(checkpoints=staying)

        self._change(change)
        return given_up

    def clear(self) -> None:
        """Forget checkpoints, history and record: nothing in the folder is reached from here any more."""
        empty = {"inputs": {}, "checkpoints": (), "refused": (), "history": (), "left_out": (), "record": None}
        self._change(lambda document: document.changed(**empty))

    def commit_record(self, key: str) -> None:
        """Make the stage done with this record; the lease ends with it."""
        self._change(lambda document: document.changed(state="done", record=key))

    def release(self, state: State) -> None:
        """End the lease without a record."""
        self._change(lambda document: document.changed(state=state))

    def _change(self, change: Callable[[HeadDocument], HeadDocument]) -> HeadDocument:
        return change_head(self.storage, self.folder, self.epoch, None, change, owner=self.owner)

    def _read(self) -> tuple[HeadDocument, str]:
        return _read_own(self.storage, self.folder, self.epoch, None, self.owner)


def commit_checkpoint(
    storage: Storage,
    folder: str,
    epoch: int,
    attempt: int,
    prefix: str,
    update: int,
    keep: Keep,
    *,
    owner: str | None = None,
) -> tuple[str, ...]:
    """Make a stored checkpoint the stage's newest, from a worker of `attempt` of `owner`'s. Raises LeaseLost.

    Returns the key prefixes of the checkpoints that `keep` gives up, which HEAD no longer names.
    """
    seen: set[str] = set()

    def change(document: HeadDocument) -> HeadDocument:
        # Also those of a try whose answer was lost, which HEAD may name no longer.
        seen.update(item.prefix for item in document.checkpoints)
        # One of the same update is from an attempt whose checkpoint was given up as damaged.
        others = [item for item in document.checkpoints if item.update < update]
        known = [*others, Committed(prefix=prefix, update=update)]
        return document.changed(checkpoints=_kept(known, keep), history=_extended(document.history, attempt, update))

    committed = change_head(storage, folder, epoch, attempt, change, owner=owner)
    return tuple(sorted(seen - {item.prefix for item in committed.checkpoints}))


def _kept(checkpoints: Sequence[Committed], keep: Keep) -> list[Committed]:
    staying = set(keep({item.update: item.prefix for item in checkpoints}))
    return [item for item in checkpoints if item.update in staying]


def _extended(history: tuple[Segment, ...], attempt: int, update: int) -> tuple[Segment, ...]:
    """The history with this attempt's updates up to `update`, where they are not in it: an attempt that goes on from
    an older checkpoint makes the same ones again."""
    end = history[-1].end if history else 0
    if update <= end:
        return history
    if history and history[-1].attempt == attempt:
        return (*history[:-1], Segment(attempt=attempt, start=history[-1].start, end=update))
    return (*history, Segment(attempt=attempt, start=end, end=update))


def seize(storage: Storage, folder: str, owner: str) -> HeadDocument:
    """End whoever's lease on a folder at once: it is `stopped`, at a higher epoch, so that they find theirs lost.

    A folder whose HEAD is not running stays as it is; one without a HEAD gets one. Returns the document.
    """
    while True:
        found = read_head(storage, folder)
        try:
            if found is None:
                first = HeadDocument(owner=owner, epoch=1, nonce="", ttl_seconds=0, state="stopped").changed()
                storage.write_if_absent(f"{folder}/HEAD.json", first.body())
                return first
            document, tag = found
            if document.state != "running":
                return document
            ended = document.changed(owner=owner, epoch=document.epoch + 1, state="stopped")
            storage.compare_and_swap(f"{folder}/HEAD.json", ended.body(), tag)
        except Conflict:
            continue
        return ended


def change_head(
    storage: Storage,
    folder: str,
    epoch: int,
    attempt: int | None,
    change: Callable[[HeadDocument], HeadDocument],
    *,
    owner: str | None = None,
) -> HeadDocument:
    """Apply a change under the lease of `epoch` (and `attempt`), again where another holder's change came between.

    The driver and rank 0 of its gang change the same HEAD, so a conflict alone means nothing; a raised
    epoch means that the lease is lost, and so does another `owner`: where a folder has been removed and made
    again, epochs begin anew.
    """
    while True:
        document, tag = _read_own(storage, folder, epoch, attempt, owner)
        changed = change(document)
        try:
            storage.compare_and_swap(f"{folder}/HEAD.json", changed.body(), tag)
        except Conflict:
            continue
        return changed


def _read_own(
    storage: Storage, folder: str, epoch: int, attempt: int | None, owner: str | None
) -> tuple[HeadDocument, str]:
    found = read_head(storage, folder)
    if found is None:
        raise LeaseLost(f"{folder}/HEAD.json is gone")
    document, tag = found
    if document.epoch != epoch or document.state != "running" or owner not in (None, document.owner):
        raise LeaseLost(f"{folder} is at epoch {document.epoch} ({document.state}, {document.owner}); ours was {epoch}")
    if attempt is not None and document.attempt != attempt:
        raise LeaseLost(f"{folder} is at attempt {document.attempt}; ours was {attempt}")
    return document, tag


class LeaseWatch:
    """How long a tag has stayed the same, on this process's monotonic clock."""

    def __init__(self) -> None:
        self._tag, self._since = "", time.monotonic()
        self._looked = self._since

    def stale(self, tag: str, ttl: float, *, longest_gap: float = math.inf) -> bool:
        """Whether the tag is the one of an earlier look, and has been for more than `ttl` seconds.

        Looks that lie further apart than `longest_gap` count as the first: while this process or its storage stood
        still, so may the holder's have.
        """
        now = time.monotonic()
        if tag != self._tag or now - self._looked > longest_gap:
            self._tag, self._since = tag, now
        self._looked = now
        return now - self._since > ttl
