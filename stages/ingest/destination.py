"""Where a data set's tars lie, and whose they are.

A destination belongs to the one stage that its owner document names. So no ingestion overwrites another's tars,
which records and tables speak of, nor anybody else's files.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cluster.errors import UserError, check_format
from cluster.storage import Conflict, NotFound, Storage, open_storage
from stages.context import Context, Output, canonical_json
from stages.data.manifest import base_folder, dataset_meta
from stages.data.table import tar_sizes
from stages.ingest.config import IngestConfig
from stages.ingest.splits import NAMES

OWNER = "patchline.json"
"""The owner document's name, beside the tars."""
FORMAT = 1
_TAR = re.compile(rf"({'|'.join(NAMES)})-\d{{6,}}\.tar")


def place(config: IngestConfig, storage: Storage, folder: str, name: str) -> tuple[Storage, str, str]:
    """Storage, key and address of the tar `name`, for example `train-000007`; `folder` is the stage's.

    The address is relative to the stage's folder where no destination is given.
    """
    if config.destination is None:
        return storage, f"{folder}/shards/{name}.tar", f"shards/{name}.tar"
    return open_storage(config.destination), f"{name}.tar", f"{config.destination.rstrip('/')}/{name}.tar"


def claim(config: IngestConfig, context: Context) -> None:
    """Make the destination this stage's own, where one is given. Raises UserError where it is another's."""
    if config.destination is None:
        return
    storage = open_storage(config.destination)
    owner = _owner(storage)
    if owner is None:
        _check_free(config.destination, storage)
        try:
            storage.write_if_absent(OWNER, canonical_json({"format": FORMAT, "stage": context.folder}))
        except Conflict:
            # Another ingestion has been faster.
            owner = _owner(storage)
    if owner is not None and _recipe(owner["stage"]) != _recipe(context.folder):
        raise UserError(
            f"destination={config.destination} has the tars of another ingestion, {owner['stage']}, or of this one "
            "when its source, seed or settings were others. They stay as they are: give a destination of its own, such "
            f"as {config.destination.rstrip('/')}-2, or remove everything in this one first"
        )


def is_in_place(config: IngestConfig, storage: Storage, output: Output) -> bool:
    """Whether a data set's tars are all at the destination, with their sizes: at the cost of its tables and a list."""
    found: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for name, split in dataset_meta(output).splits.items():
        try:
            wanted |= tar_sizes(storage.read(output.key(split.table)))
        except NotFound:
            return False
        home, key, address = place(config, storage, base_folder(output), f"{name}-")
        start, base = key.removesuffix(".tar"), address.removesuffix(".tar")
        found |= {f"{base}{key.removeprefix(start)}": size for key, size in home.sizes(start)}
    return all(found.get(address) == size for address, size in wanted.items())


def _recipe(folder: str) -> str:
    """A stage's folder without what tells it from others of the same recipe, which make the same bytes."""
    return folder.partition(".")[0]


def _owner(storage: Storage) -> dict[str, Any] | None:
    try:
        document = json.loads(storage.read(OWNER))
    except NotFound:
        return None
    except ValueError as error:
        raise UserError(f"{storage.url}/{OWNER} is no owner document: give another destination") from error
    check_format(document["format"], FORMAT, f"{storage.url}/{OWNER}")
    return document


def _check_free(destination: str, storage: Storage) -> None:
    """Raise UserError where files have names that this program's tars could get."""
    for split in NAMES:
        for key in storage.list(f"{split}-"):
            if _TAR.fullmatch(key):
                raise UserError(
                    f"destination={destination} has {key}, which no ingestion of this program owns, and nothing is "
                    "overwritten: give a destination without such files, or take them away"
                )
