"""What pretraining and fine-tuning have in common: length, optimizer, schedule, numerics, placement.

Field names and defaults follow the paper (Tables 3 and 4). Light: no torch here, so that `plan` answers
at once.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.errors import UserError
from stages.config import StageConfig, placement
from stages.data.config import DataConfig

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(StageConfig):
    """One training run. Exactly one of `epochs` and `updates` gives its length."""

    epochs: float | None = Field(None, gt=0, description="passes over the training splits")
    updates: int | None = Field(None, gt=0, description="optimizer steps, in place of epochs")
    global_batch: int = Field(128, gt=0, description="images per update, over all workers")

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Adam with decoupled decay, or SGD with momentum")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, on kernels alone, times the rate")
    betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.999), description="Adam's decay rates")
    epsilon: float = Field(1e-8, gt=0, description="Adam's epsilon")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    decay: Literal["cosine", "linear", "constant"] = Field("cosine", description="shape after the warm-up")
    warmup_updates: int = Field(0, ge=0, description="updates of linear warm-up")
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="warm-up as a part of the run, in place of updates")
    end_lr: float = Field(0.0, ge=0, description="learning rate that linear decay ends at")
    clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0 turns clipping off")
    loss: Literal["softmax", "sigmoid"] = Field("softmax", description="cross-entropy; sigmoid sums over classes")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="softmax only")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of forward and backward; masters are fp32")
    input: DataConfig = Field(default_factory=DataConfig, description="order of the samples and augmentation")

    workers: int = placement(
        1, "processes that train together; 0 trains in the runner's own process", rounding=True, ge=0
    )
    cpus_per_worker: float = placement(1, "CPU cores that each worker reserves", gt=0)
    gpus_per_worker: Literal[0, 1] = placement(0, "1 trains on GPUs, one for each worker; 0 on CPUs", rounding=True)
    threads: int = placement(1, "torch threads of each worker on a CPU", rounding=True, ge=1)
    micro_batch: int | None = placement(
        None, "images per forward pass and worker; all of its rows if absent", rounding=True, ge=1
    )
    zero_stage: Literal[0, 1, 2, 3] = placement(2, "DeepSpeed ZeRO stage", rounding=True)
    save_every: int = placement(100, "updates between checkpoints", ge=1)
    log_every: int = placement(10, "updates between metric points", ge=1)
    evaluate_every: int = placement(0, "updates between evaluations; 0 evaluates at the end alone", ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.updates is None):
            raise ValueError(
                f"give one of epochs and updates, got epochs={self.epochs} and updates={self.updates}: "
                "null takes one away"
            )
        if self.warmup_updates and self.warmup_fraction:
            raise ValueError(
                f"give one of warmup_updates and warmup_fraction, got warmup_updates={self.warmup_updates} and "
                f"warmup_fraction={self.warmup_fraction}: 0 takes one away"
            )
        if self.updates is not None:
            self.warmup(self.updates)
        ranks = max(1, self.workers)
        if self.global_batch % ranks:
            largest = max(n for n in range(1, ranks + 1) if self.global_batch % n == 0)
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of workers={self.workers}: try workers={largest}"
            )
        rows = self.global_batch // ranks
        if self.micro_batch is not None and rows % self.micro_batch:
            fitting = max(n for n in range(1, min(self.micro_batch, rows) + 1) if rows % n == 0)
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of micro_batch={self.micro_batch} × "
                f"workers={self.workers}: try micro_batch={fitting}"
            )
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(f"zero_stage=0 keeps no fp32 masters for precision={self.precision}: use zero_stage=1")
        if self.optimizer == "sgd" and self.weight_decay:
            raise ValueError(f"weight_decay={self.weight_decay} is for adamw; optimizer is sgd: set it to 0")
        if self.loss == "sigmoid" and self.label_smoothing:
            raise ValueError(f"label_smoothing={self.label_smoothing} is for the softmax loss; loss is sigmoid")
        return self

    def total_updates(self, images: int) -> int:
        """Optimizer steps of the whole run over a training set of `images` samples.

        Raises UserError where the warm-up is longer than the run.
        """
        total = self.updates or max(1, round((self.epochs or 0) * images / self.global_batch))
        self.warmup(total)
        return total

    def warmup(self, total: int) -> int:
        """Updates of the warm-up in a run of `total` updates. Raises UserError where it is longer than the run."""
        if self.warmup_updates >= total:
            raise UserError(f"warmup_updates={self.warmup_updates} is not below the run's {total} updates: lower it")
        return self.warmup_updates or int(self.warmup_fraction * total)
