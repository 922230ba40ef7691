"""Which accuracies are of which pretrained model: by digest, whatever stages are called."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from cluster.storage import Storage
from stages.context import Inputs, Output
from stages.scaling.config import ScalingConfig
from stages.scaling.models import Pretrained, made_before

Accuracies = dict[str, float]
"""By the digest of the pretrained model."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An accuracy, as a stage has measured it."""

    stage: str
    model: str
    """Digest of the pretrained model that it is of."""
    data: str
    """Digest of the data set that it was measured on."""
    accuracy: float


def finetuned_accuracies(config: ScalingConfig, inputs: Inputs, models: Sequence[Pretrained]) -> Accuracies:
    """Of fine-tuned models. Raises UserError."""
    found = [_finetuned(config, stage, inputs[f"finetuned.{number}"]) for number, stage in enumerate(config.finetuned)]
    return _means("finetuned", found, models)


def fewshot_accuracies(
    config: ScalingConfig, inputs: Inputs, models: Sequence[Pretrained], storage: Storage
) -> Accuracies:
    """Of frozen features. Raises UserError."""
    found = [
        measured
        for number, stage in enumerate(config.fewshot)
        for measured in _fewshot(config, stage, inputs[f"fewshot.{number}"], storage)
    ]
    return _means("fewshot", found, models)


def check_evaluated(config: ScalingConfig, models: Sequence[Pretrained], *found: Mapping[str, float]) -> None:
    """Raises UserError for a model that nothing has measured."""
    for model in models:
        if not any(model.digest in own for own in found):
            fields = " or ".join(field for field in ("finetuned", "fewshot") if getattr(config, field))
            raise UserError(
                f"pretrained: nothing here evaluates '{model.stage}': name a stage in {fields} that does, or take "
                "it away"
            )


def _finetuned(config: ScalingConfig, stage: str, output: Output) -> Measured:
    meta = output.meta
    if "imported" in meta or ("train_images" in meta and "pretrained" not in meta):
        why = "was imported" if "imported" in meta else "began with no other model"
        raise UserError(f"finetuned: the model from '{stage}' {why}: name stages that fine-tune those of pretrained")
    if "pretrained" not in meta:
        raise made_before("finetuned", stage, "which model it began with")
    figures = meta["metrics"]
    if config.metric not in figures:
        known = ", ".join(name for name in figures if name.endswith("/accuracy")) or "none"
        raise UserError(f"metric={config.metric}: the model from '{stage}' has no such figure; it has {known}")
    return Measured(stage=stage, model=meta["pretrained"], data=meta["trained_on"], accuracy=figures[config.metric])


def _fewshot(config: ScalingConfig, stage: str, output: Output, storage: Storage) -> Iterator[Measured]:
    """One for each data set of the evaluation, or for each model, where its features are of several."""
    wanted = {
        "class_set": config.class_set,
        "features": "features",
        "classifier": config.classifier,
        "shots": config.shots,
    }
    for name, features in json.loads(storage.read(output.key("features.json"))).items():
        own = [row for row in output.meta["fewshot"] if row["data"] == name]
        rows = [row for row in own if all(row.get(key, value) == value for key, value in wanted.items())]
        if not rows:
            raise UserError(
                f"fewshot: '{stage}' has no accuracy of shots={config.shots}, class_set={config.class_set}, "
                f"classifier={config.classifier}; it has {_told(own)}"
            )
        yield Measured(
            stage=stage, model=features["model"], data=features["dataset"], accuracy=float(rows[0]["accuracy"])
        )


def _told(rows: Sequence[Mapping[str, Any]]) -> str:
    """The values that there are, by field."""
    fields = ("shots", "class_set", "classifier")
    known = {field: dict.fromkeys(str(row[field]) for row in rows if field in row) for field in fields}
    return "; ".join(f"{field} {', '.join(values)}" for field, values in known.items())


def _means(field: str, found: Sequence[Measured], models: Sequence[Pretrained]) -> Accuracies:
    """Each model's accuracy: where it was measured on several data sets, the mean over them, as in the paper."""
    stages = {model.digest: model.stage for model in models}
    by_model: dict[str, dict[str, Measured]] = {}
    for own in found:
        if own.model not in stages:
            raise UserError(
                f"{field}: '{own.stage}' is of a model that is not among pretrained={list(stages.values())}: name its "
                f"stage there too, or take '{own.stage}' away"
            )
        before = by_model.setdefault(own.model, {}).setdefault(own.data, own)
        if before is not own:
            raise UserError(
                f"{field}: '{before.stage}' and '{own.stage}' are both of the model from '{stages[own.model]}', on the "
                "same data set: take one away"
            )
    _check_data(field, by_model)
    return {model: sum(own[data].accuracy for data in sorted(own)) / len(own) for model, own in by_model.items()}


def _check_data(field: str, by_model: Mapping[str, Mapping[str, Measured]]) -> None:
    """Raises UserError where models were measured on different data sets: their accuracies say nothing together."""
    first, *others = by_model.values() if by_model else [{}]
    for other in others:
        if other.keys() != first.keys():
            one, two = (sorted({measured.stage for measured in own.values()}) for own in (first, other))
            raise UserError(
                f"{field}: {', '.join(one)} and {', '.join(two)} have measured on different data sets: evaluate all "
                "models on the same ones"
            )
