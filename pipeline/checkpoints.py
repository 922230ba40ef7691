"""Checkpoints as people ask for them: which there are, whether they are whole, and their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from cluster.storage import NotFound, Storage, open_storage
from cluster.storage.base import Digest
from pipeline.config import Workflow
from pipeline.head import HeadDocument, read_head
from pipeline.record import read_record
from pipeline.status import StatusReader
from stages.context import read_output
from stages.models.weights_out import CHUNK_BYTES, checkpoint_kinds, checkpoint_tensors, write_safetensors
from stages.training.manifest import Damaged, check_stored, read_manifest

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint of a workflow's stage."""

    stage: str
    update: int
    samples: int
    """The next global sample number."""
    attempt: int
    world_size: int | None
    bytes: int
    address: str
    problem: str
    """Why it cannot be used; empty where nothing is known against it."""


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What was looked at, and what is wrong with it."""

    what: str
    """Address of a checkpoint or an output."""
    files: int
    bytes: int
    problems: tuple[str, ...]


def checkpoints(storage: Storage, workflow_id: str, workflow: Workflow) -> list[Checkpoint]:
    """The committed checkpoints of all stages, oldest first. Reads manifests alone."""
    found = []
    for stage, _, head in _heads(storage, workflow_id, workflow):
        for item in head.checkpoints:
            try:
                manifest, problem = read_manifest(storage, item.prefix), ""
            except Damaged as error:
                manifest, problem = {}, str(error)
            found.append(
                Checkpoint(
                    stage=stage,
                    update=item.update,
                    samples=manifest.get("cursor", 0),
                    attempt=manifest.get("attempt", 0),
                    world_size=manifest.get("world_size"),
                    bytes=sum(part["bytes"] for part in manifest.get("parts", ())),
                    address=f"{storage.url}/{item.prefix}",
                    problem=problem,
                )
            )
    return found


def audit(storage: Storage, workflow_id: str, workflow: Workflow, *, fast: bool) -> Iterator[Audited]:
    """Compare what is stored with what the manifests promise: every byte, or with `fast` the sizes alone.

    Outputs of the stages, the shards and indexes of data sets, and committed checkpoints.
    """
    for _, _, head in _heads(storage, workflow_id, workflow):
        if head.record is not None:
            yield _audit_output(storage, head.record, fast)
        for item in head.checkpoints:
            yield _audit_checkpoint(storage, item.prefix, fast)


def _heads(storage: Storage, workflow_id: str, workflow: Workflow) -> Iterator[tuple[str, str, HeadDocument]]:
    """Name, folder and HEAD of every stage that has begun."""
    reader = StatusReader(storage, workflow_id, workflow.order())
    reader.update()
    for name, status in reader.status.stages.items():
        head = read_head(storage, status.folder) if status.folder else None
        if status.folder and head is not None:
            yield name, status.folder, head[0]


def _audit_checkpoint(storage: Storage, prefix: str, fast: bool) -> Audited:
    what = f"{storage.url}/{prefix}"
    try:
        parts = read_manifest(storage, prefix)["parts"]
    except Damaged as error:
        return Audited(what=what, files=0, bytes=0, problems=(str(error),))
    return _audit_files(storage, what, [(f"{prefix}/{part['path']}", part) for part in parts], fast)


def _audit_output(storage: Storage, record_key: str, fast: bool) -> Audited:
    record = read_record(storage, record_key)
    what = f"{storage.url}/{record.output_prefix}"
    try:
        output = read_output(storage, record.output_prefix)
    except NotFound:
        return Audited(what=what, files=0, bytes=0, problems=(f"{record.output_prefix}/MANIFEST.json is missing",))
    if output.digest != record.output_digest:
        problem = f"{record.output_prefix}/MANIFEST.json is not the one that its record names"
        return Audited(what=what, files=0, bytes=0, problems=(problem,))
    files = [(output.key(entry["path"]), entry) for entry in output.manifest["files"]]
    found = _audit_files(storage, what, files, fast)
    files = [(located(storage, output, file["address"])[1], file) for file in stored_parts(output)]
    shards = (
        _audit_shards(storage, output, fast) if output.kind == "dataset" else _audit_files(storage, "", files, fast)
    )
    return Audited(
        what=what,
        files=found.files + shards.files,
        bytes=found.bytes + shards.bytes,
        problems=(*found.problems, *shards.problems),
    )


def stored_parts(output: Any) -> list[dict[str, Any]]:
    """The files of features [address, bytes, sha256], which the manifest's meta names; none of other outputs."""
    parts = output.meta["parts"] if output.kind == "features" else []
    return [file for part in parts for file in part["files"].values()]


def _audit_shards(storage: Storage, output: Any, fast: bool) -> Audited:
    from stages.data.dataset import stored_shards

    files, size, problems = 0, 0, []
    for split in output.meta["splits"]:
        for shard in stored_shards(storage, output, split):
            for file in (shard.tar, shard.index):
                place, key = located(storage, output, file.address)
                entry = {"bytes": file.bytes, "sha256": file.sha256}
                one = _audit_files(place, "", [(key, entry)], fast)
                files, size, problems = files + 1, size + one.bytes, [*problems, *one.problems]
    return Audited(what="", files=files, bytes=size, problems=tuple(problems))


def located(storage: Storage, output: Any, address: str) -> tuple[Storage, str]:
    """Storage and key of a file that a data set's table names: below its folder, or anywhere."""
    if "://" not in address:
        return storage, f"{output.prefix.split('/attempts/')[0]}/{address}"
    root, _, name = address.rpartition("/")
    return open_storage(root), name


def _audit_files(storage: Storage, what: str, files: list[tuple[str, dict[str, Any]]], fast: bool) -> Audited:
    problems = []
    for key, entry in files:
        try:
            check_stored(storage, key, entry)
            if not fast and (found := stored_digest(storage, key).sha256) != entry["sha256"]:
                raise Damaged(f"{key} has sha256 {found}; its manifest says {entry['sha256']}")
        except Damaged as error:
            problems.append(str(error))
    size = sum(entry["bytes"] for _, entry in files)
    return Audited(what=what, files=len(files), bytes=size, problems=tuple(problems))


def stored_digest(storage: Storage, key: str) -> Digest:
    """Size and sha256 of a stored object, read a piece at a time. Raises NotFound."""
    stat, sha256 = storage.stat(key), hashlib.sha256()
    if stat is None:
        raise NotFound(key)
    for start in range(0, stat.bytes, CHUNK_BYTES):
        sha256.update(storage.read_range(key, start, min(CHUNK_BYTES, stat.bytes - start)))
    return Digest(bytes=stat.bytes, sha256=sha256.hexdigest())


def export(
    storage: Storage,
    workflow_id: str,
    workflow: Workflow,
    to: str,
    *,
    stage: str | None = None,
    update: int | None = None,
    raw: bool = False,
    fast: bool = False,
) -> dict[str, Any]:
    """Write weights to `to`, a path or an address ending in `.safetensors`, and what they are beside it as JSON.

    They are those of the newest checkpoint, or of the one at `update`, of `stage` or of the last stage that has
    any: Polyak's average where there is one, unless `raw`. All files are verified first, unless `fast`.
    Returns the description. Raises UserError; Damaged where bytes are not what the manifest promises.
    """
    if not to.endswith(".safetensors"):
        raise UserError(f"--to {to}: expected a name that ends in .safetensors")
    chosen = _choose(storage, workflow_id, workflow, stage, update)
    manifest = read_manifest(storage, chosen)
    for part in manifest["parts"]:
        check_stored(storage, f"{chosen}/{part['path']}", part)
        if not fast and (found := stored_digest(storage, f"{chosen}/{part['path']}").sha256) != part["sha256"]:
            raise Damaged(f"{chosen}/{part['path']} has sha256 {found}; its manifest says {part['sha256']}")
    kind = "weight" if raw or "average" not in checkpoint_kinds(storage, chosen, manifest) else "average"
    tensors = checkpoint_tensors(storage, chosen, manifest, kind)
    description = {
        "format": 1,
        **manifest.get("about", {}),
        "update": manifest["update"],
        "averaged": kind == "average",
        "checkpoint": f"{storage.url}/{chosen}",
    }
    place, name = _destination(to)
    with place.writer(name) as sink:
        write_safetensors(storage, tensors, sink)
    place.write(f"{name.removesuffix('.safetensors')}.json", json.dumps(description, indent=2).encode())
    return description


def _choose(storage: Storage, workflow_id: str, workflow: Workflow, stage: str | None, update: int | None) -> str:
    """Key prefix of the checkpoint that is meant."""
    there = {name: head.checkpoints for name, _, head in _heads(storage, workflow_id, workflow) if head.checkpoints}
    if not there:
        raise UserError(f"{workflow_id} has no checkpoint yet")
    if stage is not None and stage not in there:
        raise UserError(f"stage '{stage}' of {workflow_id} has no checkpoint; those that have: {', '.join(there)}")
    chosen = there[stage or list(there)[-1]]
    if update is None:
        return chosen[-1].prefix
    for item in chosen:
        if item.update == update:
            return item.prefix
    kept = ", ".join(str(item.update) for item in chosen)
    raise UserError(f"no checkpoint at update {update}; there are: {kept} (as keep_last and keep_every say)")


def _destination(to: str) -> tuple[Storage, str]:
    from pathlib import Path

    if "://" in to:
        root, _, name = to.rpartition("/")
        return open_storage(root), name
    path = Path(to).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return open_storage(f"file://{path.parent}"), path.name
