"""The learning rate as a pure function of the update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stages.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Cooldown:
    """How a branch ends: from its trunk's rate at update `start` to `end_lr`, in a straight line, in `updates`."""

    start: int
    updates: int
    trunk: int
    """Updates of the trunk's whole run, over which its own schedule goes."""


def cooled_rate(config: TrainingConfig, update: int, cooldown: Cooldown) -> float:
    """Learning rate of update `update` of a branch, `start` + 1 to `start` + `updates`.

    As for linear decay, t counts from 0: the first update has the rate that it would have in the trunk.
    """
    rate = learning_rate(config, cooldown.start + 1, cooldown.trunk)
    left = 1 - (update - 1 - cooldown.start) / cooldown.updates
    return config.end_lr + (rate - config.end_lr) * left


def learning_rate(config: TrainingConfig, update: int, total: int) -> float:
    """Learning rate of update `update` (1 to `total`).

    With progress p = (t - w) / (T - w) after w warm-up updates: cosine lr (1 + cos πp) / 2, linear
    end + (lr - end)(1 - p), rsqrt lr / √(1 + (max(t - w, 0) + shift) / timescale), steps lr · factor^k with the k of
    `decay_at` that are not after t, all times min(1, t / w), where lr is the config's `peak_lr`. As in
    `vit_jax/utils.py` of the paper's code, t counts from 0, so that the first update of a warm-up has rate 0. In the
    last c `cooldown_updates` that rate r is end + (r - end)(T - t) / c. rsqrt and the cooldown are those of big_vision
    (`utils.py`), where a cooldown always ends at 0; steps those of "Big Transfer" (arXiv:1912.11370, section 3.2).
    """
    step, warmup = update - 1, config.warmup(total)
    progress = min(max((step - warmup) / max(1, total - warmup), 0.0), 1.0)
    if config.decay == "cosine":
        rate = config.peak_lr * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.decay == "linear":
        rate = config.end_lr + (config.peak_lr - config.end_lr) * (1 - progress)
    elif config.decay == "rsqrt":
        rate = config.peak_lr / math.sqrt(1 + (max(step - warmup, 0) + config.shift) / config.timescale)
    elif config.decay == "steps":
        rate = config.peak_lr * config.decay_factor ** sum(place <= step for place in config.steps(total))
    else:
        rate = config.peak_lr
    rate *= min(1.0, step / warmup) if warmup else 1.0
    if total - step >= config.cooldown_updates:
        return rate
    return config.end_lr + (rate - config.end_lr) * (total - step) / config.cooldown_updates
