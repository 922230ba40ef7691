"""Which figures of a workflow are those of a model: its own, those of the models that it began with, and what its
evaluations say of any of them."""

from __future__ import annotations

from collections.abc import Mapping
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
    data_name: str
    time_ms: int


def evaluations(workflow: Workflow, finished: Mapping[str, Finished], stage: str) -> list[str]:
    """The stages that say something of the model that `stage` has made, in the order of the workflow."""
    family = _family(finished, finished[stage].output)
    return [name for name in workflow.order() if name in finished and _about(workflow, finished, name, family)]


def figures(workflow: Workflow, finished: Mapping[str, Finished], stage: str) -> list[Figure]:
    """What was measured of the model that `stage` has made, and of those that it began with."""
    found = []
    for name in evaluations(workflow, finished, stage):
        record, sets = finished[name].record, _read(workflow, finished, name, "dataset")
        for metric, value in record.metrics.items() if sets else ():
            if metric.startswith(MEASURED) and not metric.endswith("/images"):
                found.append(
                    Figure(
                        name=f"{name}/{metric.removeprefix('features/')}",
                        value=value,
                        stage=name,
                        data=_digest(sets),
                        data_name=" + ".join(str(output.meta["name"]) for output in sets.values()),
                        time_ms=record.ended_ms,
                    )
                )
    return found


def _digest(outputs: Mapping[str, Output]) -> str:
    """Of several outputs one digest of theirs."""
    return next(iter(outputs)) if len(outputs) == 1 else sha256(canonical_json(sorted(outputs)))


def _about(workflow: Workflow, finished: Mapping[str, Finished], name: str, family: set[str]) -> bool:
    output = finished[name].output
    if output.kind == "model":
        return output.digest in family
    models = _read(workflow, finished, name, "model").keys()
    return bool(models) and models <= family


def _family(finished: Mapping[str, Finished], model: Output) -> set[str]:
    """Digests of a model and of those that it began with, one after the other."""
    models = {done.output.digest: done.output for done in finished.values() if done.output.kind == "model"}
    family, digest = set[str](), model.digest
    while digest not in family:
        family.add(digest)
        digest = str(models[digest].meta.get("pretrained", digest)) if digest in models else digest
    return family


def _read(workflow: Workflow, finished: Mapping[str, Finished], name: str, kind: str) -> dict[str, Output]:
    """The outputs of one kind that a stage reads, by digest; where it reads none, those that its inputs read."""
    inputs = [target for target in references(workflow.stages[name]).values() if target in finished]
    direct = [finished[target].output for target in inputs if finished[target].output.kind == kind]
    if direct:
        return {output.digest: output for output in direct}
    return {key: out for target in inputs for key, out in _read(workflow, finished, target, kind).items()}
