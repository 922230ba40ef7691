"""The optimizer and its parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from stages.training.config import TrainingConfig


def decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to kernels alone, not to biases, norms, or embeddings.

    The reference code decays what its parameter tree calls `kernel` (big_vision `optax.py`).
    """
    return name.endswith(".weight") and parameter.ndim >= 2


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """A torch optimizer over two groups of parameters: with weight decay, and without."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decayed(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decayed(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    # The paper's Adam is this one: its reference code adds the decay after Adam's scaling.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.epsilon)
