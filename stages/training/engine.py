"""DeepSpeed, behind the few operations that the training loop needs. With `tensors.py`, its only importer.

One engine serves ZeRO 0 to 3, on GPUs and CPUs, under Ray Train and in a single process.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import UserError
from stages.data.batches import Batch, EvaluationBatch
from stages.models.build import Network
from stages.training.collectives import Collectives
from stages.training.config import TrainingConfig
from stages.training.devices import DTYPES, choose_device, initialize_distributed
from stages.training.examples import Examples
from stages.training.forward_clock import ForwardClock
from stages.training.objectives import Objective, Supervised
from stages.training.optimizer import make_optimizer, state_names
from stages.training.report import Pending
from stages.training.settings import deepspeed_config
from stages.training.tensors import Tensors

SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's loss scaler remembers from one update to the next (`runtime/fp16/loss_scaler.py`)."""

COMPILERS = ("c++", "g++", "clang++")
"""Of C++, on CPUs: `torch.compile` takes one of them."""


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


class Engine:
    """A model and its optimizer, spread over the ranks by ZeRO."""

    def __init__(
        self,
        model: Network,
        config: TrainingConfig,
        world_size: int,
        local_rank: int,
        objective: Objective | None = None,
    ) -> None:
        self.objective = objective or Supervised(config)
        """What the model learns; the class labels if absent."""
        self.device = choose_device(config, local_rank)
        deepspeed = import_deepspeed(self.device)
        initialize_distributed(self.device)
        self.config, self.world_size = config, world_size
        self._examples = Examples(self.device, DTYPES[config.precision], model.num_classes)
        self.micro_batch = config.micro_batch_for(world_size)
        self.accumulation = config.global_batch // (world_size * self.micro_batch)
        model.activation_checkpointing = config.activation_checkpointing
        if config.compile:
            _compile_blocks(model, self.device)
        # DeepSpeed would make its fp32 weights of ones that it has rounded to the precision.
        exact = {name: p.detach().clone() for name, p in model.named_parameters()} if config.precision != "fp32" else {}
        self._optimizer = make_optimizer(model, config)
        parameters = sum(p.numel() for p in model.parameters())
        settings = deepspeed_config(config, self.micro_batch, world_size, parameters)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
        )
        if world_size == 1:
            # It would copy all gradients into one buffer, "reduce" them there, and copy them back.
            self._engine.buffered_allreduce_fallback = lambda **_: None
        self.lag = 1 if self.device.type == "cuda" else 0
        """Updates that are best in flight before anybody asks for their figures: a GPU goes on meanwhile."""
        self.collectives = Collectives.of(deepspeed.comm.comm.cdb)
        self.forward = ForwardClock(self.device, self.collectives)
        self.tensors = Tensors(self._engine.module, self._optimizer, config)
        for name, value in exact.items():
            self.tensors.set_weight(name, value)
        self._create_optimizer_state()
        self._plain_norm: Tensor | float = float("nan")
        self._steps_before = 0
        """Steps that the optimizer made before this engine's own."""

    # Training

    def step(
        self,
        batch: Batch,
        lr: float,
        *,
        seed: Sequence[int],
        signal: bool = False,
        replaced: int = 0,
        own: Sequence[float] | None = None,
    ) -> Pending:
        """One update from this rank's rows of the global batch. `seed` keys dropout, with the micro-step.

        `signal` and `replaced` are this rank's own; the report has those of all. With `own`, figures of this rank, it
        has these of every rank, and the weights' norm. All ranks give as many, or none. On a GPU it all comes later.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.train()
        with_norm, each = own is not None, len(own or ())
        totals = torch.zeros(5 + each * self.world_size, dtype=torch.float64)
        if own is not None:
            # A sum in which every rank has places of its own is a gathering.
            totals[5 + each * dist.get_rank() :][:each] = torch.tensor(own, dtype=torch.float64)
        totals = totals.to(self.device, non_blocking=True)
        skipped_before = self._engine.skipped_steps
        for micro in range(self.accumulation):
            rows = slice(micro * self.micro_batch, (micro + 1) * self.micro_batch)
            torch.manual_seed(_mix(*seed, micro))
            question = self.objective.question(self._examples.of_rows(batch, rows))
            with self.forward.timed():
                outputs = self._engine(*question.inputs)
            loss = self.objective.loss(outputs, question)
            self._engine.backward(loss)
            if self.config.zero_stage == 0:
                self._plain_norm = self._norm_of_gradients()
            self._engine.step()
            with torch.no_grad():
                totals[0] += loss.detach()
                totals[1] += self.objective.hits(outputs, question).double().mean()
        totals[:2] /= self.accumulation
        totals[2] += float(signal)
        totals[3] += float(replaced)
        if with_norm:
            totals[4] += self._squares_of_weights()
        with self.collectives.timed():
            dist.all_reduce(totals)
        return Pending(
            totals,
            self._gradient_norm(),
            ranks=self.world_size,
            with_norm=with_norm,
            each=each,
            # In other precisions DeepSpeed also leaves an update out whose gradients are no numbers: that is trouble.
            skipped=self.config.precision == "fp16" and self._engine.skipped_steps > skipped_before,
        )

    @torch.no_grad()
    def judge(self, batch: EvaluationBatch) -> tuple[Tensor, Tensor]:
        """Loss of each row, and its part that is right, [b] each. With ZeRO 3 every rank must call it equally often."""
        self._engine.eval()
        question = self.objective.question(self._examples.of_evaluation(batch))
        outputs = self._engine(*question.inputs)
        return self.objective.losses(outputs, question).cpu(), self.objective.hits(outputs, question).cpu()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Element-wise sum of a small CPU tensor over all ranks."""
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    @torch.no_grad()
    def _squares_of_weights(self) -> Tensor:
        """This rank's part of the sum of the squares of all weights."""
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for held in self._held():
            squares += held.detach().square().sum(dtype=torch.float64).to(self.device)
        # Without ZeRO every rank holds everything.
        return squares / (self.world_size if self.config.zero_stage == 0 else 1)

    # State

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the tensors: steps of the optimizer, and fp16's loss scale. JSON."""
        found: dict[str, Any] = {"optimizer_steps": self._steps_before + self._own_steps()}
        if self.config.precision == "fp16":
            scaler = self._engine.optimizer.loss_scaler
            found["loss_scale"] = {name: getattr(scaler, name) for name in SCALER if hasattr(scaler, name)}
        return found

    def restore(self, counters: dict[str, Any], tensors: Iterable[tuple[str, str, Tensor]]) -> None:
        """Go on from another engine's counters and tensors, whatever its ZeRO stage and world size were."""
        self._link_optimizer_state()
        self.tensors.restore(tensors)
        self._steps_before = counters["optimizer_steps"] - self._own_steps()
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"].fill_(counters["optimizer_steps"])
        for name, value in counters.get("loss_scale", {}).items():
            setattr(self._engine.optimizer.loss_scaler, name, value)

    def _own_steps(self) -> int:
        return self._engine.global_steps - self._engine.skipped_steps

    def _create_optimizer_state(self) -> None:
        # ZeRO 1 and 2 link every parameter to its optimizer tensors after the step of the *first* group,
        # when the others have none yet (DeepSpeed 0.19): so they get theirs before any step.
        for parameter in self._held():
            state = self._optimizer.state[parameter]
            for key in state_names(self.config):
                empty = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state[key] = parameter.detach().clone() if key == "average" else empty
            if self.config.optimizer == "adamw":
                state["step"] = torch.zeros((), device=parameter.device)

    def _held(self) -> list[Tensor]:
        """The fp32 weights that this rank's optimizer steps: its parts of all, or without ZeRO all of them."""
        if self.config.zero_stage == 3:
            # Its optimizer is shown one part at a time, and none outside of a step.
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _link_optimizer_state(self) -> None:
        # ZeRO hands out its fragments of optimizer tensors after a first step only. One with zero
        # gradients and a zero rate moves no weight.
        for group in self._engine.optimizer.param_groups:
            group["lr"] = 0.0
        nothing = self._examples.of_nothing(self.micro_batch, self._engine.module.resolution)
        self._engine.train()
        for _ in range(self.accumulation):
            # As many as in training: a compiled network would else be another one after a restart.
            question = self.objective.question(nothing)
            self._engine.backward(self._engine(*question.inputs).float().sum() * 0.0)
            self._engine.step()

    def _norm_of_gradients(self) -> Tensor:
        # Without ZeRO, DeepSpeed averages the gradients in place and does not report their norm.
        norms = [p.grad.norm() for p in self._engine.module.parameters() if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(norms))

    def _gradient_norm(self) -> Tensor | float:
        norm = self._engine.get_global_grad_norm()
        return norm if norm is not None else self._plain_norm


def _compile_blocks(model: Network, device: torch.device) -> None:
    """Compile the blocks where they are, so that parameters keep their names. Raises UserError without a compiler."""
    if device.type == "cpu" and not any(shutil.which(name) for name in COMPILERS):
        raise UserError(
            "compile=true needs a C++ compiler on machines without GPUs, and none was found: set it to false"
        )
    for block in model.blocks:
        block.compile()


def _mix(*values: int) -> int:
    """One 63-bit seed from several integers (the constants are those of SplitMix64)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
