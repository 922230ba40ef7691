"""`get-output`: where a finished stage's output lies, what it consists of, and copies of it. From storage alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import NotFound, Storage, open_storage
from pipeline.checkpoints import located, stored_parts
from pipeline.config import Workflow
from pipeline.head import read_head
from pipeline.record import read_record, recorded_output
from pipeline.status import StatusReader
from stages.context import Output, canonical_json
from stages.models.weights_out import CHUNK_BYTES
from stages.training.manifest import Damaged

MANIFEST = "MANIFEST.json"
AT_ONCE = 8
"""Files that are copied side by side."""


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One file of an output. `path` is relative to the output's copy; shards of data sets have theirs too."""

    path: str
    address: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StageOutput:
    """What a finished stage has made."""

    stage: str
    kind: str
    address: str
    digest: str
    """sha256 of the manifest, which has the sha256 of every file."""
    attempt: int
    files: tuple[OutputFile, ...]
    shards: tuple[OutputFile, ...]
    """Tars and indexes of a data set, which its tables name, or the files of features; they are copied too."""
    elsewhere: int
    """Tars and indexes that a data set's tables name by absolute addresses, which stay where they are."""


def get_output(storage: Storage, workflow_id: str, workflow: Workflow, stage: str) -> StageOutput:
    """What a workflow's stage has made. Raises UserError where it is not done; Damaged where the output is gone."""
    return _described(storage, stage, *_recorded(storage, workflow_id, workflow, stage))


def read_recorded(storage: Storage, workflow_id: str, workflow: Workflow, stage: str) -> Output:
    """The output of a finished stage, with its manifest. Raises as `get_output` does."""
    return _recorded(storage, workflow_id, workflow, stage)[0]


def copy_output(
    storage: Storage,
    workflow_id: str,
    workflow: Workflow,
    stage: str,
    to: str,
    *,
    report: Callable[[OutputFile], None] = lambda file: None,
) -> StageOutput:
    """Copy an output's files to a folder or an address; its manifest comes last. `report` is told of each file.

    Every file is compared with the manifest on its way, in the memory of a few pieces of 8 MiB: one that is not what
    the manifest promises raises Damaged, and does not appear. What is there by the same name is replaced.
    """
    output, attempt = _recorded(storage, workflow_id, workflow, stage)
    described = _described(storage, stage, output, attempt)
    place = _destination(to)

    def copied(file: OutputFile) -> OutputFile:
        root, _, name = file.address.rpartition("/")
        _copy(open_storage(root), name, place, file)
        return file

    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="copy")
    try:
        for file in pool.map(copied, (*described.files, *described.shards)):
            report(file)
    finally:
        # After a failure no other file begins.
        pool.shutdown(cancel_futures=True)
    place.write(MANIFEST, canonical_json(output.manifest))
    return described


def _recorded(storage: Storage, workflow_id: str, workflow: Workflow, stage: str) -> tuple[Output, int]:
    """The recorded output, and the attempt that made it."""
    if stage not in workflow.stages:
        raise UserError(f"stage '{stage}' is none of {workflow_id}: its stages are {', '.join(workflow.stages)}")
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    folder = reader.status.stages[stage].folder if stage in reader.status.stages else None
    head = read_head(storage, folder) if folder is not None else None
    if head is None or head[0].record is None:
        raise UserError(f"stage '{stage}' of {workflow_id} is not done: `patchline status {workflow_id}` shows it")
    try:
        record = read_record(storage, head[0].record)
    except NotFound:
        raise Damaged(f"{head[0].record} is missing") from None
    output = recorded_output(storage, record)
    if output is None:
        raise Damaged(f"{record.output_prefix}/{MANIFEST} is missing, or is not the one that its record names")
    return output, record.attempt


def _described(storage: Storage, stage: str, output: Output, attempt: int) -> StageOutput:
    files = [
        OutputFile(
            path=entry["path"],
            address=f"{storage.url}/{output.key(entry['path'])}",
            bytes=entry["bytes"],
            sha256=entry["sha256"],
        )
        for entry in output.manifest["files"]
    ]
    shards = list(_shards(storage, output)) if output.kind == "dataset" else list(_parts(storage, output))
    own = [file for file in shards if file is not None]
    return StageOutput(
        stage=stage,
        kind=output.kind,
        address=f"{storage.url}/{output.prefix}",
        digest=output.digest,
        attempt=attempt,
        files=tuple(files),
        shards=tuple(own),
        elsewhere=len(shards) - len(own),
    )


def _shards(storage: Storage, output: Output) -> Iterator[OutputFile | None]:
    """The tars and indexes that lie below the stage's folder; None for each one that lies elsewhere."""
    from stages.data.dataset import stored_shards

    for split in output.meta["splits"]:
        for shard in stored_shards(storage, output, split):
            for file in (shard.tar, shard.index):
                if "://" in file.address:
                    yield None
                    continue
                place, key = located(storage, output, file.address)
                yield OutputFile(path=file.address, address=f"{place.url}/{key}", bytes=file.bytes, sha256=file.sha256)


def _parts(storage: Storage, output: Output) -> Iterator[OutputFile]:
    """The files of stored features, which lie below the stage's folder as those of a data set do."""
    for file in stored_parts(output):
        place, key = located(storage, output, file["address"])
        yield OutputFile(path=file["address"], address=f"{place.url}/{key}", bytes=file["bytes"], sha256=file["sha256"])


def _destination(to: str) -> Storage:
    if "://" in to:
        return open_storage(to.rstrip("/"))
    path = Path(to).absolute()
    if path.is_file():
        raise UserError(f"TO {to}: expected a folder or an address such as s3://BUCKET/PREFIX; it is a file")
    return open_storage(f"file://{path}")


def _copy(source: Storage, key: str, place: Storage, file: OutputFile) -> None:
    stat, sha256 = source.stat(key), hashlib.sha256()
    if stat is None or stat.bytes != file.bytes:
        found = "is missing" if stat is None else f"has {stat.bytes} bytes"
        raise Damaged(f"{file.address} {found}; its manifest promises {file.bytes} bytes")
    with place.writer(file.path) as sink:
        for start in range(0, stat.bytes, CHUNK_BYTES):
            piece = source.read_range(key, start, min(CHUNK_BYTES, stat.bytes - start))
            sha256.update(piece)
            sink.write(piece)
        if sha256.hexdigest() != file.sha256:
            # Within the block: so the copy does not appear.
            raise Damaged(f"{file.address} has sha256 {sha256.hexdigest()}; its manifest says {file.sha256}")
