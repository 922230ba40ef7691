"""DeepSpeed's settings for a training run's config."""

from __future__ import annotations

from typing import Any

from stages.training.config import TrainingConfig
from stages.training.gradient_memory import ZERO_BUCKET


def deepspeed_config(config: TrainingConfig, micro_batch: int, world_size: int, parameters: int) -> dict[str, Any]:
    """The engine's settings for a network of so many `parameters`. Optimizer and rate are ours, not in here."""
    # No larger than what there is to send; an even number of elements.
    even = parameters + parameters % 2
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": config.overlap_communication and config.gpus_per_worker > 0,
        "reduce_bucket_size": min(ZERO_BUCKET, even),
        "allgather_bucket_size": min(500_000_000, even),
    }
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.gpus_per_worker > 0}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.gpus_per_worker > 0}
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": config.global_batch // (micro_batch * world_size),
        "gradient_clipping": config.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # Its own Adam for offloading is compiled at first use; torch's needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        # Sums over micro-steps, and over ranks.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**31,
    }
