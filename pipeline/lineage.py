"""Which figures of a workflow are those of a model: its own, those of the models that it began with, and what its
evaluations say of any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.config import Workflow
from pipeline.identity import references
from pipeline.reuse import Finished
from stages.context import Output, canonical_json, sha256

MEASURED = ("test/", "validation/", "features/")
"""Beginnings of figures that were measured on images that nobody trained on."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure, called as on the workflow's run in MLflow."""

    name: str
    value: float
    stage: str
    data: str
    """Digest of the data set that it was measured on."""
    time_ms: int


def evaluations(workflow: Workflow, finished: Mapping[str, Finished], stage: str) -> list[str]:
    """The stages that say something of the model that `stage` has made, in the order of the workflow."""
    family = _family(finished, finished[stage].output)
    return [name for name in workflow.order() if name in finished and _about(workflow, finished, name, family)]


def figures(workflow: Workflow, finished: Mapping[str, Finished], stage: str) -> list[Figure]:
    """What was measured of the model that `stage` has made, and of those that it began with."""
    found = []
    for name in evaluations(workflow, finished, stage):
        record, data = finished[name].record, data_digest(workflow, finished, name)
        for metric, value in record.metrics.items():
            if metric.startswith(MEASURED) and data is not None:
                called = f"{name}/{metric.removeprefix('features/')}"
                found.append(Figure(name=called, value=value, stage=name, data=data, time_ms=record.ended_ms))
    return found


def data_digest(workflow: Workflow, finished: Mapping[str, Finished], name: str) -> str | None:
    """Digest of the data set that a stage was measured on, of several a digest of theirs; None where it read none."""
    found = sorted(set(_digests(workflow, finished, name, "dataset")))
    if len(found) > 1:
        return sha256(canonical_json(found))
    return found[0] if found else None


def _about(workflow: Workflow, finished: Mapping[str, Finished], name: str, family: set[str]) -> bool:
    output = finished[name].output
    if output.kind == "model":
        return output.digest in family
    models = set(_digests(workflow, finished, name, "model"))
    return bool(models) and models <= family


def _family(finished: Mapping[str, Finished], model: Output) -> set[str]:
    """Digests of a model and of those that it began with, one after the other."""
    models = {done.output.digest: done.output for done in finished.values() if done.output.kind == "model"}
    family, digest = set[str](), model.digest
    while digest not in family:
        family.add(digest)
        digest = str(models[digest].meta.get("pretrained", digest)) if digest in models else digest
    return family


def _digests(workflow: Workflow, finished: Mapping[str, Finished], name: str, kind: str) -> Iterator[str]:
    """Digests of the outputs of one kind that a stage reads; where it reads none, of what its inputs read."""
    inputs = [target for target in references(workflow.stages[name]).values() if target in finished]
    direct = [finished[target].output.digest for target in inputs if finished[target].output.kind == kind]
    if direct:
        yield from direct
        return
    for target in inputs:
        yield from _digests(workflow, finished, target, kind)
