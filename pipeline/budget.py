"""Which model to train, and for how long, when the compute is given: `plan --budget 100-exaFLOP`.

A larger model sees fewer images for the same compute. Choices are ranked by the error on ImageNet that a law in both
leads to expect, which is fitted to what the paper's Table 6 reports of its Vision Transformers. Of masked patch
prediction the paper reports one model alone: there the same law gives the order, and errors are marked as carried on.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.errors import UserError
from cluster.shapes import ClusterShape
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.estimate import Estimate, Terms, estimate
from pipeline.plan import Question, plan
from stages.models.config import VARIANTS, AnyModel, ModelConfig
from stages.models.masked_config import MaskedConfig
from stages.models.resnet_config import BitConfig
from stages.pretrain.config import PretrainConfig
from stages.training.memory import Network

MODELS = (
    *(("Ti", 16), ("S", 32), ("S", 16), ("B", 32), ("B", 16), ("L", 32), ("L", 16)),
    *(("H", 14), ("g", 14), ("G", 14)),
)
"""Variants and patch sizes: the paper's, and those of its sequels."""
TABLE_6 = (
    ("B", 32, 7, 80.73),
    ("B", 16, 7, 84.15),
    ("L", 32, 7, 84.37),
    ("L", 16, 7, 86.30),
    ("L", 16, 14, 87.12),
    ("H", 14, 14, 88.08),
)
"""Variant, patch size, epochs of JFT-300M, and percent correct on ImageNet after fine-tuning."""
JFT_IMAGES, JFT_CLASSES = 303e6, 18_291
MODEL_FACTOR, MODEL_POWER = 15.47, 0.417
DATA_FACTOR, DATA_POWER = 11.91, 0.114
"""Least squares of the logarithm of the error over TABLE_6; within 0.25 points of each of its rows."""
SUPPORTED_MACS, SUPPORTED_IMAGES = (4.4e9, 167.4e9), (2.1e9, 4.3e9)
"""What the rows of TABLE_6 span; outside, the law is carried on."""
UNITS = {"peta": 1e-3, "exa": 1.0, "zetta": 1e3}
BUDGET = re.compile(rf"([0-9]*\.?[0-9]+)[- ]?({'|'.join(UNITS)})-?flops?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A model and the length that a budget buys of it."""

    variant: str
    patch_size: int
    parameters: int
    macs: int
    """Multiply-adds of an image's forward pass."""
    updates: int
    images: int
    epochs: float | None
    """Passes over the data set, where its size is known."""
    exaflops: float
    error: float
    """Percent wrong on ImageNet, by the law, after pretraining on data that does not repeat, and fine-tuning."""
    extrapolated: bool
    """Whether that lies outside of what the law was fitted to. Of what learns without labels, all of it does."""
    masked: bool
    """Whether masked patches are predicted, and no classes."""
    changes: tuple[str, ...]
    """What makes the model of the workflow's stage this one, such as `model.variant=L`."""
    estimate: Estimate | None

    @property
    def name(self) -> str:
        return f"ViT-{self.variant}/{self.patch_size}"

    def overrides(self, stage: str) -> list[str]:
        """What makes a workflow's stage this one."""
        changes = [*self.changes, "epochs=null", f"updates={self.updates}"]
        return [f"{stage}.{change}" for change in changes]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        document = {**asdict(self), "name": self.name}
        return {**document, "estimate": self.estimate.document() if self.estimate else None}


def parse_budget(text: str) -> float:
    """ExaFLOPs of `100-exaFLOP`, `0.5zettaFLOPs`. Raises UserError."""
    found = BUDGET.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise UserError(f"--budget {text}: expected operations in all, such as 100-exaFLOP or 2-zettaFLOP")
    return float(found[1]) * UNITS[found[2].lower()]


def expected_error(macs: float, images: float) -> float:
    """Percent wrong on ImageNet: 15.47 M^-0.417 + 11.91 D^-0.114, M in 10⁹ multiply-adds of an image, D in 10⁹ images.

    Fitted to the paper's Table 6: fine-tuned at a higher resolution, after pretraining on JFT-300M, which its images
    passed 7 and 14 times.
    """
    error = MODEL_FACTOR * (macs / 1e9) ** -MODEL_POWER + DATA_FACTOR * (images / 1e9) ** -DATA_POWER
    return min(100.0, error)


def choices(
    config: PretrainConfig,
    exaflops: float,
    *,
    classes: int = JFT_CLASSES,
    images: int | None = None,
    shape: ClusterShape | None = None,
    terms: Terms | None = None,
) -> list[Choice]:
    """What a budget buys of each of the paper's models with a stage's other settings, the most promising first.

    `images` are those of the data set, `classes` those that are learned where any are. Left out is what would end
    before its warm-up, and what has too few patches to predict some from others. Raises UserError where nothing is
    left.
    """
    found = [
        _choice(config, variant, patch_size, exaflops, classes, images, shape, terms)
        for variant, patch_size in MODELS
        if config.resolution % patch_size == 0
    ]
    kept = [choice for choice in found if choice is not None]
    if not kept:
        raise UserError(
            f"--budget: {exaflops:g} exaFLOPs are too few for any of the paper's models at global_batch="
            f"{config.global_batch:,} and resolution={config.resolution}: raise it, or lower the warm-up"
        )
    return sorted(kept, key=lambda choice: choice.error)


def budgeted(
    storage: Storage, workflow: Workflow, exaflops: float, question: Question | None = None
) -> dict[str, list[Choice]]:
    """The choices for each pretraining that is no branch, by stage. Raises UserError for none."""
    question = question or Question()
    found: dict[str, list[Choice]] = {}
    for stage in plan(storage, workflow, replace(question, shape=None)):
        config = workflow.stages[stage.name]
        if not isinstance(config, PretrainConfig) or config.trunk:
            continue
        classes = stage.work.get("classes", question.classes or JFT_CLASSES)
        found[stage.name] = choices(
            config, exaflops, classes=int(classes), images=stage.train_images or question.images, shape=question.shape,
            terms=question.terms,
        )  # fmt: skip
    if not found:
        raise UserError(f"--budget: {workflow.name} has no pretrain stage, branches aside")
    return found


def _choice(
    config: PretrainConfig,
    variant: str,
    patch_size: int,
    exaflops: float,
    classes: int,
    images: int | None,
    shape: ClusterShape | None,
    terms: Terms | None,
) -> Choice | None:
    model = _other_model(config.model, variant, patch_size)
    if config.masked is not None and not _can_be_masked(config.masked, model, config.resolution):
        return None
    learned = 0 if config.masked is not None else classes
    network = Network(model=model, resolution=config.resolution, num_classes=learned, masked=config.masked)
    macs = network.macs
    updates = int(exaflops / network.exaflops(config.global_batch))
    if updates <= config.warmup_updates:
        return None
    seen = updates * config.global_batch
    cost = None
    if shape is not None:
        cost = estimate(config.model_copy(update={"model": model}), network, updates, shape, terms)
    supported = SUPPORTED_MACS[0] <= macs <= SUPPORTED_MACS[1] and SUPPORTED_IMAGES[0] <= seen <= SUPPORTED_IMAGES[1]
    return Choice(
        variant=variant,
        patch_size=patch_size,
        parameters=network.parameters,
        macs=macs,
        updates=updates,
        images=seen,
        epochs=None if images is None else seen / images,
        exaflops=network.exaflops(seen),
        error=expected_error(macs, seen),
        extrapolated=not supported or config.masked is not None,
        masked=config.masked is not None,
        changes=tuple(_changes(config.model, variant, patch_size)),
        estimate=cost,
    )


def _can_be_masked(masked: MaskedConfig, model: ModelConfig, resolution: int) -> bool:
    try:
        masked.check(model, resolution)
    except ValueError:
        return False
    return True


def _other_model(own: AnyModel, variant: str, patch_size: int) -> ModelConfig:
    """A Vision Transformer with a stage's other settings: its whole images cut into patches, its head's first bias."""
    kept = {"head_bias": own.head_bias} if isinstance(own, BitConfig) else own.model_dump(exclude={"stem"})
    return ModelConfig.model_validate(kept | {"variant": variant, "patch_size": patch_size} | VARIANTS[variant])


def _changes(own: AnyModel, variant: str, patch_size: int) -> list[str]:
    """What makes a stage's model that one. Where it is a variant by its name alone, another name is enough."""
    if isinstance(own, BitConfig):
        return [f"model={variant}/{patch_size}", *([f"model.head_bias={own.head_bias:g}"] if own.head_bias else [])]
    by_name = own.variant and VARIANTS[own.variant] == {name: getattr(own, name) for name in VARIANTS[own.variant]}
    shape = [] if by_name else [f"{name}={value}" for name, value in VARIANTS[variant].items()]
    whole = [] if own.stem is None else ["stem=null"]
    return [f"model.{change}" for change in (f"variant={variant}", *shape, *whole, f"patch_size={patch_size}")]
