"""What pretraining and fine-tuning have in common: length, optimizer, schedule, numerics, placement.

Field names and defaults follow the paper (Tables 3 and 4). Light: no torch here, so that `plan` answers
at once.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cluster.errors import UserError
from stages.config import Config, StageConfig, added, only_beside, only_with, placement, reference
from stages.data.config import DataConfig

if TYPE_CHECKING:
    from stages.context import Output

DecayRate = Annotated[float, Field(ge=0, lt=1)]
PLAIN = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
"""What Ray allows as the value of a node's label."""


def _labels(given: object) -> object:
    """`key=value`, or several with commas in between, as a mapping. Raises ValueError."""
    if not isinstance(given, str):
        return given
    pairs = [pair.strip().partition("=") for pair in given.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise ValueError(f"got '{given}', expected key=value, or a mapping of keys to values")
    return {key: value for key, _, value in pairs}


def _ratio(given: object) -> object:
    """`30/90` as a number. Raises ValueError."""
    if not isinstance(given, str):
        return given
    try:
        return float(Fraction(given))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"got '{given}', expected a number or a fraction such as 30/90") from error


Ratio = Annotated[float, Field(gt=0), BeforeValidator(_ratio, json_schema_input_type=float | str)]

Labels = Annotated[
    dict[str, Annotated[str, Field(pattern=f"^{PLAIN}$")]],
    BeforeValidator(_labels, json_schema_input_type=dict[str, str] | str),
]


class GuardConfig(Config):
    """What is done about losses and gradients that are no numbers, and about losses that jump.

    Training goes back to the newest checkpoint and leaves the samples of that update out.
    """

    max_rollbacks: int = placement(3, "how often training goes back before it is given up", ge=0)
    spike: float = Field(
        default=0.0, ge=0, description="a loss this many times the recent ones' median is a spike; 0 looks for none"
    )
    recent: int = Field(
        default=100,
        ge=2,
        description="updates whose losses are recent; none is a spike before",
        json_schema_extra=only_beside("spike"),
    )
    skip_batches: int = Field(default=1, ge=1, description="global batches to leave out, from the offending one on")


class TrainingConfig(StageConfig):
    """One training run. Exactly one of `epochs` and `updates` gives its length."""

    epochs: float | None = Field(None, gt=0, description="passes over the training splits")
    updates: int | None = Field(None, gt=0, description="optimizer steps, in place of epochs")
    global_batch: int = Field(128, gt=0, description="images per update, over all workers")

    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="Adam or SGD with momentum, both with decoupled decay"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    lr_from: str | None = reference(
        "model", "stage, such as a sweep, whose model's peak learning rate is this one's", default=None
    )
    lr_batch: int | None = Field(None, gt=0, description="global batch that lr was chosen for, where that is known")
    lr_scale: Literal["none", "linear", "sqrt"] = Field(
        "none", description="how lr follows a global_batch that is not lr_batch: not, in proportion, by the square root"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, on kernels alone, times the rate")
    head_weight_decay: float | None = added(
        None, "that of the head's kernels, where it is another; big_vision's ViT-g has a hundred times as much", ge=0
    )
    betas: tuple[DecayRate, DecayRate] = Field(
        (0.9, 0.999), description="Adam's decay rates", json_schema_extra=only_with(optimizer="adamw")
    )
    epsilon: float = Field(1e-8, gt=0, description="Adam's epsilon", json_schema_extra=only_with(optimizer="adamw"))
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum", json_schema_extra=only_with(optimizer="sgd"))
    decay: Literal["cosine", "linear", "constant", "rsqrt", "steps"] = Field(
        "cosine",
        description="shape after the warm-up; rsqrt is the reciprocal square root, which knows of no end; steps is "
        "constant between decay_at",
    )
    decay_at: tuple[Ratio, ...] = added(
        (), "of steps: where the rate falls, as parts of the run (0.5, 30/90) or as the updates made until then"
    )
    decay_factor: float = added(
        0.1, "of steps: what each of them multiplies the rate by", marks=only_with(decay="steps"), gt=0, lt=1
    )
    timescale: int = added(
        10_000, "of rsqrt: updates in which the rate falls to 1/√2 of its peak", marks=only_with(decay="rsqrt"), gt=0
    )
    shift: int = added(
        0,
        "of rsqrt: updates that the curve is ahead, so that the peak is below lr",
        marks=only_with(decay="rsqrt"),
        ge=0,
    )
    cooldown_updates: int = added(
        0, "updates at the end in which the rate falls to end_lr in a straight line, whatever the shape", ge=0
    )
    warmup_updates: int = Field(0, ge=0, description="updates of linear warm-up")
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="warm-up as a part of the run, in place of updates")
    end_lr: float = Field(0.0, ge=0, description="learning rate that linear decay, or a cooldown, ends at")
    clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0 turns clipping off")
    loss: Literal["softmax", "sigmoid"] = Field("softmax", description="cross-entropy; sigmoid sums over classes")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="softmax only")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of forward and backward; masters are fp32; fp16 scales the loss, and needs GPUs"
    )
    polyak_decay: DecayRate = Field(
        0.0, description="decay of the weights' moving average, the paper's is 0.9999; 0 keeps none"
    )
    guards: GuardConfig = Field(default_factory=GuardConfig, description="losses that are no numbers, or jump")
    input: DataConfig = Field(default_factory=DataConfig, description="order of the samples and augmentation")

    workers: int | tuple[int, int] = placement(
        1,
        "processes that train together, or the fewest and the most; without a cluster it is one, whatever this says",
        rounding=True,
    )
    cpus_per_worker: float = placement(1, "CPU cores that each worker reserves", gt=0)
    memory_per_worker: float = placement(
        0.0, "GB of the machine's memory that each worker reserves; 0 reserves none", ge=0
    )
    node_label: Labels = placement({}, "labels that a worker's machine has to have: a mapping, or key=value")
    gpus_per_worker: Literal[0, 1] = placement(0, "1 trains on GPUs, one for each worker; 0 on CPUs", rounding=True)
    threads: int = placement(1, "torch threads of each worker on a CPU", rounding=True, ge=1)
    micro_batch: int | None = placement(
        None, "images per forward pass and worker; all of its rows if absent", rounding=True, ge=1
    )
    zero_stage: Literal[0, 1, 2, 3] = placement(2, "DeepSpeed ZeRO stage", rounding=True)
    offload: Literal["none", "optimizer", "parameters"] = placement(
        "none",
        "what GPUs leave in the machine's memory: nothing, optimizer, or with zero_stage=3 weights too",
        rounding=True,
    )
    activation_checkpointing: bool = placement(False, "compute each block again in the backward pass, to save memory")
    overlap_communication: bool = placement(True, "GPUs reduce gradients while the backward pass goes on")
    compile: bool = placement(False, "compile the network's blocks with torch.compile", rounding=True)
    peak_tflops: float | None = placement(
        None, "TFLOP/s that a device could reach, for MFU; the rate of a matrix product if absent", gt=0
    )
    hang_seconds: float = placement(600.0, "how long a worker may stay in one place before it counts as hung", gt=0)
    save_every: int = placement(100, "updates between checkpoints", ge=1)
    keep_last: int = placement(2, "newest checkpoints that are kept; two, so that a damaged one is no loss", ge=1)
    keep_every: int = placement(0, "checkpoints at multiples of this update are kept for good; 0 keeps none", ge=0)
    log_every: int = placement(10, "updates between metric points", ge=1)
    evaluate_splits: tuple[Literal["validation", "test"], ...] = added(
        ("validation", "test"), "splits that the end is evaluated on; what is only chosen from needs no test"
    )
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
        self._check_workers()
        self._check_choice()
        self._check_schedule()
        self._check_numerics()
        return self

    def _check_workers(self) -> None:
        if isinstance(self.workers, tuple):
            fewest, most = self.workers
            if not 1 <= fewest <= most:
                raise ValueError(f"workers={list(self.workers)}: the fewest must be 1 or more, and not above the most")
            return
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: expected 0 or more, or a pair such as [1, 8]")
        ranks = max(1, self.workers)
        if usable_ranks(self.global_batch, ranks) < ranks:
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of workers={self.workers}: "
                f"try workers={usable_ranks(self.global_batch, ranks)}"
            )
        rows = self.global_batch // ranks
        if self.micro_batch is not None and rows % self.micro_batch:
            raise ValueError(
                f"global_batch={self.global_batch} is not a multiple of micro_batch={self.micro_batch} × "
                f"workers={self.workers}: try micro_batch={self.micro_batch_for(ranks)}"
            )

    def _check_choice(self) -> None:
        if self.evaluate_every and "validation" not in self.evaluate_splits:
            raise ValueError(
                f"evaluate_every={self.evaluate_every} needs the validation split: set it to 0, or name validation in "
                f"evaluate_splits={list(self.evaluate_splits)}"
            )
        default = type(self).model_fields["lr"].default
        if self.lr_from and (self.lr != default or self.lr_scale != "none"):
            given = f"lr={self.lr}" if self.lr != default else f"lr_scale={self.lr_scale}"
            raise ValueError(f"{given}: lr_from={self.lr_from} says what the rate is: take one of them away")

    def _check_schedule(self) -> None:
        own = (("timescale", 10_000, "rsqrt"), ("shift", 0, "rsqrt"), ("decay_at", (), "steps"))
        for name, default, decay in (*own, ("decay_factor", 0.1, "steps")):
            if self.decay != decay and getattr(self, name) != default:
                raise ValueError(f"{name}={getattr(self, name)} is for decay={decay}; decay is {self.decay}")
        if self.decay == "steps":
            self._check_steps()
        if self.lr_scale != "none" and self.lr_batch is None:
            raise ValueError(f"lr_scale={self.lr_scale} needs lr_batch, the global batch that lr={self.lr} is for")

    def _check_steps(self) -> None:
        places = self.decay_at
        if not places:
            raise ValueError("decay=steps needs decay_at, where the rate falls: for example [30/90, 60/90, 80/90]")
        parts = all(place < 1 for place in places)
        whole = all(place >= 1 and place == int(place) for place in places)
        if not (parts or whole) or list(places) != sorted(set(places)):
            shown = ", ".join(f"{place:g}" for place in places)
            raise ValueError(f"decay_at=[{shown}]: expected rising parts of the run below 1, or rising whole updates")

    def _check_numerics(self) -> None:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(f"zero_stage=0 keeps no fp32 masters for precision={self.precision}: use zero_stage=1")
        if self.precision == "fp16" and not self.gpus_per_worker:
            raise ValueError("precision=fp16 needs gpus_per_worker=1: CPUs compute in fp32 and bf16")
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(f"offload=parameters needs zero_stage=3, got {self.zero_stage}")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload=optimizer needs zero_stage=1, 2 or 3, got 0")
        if self.loss == "sigmoid" and self.label_smoothing:
            raise ValueError(f"label_smoothing={self.label_smoothing} is for the softmax loss; loss is sigmoid")

    def without_effect(self) -> frozenset[str]:
        # To say what a rate was chosen for makes no other run of it.
        told = frozenset[str]() if self.lr_scale != "none" else frozenset({"lr_batch", "lr_scale"})
        return told | {"lr", "lr_batch", "lr_scale"} if self.lr_from else told

    def with_rate_of(self, model: Output | None) -> Self:
        """The same, with the peak learning rate of a model's training. Raises UserError where that is not known."""
        if model is None:
            return self
        if "lr" not in model.meta:
            raise UserError(
                f"lr_from: of the model from '{self.lr_from}' no lr is known: make it anew (`retry --from "
                f"{self.lr_from}`), or give lr in place of lr_from"
            )
        return self.model_copy(update={"lr": float(model.meta["lr"]), "lr_scale": "none"})

    @property
    def most_workers(self) -> int:
        """Processes that train together where the cluster has room for all of them."""
        return max(1, self.workers[1] if isinstance(self.workers, tuple) else self.workers)

    @property
    def peak_lr(self) -> float:
        """The peak learning rate at this global batch."""
        return self.scaled_lr(self.lr_scale)

    def scaled_lr(self, rule: str) -> float:
        """`lr` at this global batch by a rule of `lr_scale`: `linear` (arXiv:1706.02677), `sqrt` (arXiv:1404.5997)."""
        ratio = self.global_batch / (self.lr_batch or self.global_batch)
        return self.lr * {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[rule]

    def micro_batch_for(self, ranks: int) -> int:
        """Images of a forward pass on each of `ranks`: at most `micro_batch`, and a part of the rank's rows.

        Where the number of workers varies, it is at most what all of them would have: fewer do not need more memory.
        """
        rows = self.global_batch // ranks
        whole = self.global_batch // usable_ranks(self.global_batch, self.most_workers)
        most = min(self.micro_batch or (whole if isinstance(self.workers, tuple) else rows), rows)
        return max(n for n in range(1, most + 1) if rows % n == 0)

    def total_updates(self, images: int) -> int:
        """Optimizer steps of the whole run over a training set of `images` samples.

        Raises UserError where the warm-up is longer than the run.
        """
        total = self.updates or max(1, round((self.epochs or 0) * images / self.global_batch))
        self.warmup(total)
        return total

    def steps(self, total: int) -> list[int]:
        """Of decay=steps, the updates made before each fall of the rate, in a run of `total`."""
        return [round(place * total) if place < 1 else int(place) for place in self.decay_at]

    def warmup(self, total: int) -> int:
        """Updates of the warm-up in a run of `total` updates. Raises UserError where the run has no room for it."""
        if self.warmup_updates >= total:
            raise UserError(f"warmup_updates={self.warmup_updates} is not below the run's {total} updates: lower it")
        if self.decay_at and self.decay_at[-1] >= total:
            raise UserError(
                f"decay_at={self.decay_at[-1]:g} is not below the run's {total} updates: lower it, or take it away"
            )
        warmup = self.warmup_updates or int(self.warmup_fraction * total)
        if warmup + self.cooldown_updates > total:
            raise UserError(
                f"cooldown_updates={self.cooldown_updates} after a warm-up of {warmup} is more than the run's {total} "
                "updates: lower it"
            )
        return warmup


def usable_ranks(global_batch: int, ranks: int) -> int:
    """The most of `ranks` workers that can share a global batch in equal parts; the others idle."""
    return max(n for n in range(1, ranks + 1) if global_batch % n == 0)
