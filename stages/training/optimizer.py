"""The optimizer and its parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stages.training.config import TrainingConfig


def decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to kernels alone, not to biases, norms, or embeddings.

    The reference code decays what its parameter tree calls `kernel` (big_vision `optax.py`).
    """
    return name.endswith(".weight") and parameter.ndim >= 2


def of_head(name: str) -> bool:
    """Whether a parameter belongs to the last layer, of classes or of masked patches; a hidden layer does not."""
    return name.startswith(("head.", "prediction."))


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """A torch optimizer over groups of parameters: with weight decay, without and, where it has its own, the head."""
    apart = config.head_weight_decay is not None
    body, head, rest = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = rest if not decayed(name, parameter) else head if apart and of_head(name) else body
            group.append(parameter)
    decays = ((body, config.weight_decay), (rest, 0.0), (head, config.head_weight_decay or 0.0))
    groups = [{"params": parameters, "weight_decay": decay} for parameters, decay in decays if parameters]
    if config.optimizer == "sgd":
        kind = AveragedSGD if config.polyak_decay else DecayedSGD
        optimizer = kind(groups, lr=config.peak_lr, momentum=config.momentum, fused=True)
    else:
        # The paper's Adam is this one: its reference code adds the decay after Adam's scaling.
        kind = AveragedAdamW if config.polyak_decay else torch.optim.AdamW
        optimizer = kind(groups, lr=config.peak_lr, betas=config.betas, eps=config.epsilon, fused=True)
    if isinstance(optimizer, Averaging):
        optimizer.polyak_decay = config.polyak_decay
    return optimizer


def state_names(config: TrainingConfig) -> tuple[str, ...]:
    """The optimizer's tensors for each parameter, of its shape."""
    moments = ("momentum_buffer",) if config.optimizer == "sgd" else ("exp_avg", "exp_avg_sq")
    return (*moments, "average") if config.polyak_decay else moments


class DecayedSGD(torch.optim.SGD):
    """SGD with momentum whose weight decay is decoupled: w ← w - rate · (momentum's step + decay · w).

    torch's own adds the decay to the gradient, so that momentum carries it on. big_vision's (`optax.py`) does not.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            stepped = [parameter for parameter in group["params"] if parameter.grad is not None]
            if decay and stepped:
                torch._foreach_mul_(stepped, 1.0 - group["lr"] * decay)  # type: ignore[reportPrivateImportUsage]
            group["weight_decay"] = 0.0
        outcome = super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        return outcome


class Averaging(torch.optim.Optimizer):
    """Keeps Polyak's average of the weights, average ← d · average + (1 - d) · weight after each step (paper, 4.1).

    It is one more state tensor of each parameter, so ZeRO shards it, and checkpoints hold it, as the others.
    """

    polyak_decay: float

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        outcome = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    average: Tensor = self.state[parameter]["average"]
                    average.lerp_(parameter, 1.0 - self.polyak_decay)
        return outcome


class AveragedAdamW(Averaging, torch.optim.AdamW):
    """AdamW that also averages."""


class AveragedSGD(Averaging, DecayedSGD):
    """SGD that also averages."""
