"""The evaluation of a classifier on whole splits: each image counted once, by however many tasks."""

from __future__ import annotations

from typing import Any

from cluster.errors import UserError
from stages.context import Context, Inputs, Result
from stages.data.manifest import dataset_meta
from stages.evaluate.classes import outputs_of_classes, splits_to_count
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.figures import calibration_figure, confusion_figure
from stages.evaluate.tables import calibration_rows, class_rows, confusion_rows
from stages.evaluate.tally import TOP, Tally
from stages.evaluate.task import EvaluateTask, tally_part
from stages.frozen.span import ranges, run_tasks
from stages.rendered import csv_bytes

MOST_DRAWN = 50
"""Classes that a picture of the confusions has room for."""
WORST = 20
"""Classes of the lowest accuracy that the table shows; the file has all."""


def run(config: EvaluateConfig, inputs: Inputs, context: Context) -> Result:
    """Count, and commit figures and tables. Raises UserError where model and data set do not belong together."""
    dataset, model = inputs["data"], inputs["model"]
    meta = dataset_meta(dataset)
    outputs, matched = outputs_of_classes(dataset, model)
    splits = splits_to_count(config.splits, meta, outputs)
    tally = Tally(config.calibration_bins).merge(_tallies(config, inputs, context, splits, outputs))
    if not tally.images:
        raise UserError(f"splits={list(splits)} of {meta.name!r}: no image has a label, so nothing can be right")
    named = "test" if set(splits) <= {"test", "held_out_test"} else "_and_".join(splits)
    figures = _figures(tally, named, int(model.meta["num_classes"]))
    names = [str(name) for name in model.meta["classes"]]
    calibration, classes = calibration_rows(tally), class_rows(tally, names)
    files = [
        context.write("calibration.csv", csv_bytes(calibration)),
        context.write("calibration.png", calibration_figure(calibration, tally.calibration_error)),
    ]
    if classes:
        files.append(context.write("classes.csv", csv_bytes(classes)))
        files.append(context.write("confusions.csv", csv_bytes(confusion_rows(tally, names))))
    if classes and len(names) <= MOST_DRAWN:
        files.append(context.write("confusions.png", confusion_figure(tally, names)))
    about = {"splits": list(splits), "classes_matched": matched, "metrics": figures, "unlabelled": tally.unlabelled}
    output = context.commit("evaluation", files, {"data": meta.name, **about})
    row: dict[str, Any] = {"data": meta.name, "splits": " + ".join(splits), "classes": matched, **figures}
    worst = sorted(classes, key=lambda one: one["accuracy"])[:WORST]
    return Result(output=output, metrics=figures, tables={"evaluation": [row], "worst_classes": worst})


def _tallies(
    config: EvaluateConfig, inputs: Inputs, context: Context, splits: tuple[str, ...], outputs: tuple[int, ...]
) -> list[Tally]:
    storage, dataset, model = context.storage, inputs["data"], inputs["model"]
    own = {"storage": storage, "dataset": dataset, "model": model, "outputs": outputs, "bins": config.calibration_bins}
    tasks = [EvaluateTask(**own, **found) for found in ranges(config, storage, dataset, splits)]
    return run_tasks(config, tally_part, tasks, context, label="evaluate")


def _figures(tally: Tally, split: str, classes: int) -> dict[str, float]:
    top = {"accuracy_top5": tally.top_hits / tally.images} if classes > TOP else {}
    found = {
        "accuracy": tally.hits / tally.images,
        **top,
        "loss": tally.loss / tally.images,
        "calibration_error": tally.calibration_error,
        "images": float(tally.images),
    }
    return {f"{split}/{name}": value for name, value in found.items()}
