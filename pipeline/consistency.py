"""Contradictions between the stages of a workflow, found before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from cluster.errors import UserError
from pipeline.consistency_scaling import check_scaling
from stages.analyze.config import AnalyzeConfig, no_attention
from stages.choice.config import ChoiceConfig, other_metric
from stages.config import StageConfig
from stages.evaluate.config import EvaluateConfig
from stages.features.config import FeaturesConfig
from stages.fewshot.config import FewshotConfig
from stages.finetune.config import FinetuneConfig
from stages.ingest.config import IngestConfig
from stages.mixture.config import MixtureConfig
from stages.models.config import AnyModel
from stages.models.resnet_config import BitConfig
from stages.pretrain.config import PretrainConfig
from stages.scaling.config import ScalingConfig
from stages.subset.config import SubsetConfig
from stages.training.config import TrainingConfig

Stages = Mapping[str, StageConfig]
SHAPE = (
    *("width", "depth", "mlp_dim", "num_heads", "patch_size", "stem", "position", "position_at", "pool", "head"),
    *("blocks", "width_factor"),
)
"""Fields of a network in which it has to be equal to one whose weights it begins with, head and all. Either family
has some of them."""

SHARED = (
    *("data", "model", "resolution", "global_batch", "input", "seed", "optimizer", "precision", "polyak_decay"),
    *("updates", "epochs", "objective"),
)
"""Fields in which a branch has to be as its trunk."""


def check_stages(stages: Stages) -> None:
    """Raise UserError where a stage asks for what the stages that it refers to cannot give."""
    for name, config in stages.items():
        if isinstance(config, FinetuneConfig) and has_known_model(stages, config.model):
            trained_model(stages, name)
        elif isinstance(config, PretrainConfig) and config.init_from and has_known_model(stages, config.init_from):
            _check_start(name, config, trained_model(stages, config.init_from))
        elif isinstance(config, PretrainConfig) and config.trunk:
            _check_branch(name, config, stages[config.trunk])
        elif isinstance(config, FewshotConfig | FeaturesConfig):
            _check_frozen(stages, name, config)
        elif isinstance(config, EvaluateConfig):
            _check_has_classes(stages, name, config.model)
        elif isinstance(config, AnalyzeConfig) and has_known_model(stages, config.model):
            _check_attention(name, config, trained_model(stages, config.model))
        elif isinstance(config, ChoiceConfig):
            _check_choice(stages, name, config)
        elif isinstance(config, ScalingConfig):
            check_scaling(stages, name, config)
        if isinstance(config, PretrainConfig) and config.fewshot is not None:
            _check_on_the_way(stages, name, config)
        if isinstance(config, TrainingConfig) and config.lr_from:
            _check_rate(name, config.lr_from, stages)


def told_at_once(stages: Stages) -> list[str]:
    """What is no contradiction, and still worth a look before a workflow runs."""
    found = {name: other_batch(config) for name, config in stages.items() if isinstance(config, TrainingConfig)}
    return [f"{name}: {line}" for name, line in found.items() if line]


def other_batch(config: TrainingConfig) -> str:
    """What a global batch that is not the one the learning rate is for makes of it; empty where it is that one."""
    if config.lr_from or config.lr_batch in (None, config.global_batch):
        return ""
    at = f"global_batch={config.global_batch:,}, and lr={config.lr:g} is for {config.lr_batch:,}"
    if config.lr_scale != "none":
        return f"{at}: lr_scale={config.lr_scale} makes it {config.peak_lr:.3g}"
    rules = " and ".join(f"{rule} makes it {config.scaled_lr(rule):.3g}" for rule in ("linear", "sqrt"))
    return f"{at}: with lr_scale, {rules}"


def trained_model(stages: Stages, name: str) -> AnyModel:
    """The network that a training stage makes. Raises UserError where its resolution does not suit it."""
    config = stages[name]
    if isinstance(config, PretrainConfig):
        return config.model
    if isinstance(config, ChoiceConfig):
        # Whichever it will be: what a sweep varies is seldom the network.
        return trained_model(stages, config.models[0])
    assert isinstance(config, FinetuneConfig)
    model = trained_model(stages, config.model)
    try:
        model.grid(config.resolution)
    except UserError as error:
        raise UserError(f"stages.{name}: {error} (patch_size is that of '{config.model}')") from error
    try:
        return model.for_finetuning(config.dropout, config.stochastic_depth)
    except UserError as error:
        raise UserError(f"stages.{name}.{error} ('{config.model}' makes one)") from error


def _check_start(name: str, config: PretrainConfig, source: AnyModel) -> None:
    source_name = f"that of the model from '{config.init_from}'"
    if isinstance(config.model, BitConfig) != isinstance(source, BitConfig):
        raise UserError(f"stages.{name}.model: got {config.model.title}, expected {source.title}, {source_name}")
    for field in SHAPE:
        if not hasattr(source, field):
            continue
        own, theirs = (_told(getattr(model, field)) for model in (config.model, source))
        if own != theirs:
            raise UserError(f"stages.{name}.model.{field}: got {own}, expected {theirs}, {source_name}")


def _check_attention(name: str, config: AnalyzeConfig, model: AnyModel) -> None:
    if isinstance(model, BitConfig):
        raise UserError(f"stages.{name}.from: {no_attention(model.title, config.model)}")


def _check_rate(name: str, source: str, stages: Stages) -> None:
    """The models that a rate is taken from have to be trained here: of others none is known."""
    config = stages[source]
    if isinstance(config, ChoiceConfig):
        for candidate in config.models:
            _check_rate(name, candidate, stages)
    elif not isinstance(config, TrainingConfig):
        raise UserError(f"stages.{name}.lr_from: '{source}' trains nothing, so it has no lr: give lr in its place")


def _told(value: Any) -> Any:
    """A field's value as people write it."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _check_branch(name: str, config: PretrainConfig, trunk: StageConfig) -> None:
    """A branch sees the samples that its trunk would have seen, with the same network and optimizer."""
    if not isinstance(trunk, PretrainConfig):
        raise UserError(f"stages.{name}.trunk: '{config.trunk}' is no pretrain stage: its checkpoints are of another")
    for field in SHARED:
        own, theirs = getattr(config, field), getattr(trunk, field)
        if own != theirs:
            raise UserError(f"stages.{name}.{field}: got {own}, expected {theirs}, that of its trunk '{config.trunk}'")
    at = config.branch_at or 0
    if at != trunk.updates and (not trunk.keep_every or at % trunk.keep_every):
        raise UserError(
            f"stages.{name}: '{config.trunk}' keeps no checkpoint of update {at:,}, at which this one branches off: "
            f"set its keep_every, now {trunk.keep_every}, to {at} or a divisor of it"
        )


def _check_has_classes(stages: Stages, name: str, source: str) -> None:
    config = stages[source]
    if isinstance(config, PretrainConfig) and config.masked is not None:
        raise UserError(f"stages.{name}.from: '{source}' learns from masked patches and has no classes: fine-tune it")


def _check_choice(stages: Stages, name: str, config: ChoiceConfig) -> None:
    """A choice is made after hours of training: what it will lack is told before."""
    for candidate in config.models:
        own = stages[candidate]
        # Of a stage of somebody's own nobody knows what it measures.
        if type(own) not in (PretrainConfig, FinetuneConfig):
            continue
        figures = _validated(own)
        if not figures:
            raise UserError(
                f"stages.{name}.metric: '{candidate}' is not evaluated on the validation split, by which is chosen: "
                "name it in evaluate_splits, and not in train_splits"
            )
        if config.metric not in figures:
            raise UserError(
                f"stages.{name}.metric: got {config.metric}, and the figures of '{candidate}' will be "
                f"{', '.join(figures)}: {other_metric(figures)}"
            )


def _validated(config: StageConfig) -> list[str]:
    """Figures of the validation split that a training stage ends with, where its data set has one."""
    assert isinstance(config, TrainingConfig)
    trained = isinstance(config, FinetuneConfig) and "validation" in config.train_splits
    if trained or "validation" not in config.evaluate_splits:
        return []
    has_accuracy = not isinstance(config, PretrainConfig) or config.masked is None or config.masked.has_classes
    kinds = ["loss", "accuracy"] if has_accuracy else ["loss"]
    return [f"{raw}validation/{kind}" for raw in ("", "raw/")[: 2 if config.polyak_decay else 1] for kind in kinds]


def has_known_model(stages: Stages, name: str) -> bool:
    """Whether the network that a stage makes, or is made by, follows from the workflow alone."""
    config = stages[name]
    if isinstance(config, ChoiceConfig):
        return all(has_known_model(stages, candidate) for candidate in config.models)
    return isinstance(config, PretrainConfig) or (
        isinstance(config, FinetuneConfig) and has_known_model(stages, config.model)
    )


def _check_frozen(stages: Stages, name: str, config: FewshotConfig | FeaturesConfig) -> None:
    if config.data is not None and config.model is not None and has_known_model(stages, config.model):
        _check_resolution(name, config, stages[config.model])
    if isinstance(config, FeaturesConfig):
        return
    for source in [stages[stage] for stage in config.features] or [config]:
        # Those of features of another kind, that cannot be known here, are looked at when they are there.
        if isinstance(source, FewshotConfig | FeaturesConfig):
            _check_class_sets(stages, name, config, source)


def _check_resolution(name: str, config: FewshotConfig | FeaturesConfig, source: StageConfig) -> None:
    if not isinstance(source, PretrainConfig | FinetuneConfig):
        return
    if config.resolution not in (None, source.resolution):
        raise UserError(
            f"stages.{name}.resolution: got {config.resolution}, expected {source.resolution}, that of the model from "
            f"'{config.model}': fine-tune it to change it"
        )


def _check_class_sets(stages: Stages, name: str, config: FewshotConfig, source: FewshotConfig | FeaturesConfig) -> None:
    """`source` says which data set and which model: the stage itself, or one that it takes features from."""
    if source.data is None or source.model is None or not has_known_model(stages, source.model):
        return
    model = stages[source.model]
    if not isinstance(model, PretrainConfig | FinetuneConfig):
        return
    apart = [item for item in config.class_sets or () if item != "all"]
    if apart and (not isinstance(model, PretrainConfig) or _never_holds_out(stages, source.data)):
        raise UserError(
            f"stages.{name}.class_sets: got {', '.join(apart)}, expected 'all' alone: '{source.model}' and "
            f"'{source.data}' leave no class out of the training"
        )


def _check_on_the_way(stages: Stages, name: str, config: PretrainConfig) -> None:
    """The sets of classes that are told apart while a stage trains."""
    assert config.fewshot is not None
    apart = [item for item in config.fewshot.class_sets or () if item != "all"]
    if not apart:
        return
    key = f"stages.{name}.fewshot.class_sets: got {', '.join(apart)}, expected 'all' alone"
    if config.fewshot_data not in (None, config.data):
        raise UserError(f"{key}: '{config.fewshot_data}' is not the data set that is trained on")
    if _never_holds_out(stages, config.data):
        raise UserError(f"{key}: '{config.data}' leaves no class out of the training")


def _never_holds_out(stages: Stages, name: str) -> bool:
    """Whether a stage's data set certainly has no held-out classes."""
    data = stages[name]
    if isinstance(data, SubsetConfig):
        return _never_holds_out(stages, data.data)
    if isinstance(data, MixtureConfig):
        return all(_never_holds_out(stages, one) for one in data.data)
    return isinstance(data, IngestConfig) and data.held_out_classes == 0
