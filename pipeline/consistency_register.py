"""What cannot become a version of a registered model, or decide who is its champion, found before anything runs."""

from __future__ import annotations

import difflib
import re

from cluster.errors import UserError
from pipeline.consistency import Stages
from pipeline.identity import references
from pipeline.register_config import ChampionConfig, RegisterConfig
from stages.config import StageConfig
from stages.evaluate.config import EvaluateConfig
from stages.fewshot.config import FewshotConfig
from stages.pretrain.config import PretrainConfig
from stages.training.config import TrainingConfig


def check_registration(stages: Stages, registration: RegisterConfig) -> None:
    """Raise UserError where the workflow has no such model, or no such figure."""
    makers = [name for name, config in stages.items() if config.output == "model"]
    if registration.stage not in stages:
        near = difflib.get_close_matches(registration.stage, makers, n=1)
        meant = f"; did you mean '{near[0]}'?" if near else ""
        expected = f"expected a stage that makes a model: {', '.join(makers) or 'there is none'}"
        raise UserError(f"register.from: got '{registration.stage}', {expected}{meant}")
    config = stages[registration.stage]
    if config.output != "model":
        raise UserError(
            f"register.from: stage '{registration.stage}' makes no model, expected one of {', '.join(makers) or 'none'}"
        )
    if isinstance(config, PretrainConfig) and config.masked is not None:
        raise UserError(
            f"register.from: '{registration.stage}' learns from masked patches and has no classes: fine-tune it, and "
            "register what comes of that"
        )
    if registration.champion is not None:
        _check_champion(stages, registration.stage, registration.champion)


def _check_champion(stages: Stages, model: str, champion: ChampionConfig) -> None:
    key = f"register.champion.metric: got {champion.metric}"
    if champion.stage not in stages:
        raise UserError(f"{key}: there is no stage '{champion.stage}'; the stages are {', '.join(stages)}")
    family = _family(stages, model)
    measured = {champion.stage} if stages[champion.stage].output == "model" else _measured(stages, champion.stage)
    if not measured or not measured <= family:
        raise UserError(f"{key}: '{champion.stage}' measures nothing of the model from '{model}'")
    named, config = champion.metric.partition("/")[2], stages[champion.stage]
    known = _figures(config)
    if known and named not in known:
        raise UserError(f"{key}: the figures of '{champion.stage}' will be {', '.join(known)}")
    shots = re.fullmatch(r"\w+/(\d+)_shot\w*", named)
    if isinstance(config, FewshotConfig) and shots is not None and int(shots[1]) not in config.shots:
        raise UserError(f"{key}: the shots of '{champion.stage}' are {', '.join(map(str, config.shots))}")


def _figures(config: StageConfig) -> list[str]:
    """The figures of images that nobody trained on, where they follow from the file alone; else none."""
    if isinstance(config, TrainingConfig):
        return [f"{split}/{kind}" for split in config.evaluate_splits for kind in ("accuracy", "loss")]
    if isinstance(config, EvaluateConfig) and not config.splits:
        return [f"test/{kind}" for kind in ("accuracy", "accuracy_top5", "loss", "calibration_error")]
    return []


def _family(stages: Stages, name: str) -> set[str]:
    """A stage that makes a model, and those whose models it may have begun with."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        stage = waiting.pop()
        if stage not in found:
            found.add(stage)
            waiting += [before for before in references(stages[stage]).values() if stages[before].output == "model"]
    return found


def _measured(stages: Stages, name: str) -> set[str]:
    """The stages whose models another one looks at: directly, or else by what it reads."""
    read = references(stages[name]).values()
    models = {stage for stage in read if stages[stage].output == "model"}
    return models or {model for stage in read for model in _measured(stages, stage)}
