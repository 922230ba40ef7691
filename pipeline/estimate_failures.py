"""What failing machines cost a training, and how often it is best saved, for `plan --mtbf-hours`."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.storage.many import AT_ONCE, FILES_AT_ONCE
from stages.training.interval import Failures, best_interval, goodput

HOUR = 3600.0
COPY_BYTES_PER_S = 1e10
"""Of a rank's part of the state, while training stands. Assumed; on a CPU it was 1.5e10 (docs/benchmarks.md)."""
RESTART_SECONDS = 120.0
"""From a machine's loss to the next attempt's first update, without the requests for the checkpoint. Assumed: that it
is noticed, that the gang starts (12 s were measured), that another machine is there, and that the bytes come."""
REQUEST_SECONDS = 0.1
"""Of a small request to object storage. Assumed: of S3, AWS says that the median is tens of milliseconds."""
PREFIX_GETS = 5500
"""Reads a second that each partitioned prefix of a bucket answers at least, as AWS states it."""
WORTH_TELLING = 0.01
"""Part of the time by which another interval has to be better, to be named as a warning."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What failures and checkpoints take of a training stage's time, as parts of it. Times are in seconds."""

    between_failures: float
    """Of the whole run, in the mean."""
    restart_seconds: float
    upload_seconds: float | None
    """Of its bytes; None where it is not known, and taken for nothing."""
    commit_seconds: float
    """From the last rank's part to the change of HEAD."""
    save_every: int
    lost: float
    """With the workflow's `save_every`."""
    best_save_every: int
    best_lost: float

    @property
    def warnings(self) -> list[str]:
        """What another interval would save, where that is worth a change."""
        if self.lost - self.best_lost < WORTH_TELLING:
            return []
        return [
            f"save_every={self.save_every} loses {self.lost:.1%} of the time to failures and checkpoints: "
            f"save_every={self.best_save_every} would lose {self.best_lost:.1%}"
        ]


def losses(
    *,
    save_every: int,
    update_seconds: float,
    ranks: int,
    checkpoint_bytes: int,
    upload_seconds: float | None,
    machines: int,
    mtbf_hours: float,
) -> Losses:
    """What a run on `machines`, each of which fails every `mtbf_hours` in the mean, loses."""
    failures = Failures(
        between=mtbf_hours * HOUR / machines,
        restart=restart_seconds(ranks, machines),
        copy=checkpoint_bytes / ranks / COPY_BYTES_PER_S,
        upload=(upload_seconds or 0.0) + commit_seconds(ranks),
    )

    def lost(updates: int) -> float:
        return 1 - goodput(updates * update_seconds, failures)

    fewest = max(1, int(best_interval(failures) / update_seconds))
    best = min((fewest, fewest + 1), key=lost)
    return Losses(
        between_failures=failures.between,
        restart_seconds=failures.restart,
        upload_seconds=upload_seconds,
        commit_seconds=commit_seconds(ranks),
        save_every=save_every,
        lost=lost(save_every),
        best_save_every=best,
        best_lost=lost(best),
    )


def commit_seconds(ranks: int) -> float:
    """Requests of a commit one after the other: a rank's note of its part; all notes read, several at once; the
    manifest; the metrics; HEAD read and changed."""
    return (-(-ranks // AT_ONCE) + 5) * REQUEST_SECONDS


def restore_requests(ranks: int) -> int:
    """Of each machine for a checkpoint of so many ranks: each rank's part is looked for, found and read."""
    return 3 * ranks + 1


def restore_seconds(requests: float, machines: int) -> float:
    """Until all machines are answered, each of which asks so many times: by the time of a request, with several under
    way, or by what a prefix answers in all, whichever is longer."""
    return max(requests * REQUEST_SECONDS / FILES_AT_ONCE, machines * requests / PREFIX_GETS)


def restart_seconds(ranks: int, machines: int) -> float:
    """From a machine's loss to the next attempt's first update."""
    return RESTART_SECONDS + restore_seconds(restore_requests(ranks), machines)
