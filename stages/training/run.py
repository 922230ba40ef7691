"""What pretraining and fine-tuning do alike: spread the job over a gang and commit the model."""

from __future__ import annotations

from dataclasses import asdict

from cluster.errors import UserError
from stages.context import CheckpointDamaged, Context, Result, Rollback, RollbackWanted, Stopped, StopRequest
from stages.training.config import usable_ranks
from stages.training.job import Job, train


def run_training(job: Job, context: Context) -> Result:
    """Train on a gang; the result is a committed model.

    Raises Stopped where the run was asked to stop, RollbackWanted where it has to go back, CheckpointDamaged where
    it cannot start from its checkpoint.
    """
    config = job.config
    if config.evaluate_every and "validation" not in job.evaluation:
        raise UserError(
            f"evaluate_every={config.evaluate_every}: the data set has no validation split to evaluate: set it to 0, "
            "or validation_fraction of its ingestion"
        )
    context.expect(job.updates)
    ended = context.gang(
        train,
        job,
        workers=config.workers,
        cpus=config.cpus_per_worker,
        gpus=float(config.gpus_per_worker),
        memory=config.memory_per_worker,
        labels=config.node_label,
        usable=lambda ranks: usable_ranks(config.global_batch, ranks),
    )
    match ended.pop("outcome"):
        case "stopped":
            raise Stopped(StopRequest(**ended["request"]), ended["save_seconds"])
        case "rollback":
            raise RollbackWanted(Rollback(**ended), config.guards.max_rollbacks)
        case "damaged":
            raise CheckpointDamaged(**ended)
    meta = {
        "format": 1,
        **job.about(),
        "update": job.updates,
        "images_seen": job.updates * config.global_batch,
        "averaged": config.polyak_decay > 0,
        "lr": config.peak_lr,
        "metrics": ended["metrics"],
        "left_out": [asdict(rollback) for rollback in context.rollbacks],
    }
    machine = ended["machine"]
    figures = {
        **ended["metrics"],
        "peak_tflops": machine["peak_tflops"],
        "updates": float(job.updates),
        "images_seen": float(job.updates * config.global_batch),
        "exaflops": job.network.exaflops(job.updates * config.global_batch),
        "lr": config.peak_lr,
        "rollbacks": float(len(context.rollbacks)),
    }
    output = context.commit("model", ended["files"], meta)
    return Result(output=output, metrics=figures, builds={"device": machine["device"]})
