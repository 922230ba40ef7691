"""What figures over several runs ask for and will not get, as far as the workflow alone tells.

Which evaluation is of which model is found by digest when they are there; here, by what refers to what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.errors import UserError
from stages.choice.config import ChoiceConfig
from stages.config import StageConfig
from stages.features.config import FeaturesConfig
from stages.fewshot.config import FewshotConfig
from stages.finetune.config import FinetuneConfig
from stages.importing.config import ImportConfig
from stages.pretrain.config import PretrainConfig
from stages.scaling.config import ScalingConfig

Stages = Mapping[str, StageConfig]
Evaluated = tuple[str, str]
"""Stages of a model and of the data set that it is measured on."""


def check_scaling(stages: Stages, name: str, config: ScalingConfig) -> None:
    """Raise UserError where a model will have no accuracy, or an accuracy no model."""
    makers = {stage: _makers(stages, stage) for stage in config.pretrained}
    for stage, own in makers.items():
        if any(isinstance(stages[maker], FinetuneConfig) for maker in own):
            raise UserError(
                f"stages.{name}.pretrained: '{stage}' is fine-tuned: name it in finetuned, and here the stage that it "
                "goes on from"
            )
    known = {
        "finetuned": {stage: _finetuned(stages, name, stage, config) for stage in config.finetuned},
        "fewshot": {stage: _fewshot(stages, name, stage, config) for stage in config.fewshot},
    }
    for field, found in known.items():
        _check_models(stages, f"stages.{name}.{field}", found, makers)
    _check_all_evaluated(stages, name, makers, [pairs for found in known.values() for pairs in found.values()])


def _makers(stages: Stages, name: str) -> set[str]:
    """The stages one of which makes the model that this one hands on: of a choice, all that it chooses from."""
    config = stages[name]
    if isinstance(config, ChoiceConfig):
        return set().union(*(_makers(stages, candidate) for candidate in config.models))
    return {name}


def _finetuned(stages: Stages, name: str, stage: str, config: ScalingConfig) -> list[Evaluated] | None:
    """What a model may have begun with; None where that cannot be known here."""
    found: list[Evaluated] = []
    for maker in sorted(_makers(stages, stage)):
        own = stages[maker]
        if isinstance(own, ImportConfig) or (isinstance(own, PretrainConfig) and own.init_from is None):
            raise UserError(f"stages.{name}.finetuned: '{stage}' fine-tunes no model: name stages that do")
        if isinstance(own, FinetuneConfig):
            _check_metric(name, maker, own, config.metric)
            found.append((own.model, own.data))
        elif isinstance(own, PretrainConfig) and own.init_from is not None:
            found.append((own.init_from, own.data))
        else:
            return None
    return found


def _check_metric(name: str, stage: str, own: FinetuneConfig, metric: str) -> None:
    splits = [split for split in own.evaluate_splits if split not in own.train_splits]
    figures = [f"{raw}{split}/accuracy" for raw in ("", "raw/")[: 2 if own.polyak_decay else 1] for split in splits]
    if metric not in figures:
        raise UserError(
            f"stages.{name}.metric: got {metric}, and the accuracies of '{stage}' will be "
            f"{', '.join(figures) or 'none'}: take one of them, or change evaluate_splits"
        )


def _fewshot(stages: Stages, name: str, stage: str, config: ScalingConfig) -> list[Evaluated] | None:
    own = stages[stage]
    if not isinstance(own, FewshotConfig):
        return None
    for field, wanted, there in (
        ("shots", config.shots, own.shots),
        ("classifier", config.classifier, own.classifiers),
        ("class_set", config.class_set, own.class_sets or (config.class_set,)),
    ):
        if wanted not in there:
            raise UserError(f"stages.{name}.{field}: got {wanted}, and '{stage}' has {', '.join(map(str, there))}")
    sources = [stages[source] for source in own.features] or [own]
    found: list[Evaluated] = []
    for source in sources:
        if not isinstance(source, FewshotConfig | FeaturesConfig) or source.model is None or source.data is None:
            return None
        found.append((source.model, source.data))
    return found


def _check_models(
    stages: Stages, key: str, found: Mapping[str, Sequence[Evaluated] | None], makers: Mapping[str, set[str]]
) -> None:
    """Each of a pretrained model, none twice."""
    possible = set[str]().union(*makers.values())
    seen: dict[Evaluated, str] = {}
    for stage, pairs in found.items():
        for model, data in pairs or ():
            if not _makers(stages, model) & possible:
                raise UserError(
                    f"{key}: '{stage}' is of the model from '{model}', which is not among pretrained: name it there "
                    f"too, or take '{stage}' away"
                )
            before = seen.setdefault((model, data), stage)
            if before != stage:
                raise UserError(
                    f"{key}: '{before}' and '{stage}' are both of the model from '{model}' on '{data}': take one away"
                )


def _check_all_evaluated(
    stages: Stages, name: str, makers: Mapping[str, set[str]], found: Sequence[Sequence[Evaluated] | None]
) -> None:
    evaluated = set[str]()
    for pairs in found:
        if pairs is None:
            return
        evaluated = evaluated.union(*(_makers(stages, model) for model, _ in pairs))
    for stage, own in makers.items():
        if not own & evaluated:
            raise UserError(
                f"stages.{name}.pretrained: nothing in finetuned or fewshot evaluates '{stage}': name a stage there "
                "that does, or take it away"
            )
