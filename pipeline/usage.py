"""Which stages the workflows of a root use: what is named by none of them may be removed, and nothing else.

- What a workflow's events name, it has used, and may use again.
- A workflow that has not ended uses what its file names too, from the moment when it was stored: so that a stage that
  it finds done and reads, without a lease and before it tells so, is known as its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cluster.errors import UserError, check_format
from cluster.storage import NotFound, Storage
from pipeline.driver import read_workflow
from pipeline.head import read_head
from pipeline.identity import fingerprint, references
from pipeline.kinds import KINDS
from pipeline.opaque import OpaqueConfig
from pipeline.record import FORMAT, listed
from pipeline.retries import read_retries
from pipeline.reuse import identify

ENDED = ("done", "failed", "stopped")
AT_ONCE = 16
"""Objects that are read side by side."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """What workflows use."""

    folders: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    """Kinds of stages of which it cannot be told from here which ones are used: then all of them may be."""

    others: bool = False
    """Whether all kinds that do not ship are among these: what a class that cannot be imported calls its own."""

    def has(self, folder: str) -> bool:
        """Whether a stage's folder is used, as far as one can tell."""
        kind = folder.split("/")[1]
        return folder in self.folders or kind in self.kinds or (self.others and kind not in KINDS)

    def with_(self, other: Named) -> Named:
        """What either uses."""
        return Named(
            folders=self.folders | other.folders,
            kinds=self.kinds | other.kinds,
            others=self.others or other.others,
        )


@dataclass
class References:
    """The stages that each workflow of a root uses, all workflows but one. Asked again, it looks at what is new."""

    storage: Storage
    without: str | None = None
    """A workflow whose own use does not count."""
    _ended: dict[str, tuple[str, Named]] = field(default_factory=dict)

    def named(self, *, running: bool = False) -> Named:
        """What is used now: by all workflows, or by those alone that have not ended (`running`)."""
        known = {name: state for name, state in listed(self.storage).items() if name != self.without}
        # Whatever is stored counts, also before and after it is listed.
        stored = {name for name in self.storage.list_folders("workflows/") if name != self.without}
        total = Named()
        for name in sorted(stored | known.keys()):
            own, ended = self._of(name, known.get(name, "submitted"))
            total = total if running and ended else total.with_(own)
        return total

    def _of(self, name: str, state: str) -> tuple[Named, bool]:
        """What a workflow uses, and whether it has ended."""
        head = read_head(self.storage, f"workflows/{name}")
        mark = f"{state} {head[0].epoch if head is not None else 0}"
        if state in ENDED and self._ended.get(name, ("",))[0] == mark:
            return self._ended[name][1], True
        own = told_by(self.storage, name)
        if state not in ENDED or (head is not None and head[0].state == "running"):
            return own.with_(planned_by(self.storage, name)), False
        self._ended[name] = (mark, own)
        return own, True


def told_by(storage: Storage, workflow_id: str) -> Named:
    """The stages that a workflow's events name, those of drivers that had lost their lease among them."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        bodies = pool.map(lambda key: _read(storage, key), storage.list(f"workflows/{workflow_id}/events/"))
        return Named(folders=frozenset(folder for found in bodies for folder in found))


def _read(storage: Storage, key: str) -> list[str]:
    try:
        document = json.loads(storage.read(key))
    except NotFound:
        return []
    check_format(document.get("format", FORMAT), FORMAT, key)
    folder = document.get("data", {}).get("folder")
    return [folder] if folder else []


def planned_by(storage: Storage, workflow_id: str) -> Named:
    """The stages that a workflow's file names. Where what they read from outside is not here, their kinds.

    Where the class of one cannot be imported here, all kinds that do not ship. Raises UserError where the file cannot
    be read: then nobody can tell what the workflow uses.
    """
    try:
        workflow = read_workflow(storage, workflow_id)
    except UserError:
        if storage.stat(f"workflows/{workflow_id}/workflow.yaml") is None:
            # It never had one, or somebody has just deleted it.
            return Named()
        # It may have come in between.
        workflow = read_workflow(storage, workflow_id)
    retries = read_retries(storage, workflow_id)
    prints: dict[str, str] = {}
    folders, kinds, others = set[str](), set[str](), False
    for name in workflow.order():
        config, targets = workflow.stages[name], references(workflow.stages[name])
        if isinstance(config, OpaqueConfig):
            others = True
            continue
        try:
            document = identify(workflow, name, {field: prints[target] for field, target in targets.items()})
        except (UserError, OSError, KeyError):
            kinds.add(config.kind)
            continue
        prints[name] = fingerprint(document)
        folders.add(retries.folder(workflow_id, name, config.kind, prints[name]))
    return Named(folders=frozenset(folders), kinds=frozenset(kinds), others=others)


def stage_folders(storage: Storage) -> Iterator[str]:
    """The folders of all stages of a root."""
    for kind in storage.list_folders("stages/"):
        for name in storage.list_folders(f"stages/{kind}/"):
            yield f"stages/{kind}/{name}"
