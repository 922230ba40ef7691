"""What pretraining and fine-tuning do alike: spread the job over a gang and commit the model."""

from __future__ import annotations

from stages.context import Context, Result, Stopped
from stages.data.manifest import dataset_meta
from stages.training.loop import Job, train


def run_training(job: Job, context: Context) -> Result:
    """Train on a gang; the result is a committed model. Raises Stopped where the run was asked to stop."""
    config = job.config
    context.expect(job.updates)
    outcome = context.gang(
        train, job, workers=config.workers, cpus=config.cpus_per_worker, gpus=float(config.gpus_per_worker)
    )
    if outcome["stopped"]:
        raise Stopped("saved a checkpoint and stopped as asked")
    classes = dataset_meta(job.dataset).classes
    meta = {
        "format": 1,
        "model": job.model.model_dump(mode="json"),
        "resolution": job.resolution,
        "num_classes": len(job.class_ids),
        "classes": [classes[i] for i in job.class_ids],
        "class_ids": list(job.class_ids),
        "seed": job.seed,
        "trained_on": job.dataset.digest,
        "update": job.updates,
        "images_seen": job.updates * config.global_batch,
    }
    figures = {**outcome["metrics"], "updates": float(job.updates)}
    return Result(output=context.commit("model", [outcome["file"]], meta), metrics=figures)
