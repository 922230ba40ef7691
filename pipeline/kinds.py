"""The kinds of stages: those that ship, by name, and anybody's own, by where their config is imported from."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from cluster.errors import UserError, nearest
from pipeline.opaque import OpaqueConfig
from pipeline.record import builds, code_digest
from stages.analyze.config import AnalyzeConfig
from stages.choice.config import ChoiceConfig
from stages.config import StageConfig
from stages.evaluate.config import EvaluateConfig
from stages.features.config import FeaturesConfig
from stages.fewshot.config import FewshotConfig
from stages.finetune.config import FinetuneConfig
from stages.importing.config import ImportConfig
from stages.ingest.config import IngestConfig
from stages.mixture.config import MixtureConfig
from stages.pretrain.config import PretrainConfig
from stages.scaling.config import ScalingConfig
from stages.subset.config import SubsetConfig
from stages.summary.config import SummaryConfig

SHIPPED: tuple[type[StageConfig], ...] = (
    *(IngestConfig, MixtureConfig, SubsetConfig, PretrainConfig, FinetuneConfig, FewshotConfig, ChoiceConfig),
    *(ImportConfig, SummaryConfig, FeaturesConfig, EvaluateConfig, AnalyzeConfig, ScalingConfig),
)
KINDS: dict[str, type[StageConfig]] = {config.kind: config for config in SHIPPED}


def config_of(kind: str) -> type[StageConfig]:
    """The config class of a kind: one that ships, or `package.module:Class`. Raises UserError."""
    if kind in KINDS:
        return KINDS[kind]
    module, colon, name = kind.partition(":")
    if not colon:
        known = f"expected one of {', '.join(KINDS)}, or one's own as package.module:Config"
        raise UserError(f"got '{kind}', {known}{nearest(kind, KINDS)}")
    # As Python itself does for a script: what lies in the folder that one stands in can be imported.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        config = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UserError(f"got '{kind}', which cannot be imported: {type(error).__name__}: {error}") from error
    _check(kind, config)
    return config


def _check(kind: str, config: object) -> None:
    if not (inspect.isclass(config) and issubclass(config, StageConfig)):
        raise UserError(f"got '{kind}', which is no config of a stage: derive it from stages.config.StageConfig")
    missing = [name for name in ("kind", "version", "output") if not hasattr(config, name)]
    if missing:
        raise UserError(f"got '{kind}', whose class lacks {', '.join(missing)}: see docs/workflows.md")
    if config.kind in KINDS or not re.fullmatch(r"[a-z][a-z0-9_-]*", config.kind):
        raise UserError(
            f"got '{kind}', whose kind is '{config.kind}': expected a name of its own of small letters, digits, - and _"
        )


def kind_of(config: StageConfig) -> str:
    """What a workflow file calls the kind of this config."""
    if isinstance(config, OpaqueConfig):
        return config.called
    own = type(config)
    return own.kind if KINDS.get(own.kind) is own else f"{own.__module__}:{own.__qualname__}"


def own_code(configs: Iterable[StageConfig]) -> list[Path]:
    """The packages and modules of stages that do not ship and are not installed: a cluster has to be sent them.

    Those of stages that cannot be imported here are not among them. Raises UserError for a class that no other process
    can import.
    """
    found = set[Path]()
    for config in configs:
        found.update(_own_code(type(config)))
    return sorted(found)


def _own_code(config: type[StageConfig]) -> list[Path]:
    """The package or module of one that neither ships nor is installed."""
    if config is OpaqueConfig or KINDS.get(config.kind) is config or (file := _origin(config)) is None:
        return []
    path = file.parent if file.name == "__init__.py" else file
    return [] if {"site-packages", "dist-packages"} & set(path.parts) else [path]


def builds_for(config: StageConfig) -> dict[str, str]:
    """What computes a stage's bits: `builds`, and the code of a stage that does not ship (`own_code`)."""
    own = _own_code_digest(type(config))
    return {**builds(), **({"own_code": own} if own else {})}


@cache
def _own_code_digest(config: type[StageConfig]) -> str:
    try:
        modules = _own_code(config)
    except UserError:
        # Of a script that runs it itself; it has no module of which one could say that it is the same.
        return ""
    return code_digest(modules) if modules else ""


def _origin(config: type[StageConfig]) -> Path | None:
    """The file that a class's outermost package or module is imported from, or None where it has none."""
    name = config.__module__.partition(".")[0]
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:
        # A module that Python did not import: the script itself, or one that a notebook made.
        spec, name = None, "__main__"
    # `python -m` gives the script a module's origin; it is called so all the same.
    if name == "__main__":
        raise UserError(
            f"stage kind '{config.kind}': its class {config.__qualname__} is in {config.__module__}, which no other "
            "process can import: put it into a module of its own, and import it from there"
        )
    return Path(spec.origin) if spec is not None and spec.origin is not None else None
