"""A rank of a gang without a runner, for benchmarks."""

from __future__ import annotations

from cluster.storage import Storage
from stages.context import Keep, Rank


def rank_of(storage: Storage, folder: str, rank: int, world_size: int) -> Rank:
    """One whose commits nobody looks at, and that nobody stops."""

    def commit(prefix: str, update: int, keep: Keep) -> tuple[str, ...]:
        return ()

    return Rank(
        rank=rank, world_size=world_size, local_rank=rank, storage=storage, folder=folder, attempt=1, checkpoint=None,
        commit_checkpoint=commit, stop_requested=lambda: None,
    )  # fmt: skip
