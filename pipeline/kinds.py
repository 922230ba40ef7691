"""The kinds of stages that ship, by name. One table; each config names its own function."""

from __future__ import annotations

from stages.config import StageConfig
from stages.fewshot.config import FewshotConfig
from stages.finetune.config import FinetuneConfig
from stages.ingest.config import IngestConfig
from stages.mixture.config import MixtureConfig
from stages.pretrain.config import PretrainConfig
from stages.subset.config import SubsetConfig

KINDS: dict[str, type[StageConfig]] = {
    config.kind: config
    for config in (IngestConfig, MixtureConfig, SubsetConfig, PretrainConfig, FinetuneConfig, FewshotConfig)
}
