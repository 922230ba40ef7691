"""DeepSpeed, behind the few operations that the training loop needs. The only importer of deepspeed.

One engine serves ZeRO 0 to 3, on GPUs and CPUs, under Ray Train and in a single process.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.errors import UserError
from stages.data.loader import Batch
from stages.data.mixup import mix_classes, mix_images, mix_multi_hot
from stages.data.pixels import normalise
from stages.training.config import TrainingConfig
from stages.training.objectives import correct, cross_entropy
from stages.training.optimizer import make_optimizer


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one update measured, over all ranks."""

    loss: float
    accuracy: float
    gradient_norm: float
    stop: bool
    """Whether any rank was asked to stop: all ranks read the same answer at the same update."""
    replaced: int
    """Unreadable samples that this attempt has met so far."""


def choose_device(config: TrainingConfig, local_rank: int) -> torch.device:
    """The device of a rank: what the placement says, whatever else the machine has. Raises UserError."""
    if not config.gpus_per_worker:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"gpus_per_worker=1: worker {local_rank} of this machine finds {torch.cuda.device_count()} GPUs; "
            "set it to 0 to train on CPUs"
        )
    return torch.device("cuda", local_rank)


def import_deepspeed(device: torch.device) -> Any:
    """Import deepspeed quietly, for this device; on a CPU in a form that needs no compiler."""
    os.environ["DS_ACCELERATOR"] = device.type
    with warnings.catch_warnings(), _without_mlflow():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

        with _without_compilation():
            import deepspeed.runtime.zero.muon.original_muon
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed would compile its shared-memory collective with ninja at the first use of gloo. Without a
    # toolchain that fails; gloo alone is enough. There is no public switch (0.19).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _without_mlflow() -> Iterator[None]:
    # DeepSpeed's autotuner, which we do not use, imports mlflow where it finds it: two seconds and 100 MB
    # in every worker. It also does without.
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["mlflow"]


@contextmanager
def _without_compilation() -> Iterator[None]:
    # DeepSpeed decorates functions of its Muon optimizer, which we do not use, with torch.compile. That
    # loads the whole compiler when the engine is made: two seconds in every worker.
    original = torch.compile
    torch.compile = lambda model, **_: model  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = original


def initialize_distributed(device: torch.device) -> None:
    """A process group for this process: of the gang that its variables name (`env://`), or a group of one."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, init_method="env://")
        else:
            store = Path(tempfile.mkdtemp(prefix="patchline-")) / "store"
            dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    for name, value in (("RANK", dist.get_rank()), ("WORLD_SIZE", dist.get_world_size()), ("LOCAL_RANK", 0)):
        os.environ.setdefault(name, str(value))


def leave_distributed() -> None:
    """End the process group of a gang, after its last collective. A group of one serves the next stage too."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


def deepspeed_config(config: TrainingConfig, micro_batch: int, accumulation: int, world_size: int) -> dict[str, Any]:
    """The engine's settings. The optimizer and the learning rate are ours and do not appear."""
    return {
        "train_batch_size": micro_batch * accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
    }


class Engine:
    """A model and its optimizer, spread over the ranks by ZeRO."""

    def __init__(self, model: nn.Module, config: TrainingConfig, world_size: int, local_rank: int) -> None:
        self.device = choose_device(config, local_rank)
        deepspeed = import_deepspeed(self.device)
        initialize_distributed(self.device)
        self.config, self.world_size = config, world_size
        rows = config.global_batch // world_size
        self.micro_batch = min(config.micro_batch or rows, rows)
        self.accumulation = rows // self.micro_batch
        self._optimizer = make_optimizer(model, config)
        settings = deepspeed_config(config, self.micro_batch, self.accumulation, world_size)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
        )
        self._create_optimizer_state()
        self._plain_norm = float("nan")
        self._parameters = {name: p for name, p in self._engine.module.named_parameters() if p.requires_grad}

    # Training

    def step(self, batch: Batch, lr: float, *, seed: Sequence[int], stop: bool, replaced: int = 0) -> StepReport:
        """One update from this rank's rows of the global batch. `seed` keys dropout, with the micro-step.

        `stop` and `replaced` are this rank's own; the report has those of all.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.train()
        totals = torch.zeros(4, dtype=torch.float64)
        for micro in range(self.accumulation):
            rows = slice(micro * self.micro_batch, (micro + 1) * self.micro_batch)
            torch.manual_seed(_mix(*seed, micro))
            images, labels, targets = self._examples(batch, rows)
            logits = self._engine(images)
            loss = cross_entropy(logits, targets, loss=self.config.loss, label_smoothing=self.config.label_smoothing)
            self._engine.backward(loss)
            if self.config.zero_stage == 0:
                self._plain_norm = self._norm_of_gradients()
            self._engine.step()
            with torch.no_grad():
                totals[0] += float(loss)
                totals[1] += float(correct(logits, labels).float().mean())
        totals[:2] /= self.accumulation
        totals[2], totals[3] = float(stop), float(replaced)
        totals = self.sum_over_ranks(totals)
        return StepReport(
            loss=float(totals[0]) / self.world_size,
            accuracy=float(totals[1]) / self.world_size,
            gradient_norm=self._gradient_norm(),
            stop=bool(totals[2] > 0),
            replaced=int(totals[3]),
        )

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Scores [B, C] in evaluation mode. With ZeRO 3 every rank must call it equally often."""
        self._engine.eval()
        return self._engine(self._inputs(images)).float().cpu()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Element-wise sum of a small CPU tensor over all ranks."""
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def _examples(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The network's input of some rows, their own labels, and the targets, which mixing makes of the labels."""
        images, labels = batch.images[rows].to(self.device), batch.labels[rows].to(self.device)
        if batch.mixing is None:
            return self._inputs(images), labels, labels
        other = batch.mixing.rows(rows)
        weights = other.weights.to(self.device)
        mixed = mix_images(images, other.images.to(self.device), weights)
        others = other.labels.to(self.device)
        if labels.ndim == 2:
            return self._inputs(mixed), labels, mix_multi_hot(labels, others, weights)
        return self._inputs(mixed), labels, mix_classes(labels, others, weights, self._engine.module.num_classes)

    def _inputs(self, images: Tensor) -> Tensor:
        """The network's input on its device, from the loader's bytes."""
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        return normalise(images.to(self.device)).to(dtype)

    # State, parameter by parameter: one form for any world size, ZeRO stage and optimizer

    @property
    def names(self) -> list[str]:
        """Names of the trained parameters, in the model's order."""
        return list(self._parameters)

    def size(self, name: str) -> int:
        """Number of elements of a parameter, also where ZeRO 3 holds only a part of it here."""
        parameter = self._parameters[name]
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def read(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """The whole fp32 weight and optimizer tensors of one parameter, as ("weight" or state name, tensor).

        Collective: every rank calls it for the same parameter.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._parameters[name]
        for key in ("weight", *self._state_names()):
            if self.config.zero_stage == 0:
                tensor = parameter.data if key == "weight" else self._optimizer.state[parameter][key]
            elif key == "weight":
                tensor = safe_get_full_fp32_param(parameter)
            else:
                tensor = safe_get_full_optimizer_state(parameter, key)
            assert tensor is not None, f"{name} has no {key}"
            yield key, tensor.detach().to("cpu", torch.float32, copy=True)

    def restore(self, update: int, tensors: Iterator[tuple[str, str, Tensor]]) -> None:
        """Set weights and optimizer tensors, given as (parameter, "weight" or state name, whole tensor)."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._link_optimizer_state()
        for name, key, value in tensors:
            parameter, value = self._parameters[name], value.to(self.device)
            if self.config.zero_stage == 0:
                target = parameter.data if key == "weight" else self._optimizer.state[parameter][key]
                target.copy_(value)
            elif key == "weight":
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"].fill_(update)

    def _state_names(self) -> tuple[str, ...]:
        if self.config.optimizer == "sgd":
            return ("momentum_buffer",)
        return ("exp_avg", "exp_avg_sq")

    def _create_optimizer_state(self) -> None:
        # ZeRO 1 and 2 link every parameter to its optimizer tensors after the step of the *first* group,
        # when the others have none yet (DeepSpeed 0.19): so they get theirs before any step.
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                state = self._optimizer.state[parameter]
                for key in self._state_names():
                    state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                if self.config.optimizer == "adamw":
                    state["step"] = torch.zeros(())

    def _link_optimizer_state(self) -> None:
        # ZeRO hands out its fragments of optimizer tensors after a first step only. One with zero
        # gradients and a zero rate moves no weight.
        for group in self._engine.optimizer.param_groups:
            group["lr"] = 0.0
        size = self._engine.module.resolution
        self._engine.train()
        for _ in range(self.accumulation):
            logits = self._engine(self._inputs(torch.zeros(1, size, size, 3, dtype=torch.uint8)))
            self._engine.backward(logits.float().sum() * 0.0)
            self._engine.step()

    def _norm_of_gradients(self) -> float:
        # Without ZeRO, DeepSpeed averages the gradients in place and does not report their norm.
        norms = [p.grad.norm() for p in self._parameters.values() if p.grad is not None]
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def _gradient_norm(self) -> float:
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else self._plain_norm


def _mix(*values: int) -> int:
    """One 63-bit seed from several integers (the constants are those of SplitMix64)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
