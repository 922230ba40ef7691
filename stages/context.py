"""What a stage is given: storage, where to write, how to spread work, and when to stop.

A stage is one function, `run(config, inputs, context) -> Result`. It knows nothing of Ray, MLflow or
S3: the runner fills in the callables below, and a plain test fills in simple ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cluster.errors import check_format
from cluster.storage.base import Storage

FORMAT = 1


StopReason = Literal["cancelled", "preempted", "terminated", "resized"]
"""Why a rank is asked to save and end: somebody wants it, its machine is taken away, its process was sent a
signal, or the gang can grow."""


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """A request to save a checkpoint and end."""

    reason: StopReason
    notice_seconds: float | None = None
    """How long there is to do it, where that is known."""


class Stopped(Exception):
    """The stage saved its state and ended early because it was asked to stop."""

    def __init__(self, request: StopRequest, save_seconds: float) -> None:
        super().__init__(f"saved a checkpoint in {save_seconds:.1f} s and stopped: {request.reason}")
        self.request, self.save_seconds = request, save_seconds


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Training went back, and leaves the samples [start, stop) of its data out from then on."""

    update: int
    """At which the trouble was found."""
    start: int
    stop: int
    reason: str


class RollbackWanted(Exception):
    """The attempt ended because its loss or gradients cannot be used: go back, and leave the data out."""

    def __init__(self, rollback: Rollback, limit: int) -> None:
        super().__init__(f"update {rollback.update}: {rollback.reason}")
        self.rollback, self.limit = rollback, limit
        """How often a stage may go back."""


class CheckpointDamaged(Exception):
    """The attempt's checkpoint is not what its manifest promises: the one before it is to be used."""

    def __init__(self, prefix: str, reason: str) -> None:
        super().__init__(reason)
        self.prefix, self.reason = prefix, reason


def canonical_json(document: Any) -> bytes:
    """The one JSON form of a document: sorted keys, no spaces, no NaN. Raises ValueError or TypeError."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Output:
    """A committed output: files below `prefix` in storage, as its manifest lists them.

    The manifest is `{"format", "kind", "files": [{"path", "bytes", "sha256"}], "meta"}` with paths
    relative to `prefix`, so that equal outputs have equal digests wherever they were made.
    """

    prefix: str
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def meta(self) -> dict[str, Any]:
        return self.manifest["meta"]

    @property
    def digest(self) -> str:
        return sha256(canonical_json(self.manifest))

    def key(self, path: str) -> str:
        """The storage key of one of the output's files."""
        return f"{self.prefix}/{path}"


Inputs = Mapping[str, Output]
"""The outputs that a stage reads, by the name of the config field that refers to them."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a stage hands to the runner: its output, its headline figures, and tables to show.

    PNG files of the output are shown too, each with the CSV file of its name.
    """

    output: Output
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    builds: Mapping[str, str] = field(default_factory=dict)
    """What computed it, beside the packages that the runner knows of."""


Keep = Callable[[Mapping[int, str]], Collection[int]]
"""Of checkpoints, their key prefixes by their updates in rising order, the updates of those that stay."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One worker of a gang, and what it may do with the stage's state in storage."""

    rank: int
    world_size: int
    local_rank: int
    storage: Storage
    folder: str
    attempt: int
    checkpoint: str | None
    """Key prefix of the newest committed checkpoint at the start of this attempt."""
    commit_checkpoint: Callable[[str, int, Keep], Sequence[str]]
    """Make a fully written checkpoint (its key prefix, its update) the stage's newest. Rank 0 only.

    Given all committed ones, `Keep` says which stay. The key prefixes of the others are returned:
    they are no longer reachable, and the caller deletes what lies there.
    """
    stop_requested: Callable[[], StopRequest | None]
    """Whether and why this rank has been asked to stop. Cheap: it may be called at every update."""
    rollbacks: tuple[Rollback, ...] = ()
    """Those before this attempt."""
    local_world_size: int = 1
    """Ranks on this machine."""
    own_process: bool = True
    """Whether the process is this rank's alone, so that it may end it."""


class SizedIterable:
    """Items that are made as they are needed, and of which it is known how many there are: `len` says so."""

    def __init__(self, items: Iterable[Any], length: int) -> None:
        self._items, self._length = items, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


class MapTasks(Protocol):
    def __call__(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        label: str,
        cpus: float = 1,
        gpus: float = 0,
    ) -> Iterable[Any]:
        """`function` over `items`, each one a task that may be retried elsewhere; results in order, as they come.

        Whoever follows the stage is told how many are done, and of how many where `items` have a length. Each reserves
        `cpus` and `gpus` on its machine.
        """
        ...


class RunGang(Protocol):
    def __call__(
        self,
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
        """`function(argument, rank)` on `workers` ranks at once; returns rank 0's value.

        Without a cluster it runs in this process as a gang of one, whatever `workers` says. A pair is the fewest and
        the most: as many as the cluster has room for; 0 is 1. Each reserves `cpus`, `gpus` and `memory` (in GB) on a
        machine that has the `labels`. `usable` says how many of a number of ranks have work; the others idle.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """What `run` is given beside its config and its inputs."""

    storage: Storage
    folder: str
    """Key prefix of the stage's folder, for example `stages/pretrain/0123456789abcdef0123`."""
    attempt: int
    seed: int
    tasks: MapTasks
    gang: RunGang
    expect: Callable[[int], None] = lambda total: None
    """Told the number of updates that the stage will make, for progress displays."""
    rollbacks: tuple[Rollback, ...] = ()
    """Those of the attempts before this one."""
    checkpoints: Callable[[], Sequence[str]] = lambda: ()
    """Key prefixes of the stage's committed checkpoints, by rising updates."""
    keep_checkpoints: Callable[[Keep], None] = lambda keep: None
    """Give up the committed checkpoints that do not stay."""
    stop_wanted: Callable[[], bool] = lambda: False
    """Whether the workflow is to stop, for what a stage does outside gangs, whose ranks are asked themselves. Cheap."""
    side_by_side: bool = False
    """Whether tasks and gangs have processes of their own, so that they may run at the same time."""

    @property
    def prefix(self) -> str:
        """Key prefix of this attempt's files."""
        return f"{self.folder}/attempts/{self.attempt}"

    def write(self, path: str, data: bytes) -> dict[str, Any]:
        """Store one file of the output; returns its entry for the manifest."""
        self.storage.write(f"{self.prefix}/{path}", data)
        return {"path": path, "bytes": len(data), "sha256": sha256(data)}

    def commit(self, kind: str, files: Iterable[dict[str, Any]], meta: dict[str, Any]) -> Output:
        """Write the manifest, last of all; returns the output that it describes."""
        ordered = sorted(files, key=lambda entry: entry["path"])
        manifest = {"format": FORMAT, "kind": kind, "files": ordered, "meta": meta}
        self.storage.write(f"{self.prefix}/MANIFEST.json", canonical_json(manifest))
        return Output(prefix=self.prefix, manifest=manifest)


def read_output(storage: Storage, prefix: str) -> Output:
    """The output whose manifest lies below `prefix`. Raises NotFound; UserError for a newer format."""
    manifest = json.loads(storage.read(f"{prefix}/MANIFEST.json"))
    check_format(manifest["format"], FORMAT, f"{prefix}/MANIFEST.json")
    return Output(prefix=prefix, manifest=manifest)


def write_fault(rank: Rank, message: str) -> None:
    """Leave a note of what a rank found out before it ended its process."""
    note = {"format": FORMAT, "rank": rank.rank, "message": message}
    key = f"{_fault_prefix(rank.folder, rank.attempt)}{rank.rank:04d}.json"
    rank.storage.write(key, canonical_json(note))


def read_faults(storage: Storage, folder: str, attempt: int) -> list[str]:
    """The notes that the ranks of an attempt have left, each one once."""
    messages: dict[str, None] = {}
    for key in storage.list(_fault_prefix(folder, attempt)):
        note = json.loads(storage.read(key))
        check_format(note["format"], FORMAT, key)
        messages[note["message"]] = None
    return list(messages)


def _fault_prefix(folder: str, attempt: int) -> str:
    return f"{folder}/attempts/{attempt}/fault-"
