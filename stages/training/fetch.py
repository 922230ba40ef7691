"""A checkpoint's files, once on each machine: one of its ranks brings and checks them, the others read the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import torch.distributed as dist

from stages.context import CheckpointDamaged, Rank
from stages.temporary import machine_id, new_folder
from stages.training.faults import agreed
from stages.training.manifest import Damaged
from stages.training.restore import CheckpointFiles


@contextmanager
def fetched(rank: Rank, data: str, trunk: str | None = None) -> Iterator[CheckpointFiles]:
    """The files of the rank's checkpoint, until all ranks have left. Collective. `data` is the data set's digest.

    It is one of the rank's stage, or of a branch's `trunk`, by the key prefix of its folder.

    Raises CheckpointDamaged, on all ranks alike, where one finds that they are not what the manifest promises.
    """
    assert rank.checkpoint is not None
    folders: list[tuple[str, Path | None]] = [("", None)] * dist.get_world_size()
    folder = trunk if trunk is not None and rank.checkpoint.startswith(f"{trunk}/") else rank.folder
    machine = machine_id()
    dist.all_gather_object(folders, (machine, None))
    first = [found for found, _ in folders].index(machine) == dist.get_rank()
    own = new_folder() if first else None
    try:
        dist.all_gather_object(folders, (machine, own))
        files = CheckpointFiles(next(path for found, path in folders if found == machine and path is not None))
        problem = None
        try:
            if first:
                files.fetch(rank.storage, rank.checkpoint)
                files.check_own(identity=PurePath(folder).name, data=data)
        except Damaged as error:
            problem = str(error)
        if problem := agreed(problem):
            raise CheckpointDamaged(rank.checkpoint, problem)
        try:
            yield files
        except Damaged as error:
            # All ranks have the same verified bytes, and find the same.
            raise CheckpointDamaged(rank.checkpoint, str(error)) from None
        # Where one rank fails alone the gang ends, and none waits here for it.
        dist.barrier()
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
