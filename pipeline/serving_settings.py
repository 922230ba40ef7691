"""How a model's images are prepared and its logits read, as the stages say that trained or evaluated it. Light."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import Workflow
from pipeline.identity import references
from pipeline.reuse import Finished
from stages.choice.config import ChoiceConfig
from stages.config import StageConfig
from stages.data.config import EvaluationResize
from stages.evaluate.config import EvaluateConfig
from stages.training.config import TrainingConfig


def preprocessing(workflow: Workflow, done: Mapping[str, Finished], stage: str) -> EvaluationResize:
    """As the model's own training evaluates it; of a model from elsewhere, as the first `evaluate` stage of it does."""
    config = _maker(workflow, done, stage)
    if isinstance(config, TrainingConfig):
        return config.input.evaluation
    for other in workflow.stages.values():
        if isinstance(other, EvaluateConfig) and other.model == stage:
            return other.input.evaluation
    return EvaluationResize()


def training_loss(workflow: Workflow, done: Mapping[str, Finished], stage: str) -> str:
    """The loss that the model was trained with: `softmax` where nobody knows."""
    config = _maker(workflow, done, stage)
    return config.loss if isinstance(config, TrainingConfig) else "softmax"


def _maker(workflow: Workflow, done: Mapping[str, Finished], stage: str) -> StageConfig:
    """The stage that made the model, where `stage` has only chosen it."""
    config = workflow.stages[stage]
    if isinstance(config, ChoiceConfig):
        for target in references(config).values():
            if target in done and done[target].output.digest == done[stage].output.digest:
                return _maker(workflow, done, target)
    return config
