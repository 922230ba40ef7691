"""Contradictions between the stages of a workflow, found before anything runs."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.errors import UserError
from stages.choice.config import ChoiceConfig
from stages.config import StageConfig
from stages.fewshot.config import FewshotConfig
from stages.finetune.config import FinetuneConfig
from stages.ingest.config import IngestConfig
from stages.mixture.config import MixtureConfig
from stages.models.config import ModelConfig
from stages.pretrain.config import PretrainConfig
from stages.subset.config import SubsetConfig

Stages = Mapping[str, StageConfig]
SHAPE = ("width", "depth", "mlp_dim", "num_heads", "patch_size", "pool", "head")
"""Fields of a network in which it has to be equal to one whose weights it begins with, head and all."""


def check_stages(stages: Stages) -> None:
    """Raise UserError where a stage asks for what the stages that it refers to cannot give."""
    for name, config in stages.items():
        if isinstance(config, FinetuneConfig) and has_known_model(stages, config.model):
            trained_model(stages, name)
        elif isinstance(config, PretrainConfig) and config.init_from and has_known_model(stages, config.init_from):
            _check_start(name, config, trained_model(stages, config.init_from))
        elif isinstance(config, FewshotConfig) and has_known_model(stages, config.model):
            _check_fewshot(stages, name, config)


def trained_model(stages: Stages, name: str) -> ModelConfig:
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
    return model.model_copy(update={"head": "linear", "dropout": config.dropout})


def _check_start(name: str, config: PretrainConfig, source: ModelConfig) -> None:
    for field in SHAPE:
        own, theirs = getattr(config.model, field), getattr(source, field)
        if own != theirs:
            source_name = f"that of the model from '{config.init_from}'"
            raise UserError(f"stages.{name}.model.{field}: got {own}, expected {theirs}, {source_name}")


def has_known_model(stages: Stages, name: str) -> bool:
    """Whether the network that a stage makes, or is made by, follows from the workflow alone."""
    config = stages[name]
    if isinstance(config, ChoiceConfig):
        return all(has_known_model(stages, candidate) for candidate in config.models)
    return isinstance(config, PretrainConfig) or (
        isinstance(config, FinetuneConfig) and has_known_model(stages, config.model)
    )


def _check_fewshot(stages: Stages, name: str, config: FewshotConfig) -> None:
    source = stages[config.model]
    if not isinstance(source, PretrainConfig | FinetuneConfig):
        return
    if config.resolution not in (None, source.resolution):
        raise UserError(
            f"stages.{name}.resolution: got {config.resolution}, expected {source.resolution}, that of the model from "
            f"'{config.model}': fine-tune it to change it"
        )
    apart = [item for item in config.class_sets or () if item != "all"]
    if apart and (not isinstance(source, PretrainConfig) or _never_holds_out(stages, config.data)):
        raise UserError(
            f"stages.{name}.class_sets: got {', '.join(apart)}, expected 'all' alone: '{config.model}' and "
            f"'{config.data}' leave no class out of the training"
        )


def _never_holds_out(stages: Stages, name: str) -> bool:
    """Whether a stage's data set certainly has no held-out classes."""
    data = stages[name]
    if isinstance(data, SubsetConfig):
        return _never_holds_out(stages, data.data)
    if isinstance(data, MixtureConfig):
        return all(_never_holds_out(stages, one) for one in data.data)
    return isinstance(data, IngestConfig) and data.held_out_classes == 0
