"""The metrics: their names, units and meanings, by the kinds of stages that have them. docs/metrics.md is made of this.

A name may have placeholders in angle brackets. `CURVES` are points over a stage's updates; `FIGURES` are what a stage's
record holds when it is done, which MLflow shows at the stage, and at the workflow as `<stage>/<name>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TRAINED = ("pretrain", "finetune")
PART = "part of 1"
LOSS = "nats; of pixels squared error"
NO_PIXELS = "not of `objective.target: pixels`"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric, or those whose names differ in a placeholder. `only` says what some runs do not have it for."""

    name: str
    unit: str
    meaning: str
    kinds: tuple[str, ...] = TRAINED
    only: str = ""

    def has(self, name: str) -> bool:
        """Whether this is the metric of that name."""
        pieces = re.split(r"(<\w+>)", self.name)
        pattern = "".join(_pattern(piece) for piece in pieces)
        return re.fullmatch(pattern, name) is not None


def _pattern(piece: str) -> str:
    """Of a piece of a name. Figures have names that may have / in them; all else has none."""
    if piece == "<figure>":
        return ".+"
    return "[^/]+" if piece.startswith("<") else re.escape(piece)


def _curve(name: str, unit: str, meaning: str, only: str = "") -> Metric:
    return Metric(name=f"train/{name}", unit=unit, meaning=meaning, only=only)


def _of(kind: str, *rows: tuple[str, str, str] | tuple[str, str, str, str]) -> list[Metric]:
    return [
        Metric(name=name, unit=unit, meaning=meaning, kinds=(kind,), only=only[0] if only else "")
        for name, unit, meaning, *only in rows
    ]


CURVES: tuple[Metric, ...] = (
    _curve("loss", LOSS, "of the global batch, before the update"),
    _curve("accuracy", PART, "of that batch that was right", NO_PIXELS),
    _curve("lr", "1", "learning rate of the update"),
    _curve("gradient_norm", "1", "global norm of the gradient, before clipping"),
    _curve("parameter_norm", "1", "global norm of the weights"),
    _curve("images_seen", "images", "global batches so far: another axis for any curve"),
    _curve("exaflops", "10¹⁸ operations", "spent so far, forward and backward: another axis for any curve"),
    _curve("images_per_s", "images/s", "speed of all workers since the last point, without evaluations"),
    _curve("tflops", "10¹² operations/s", "the same in operations of the network"),
    _curve("mfu", PART, "of what the devices could compute (`peak_tflops`)"),
    _curve("data_wait", PART, "of the time that the worker who waited longest waited for images"),
    _curve("storage_wait", PART, "of that worker's loading that was waiting for storage"),
    _curve("checkpoint_stall", PART, "of the time that training stood still for a checkpoint"),
    _curve("communication", PART, "of the time that went to collectives", "on CPUs"),
    _curve("memory_gb", "10⁹ bytes", "greatest memory of a worker since the last point; of a GPU, its own memory"),
    _curve("pace", PART, "of the usual speed", "once there are enough intervals"),
    _curve("slowest_rank", "rank", "that computed longest of late", "with several workers"),
    _curve("compute_skew", "1", "its computing time over the others' median", "with several workers"),
    _curve("checkpoint_seconds", "s", "from the copy to the commit of the newest checkpoint", "once there is one"),
    _curve("replaced", "images", "unreadable ones that this attempt has met", "if there are any"),
    Metric(
        name="fewshot/<class_set>/<shots>_shot",
        unit=PART,
        meaning="few-shot accuracy of the checkpoint of that update",
        kinds=("pretrain",),
        only="with `fewshot.every`",
    ),
    *(
        Metric(name=f"{before}validation/{name}", unit=unit, meaning=meaning, only=f"with `evaluate_every`{weights}")
        for before, weights in (("", ""), ("raw/", " and `polyak_decay`: of the weights without averages"))
        for name, unit, meaning in (
            ("loss", LOSS, "mean over the validation split"),
            ("accuracy", PART, "of the validation split that was right"),
        )
    ),
    Metric(
        name="system/<machine>/<measure>",
        unit="in its name",
        meaning="MLflow's system metrics of each machine that trains; percentages are of 100, megabytes 10⁶ bytes",
        only="from ten seconds on",
    ),
    Metric(
        name="lost/updates",
        unit="updates",
        meaning="that an attempt made after the checkpoint that the next one went on from; the step is the attempt",
        only="after a failure",
    ),
    Metric(name="lost/seconds", unit="s", meaning="that these took", only="after a failure"),
)


def _evaluated(before: str, split: str, weights: str) -> list[Metric]:
    """Of a split; those that begin with `raw/` are there with averages alone."""
    found = f"{weights}where there is a {split} split"
    loss, accuracy = f"mean over the {split} split", f"of the {split} split that was right"
    return [
        Metric(name=f"{before}{split}/loss", unit=LOSS, meaning=loss, only=found),
        Metric(name=f"{before}{split}/accuracy", unit=PART, meaning=accuracy, only=f"{found}; {NO_PIXELS}"),
    ]


FIGURES: tuple[Metric, ...] = (
    *_evaluated("", "validation", ""),
    *_evaluated("", "test", ""),
    *_evaluated("raw/", "validation", "of the weights without `polyak_decay`'s average; "),
    *_evaluated("raw/", "test", "of the weights without `polyak_decay`'s average; "),
    *(
        Metric(name=name, unit=unit, meaning=meaning)
        for name, unit, meaning in (
            ("updates", "updates", "at which the stage ended"),
            ("images_seen", "images", "those updates times the global batch"),
            ("exaflops", "10¹⁸ operations", "of those images, forward and backward"),
            ("lr", "1", "peak learning rate"),
            ("rollbacks", "times", "that training went back because of a loss that was no number, or jumped"),
            ("peak_tflops", "10¹² operations/s", "what a device could compute: stated, or of a matrix product"),
        )
    ),
    Metric(
        name="fewshot/<class_set>/<shots>_shot",
        unit=PART,
        meaning="few-shot accuracy of the last update",
        kinds=("pretrain",),
        only="with `fewshot.every`",
    ),
    *_of(
        "ingest",
        ("images", "images", "in all splits"),
        ("classes", "classes", "that images are of"),
        ("shards", "tars", "of all splits"),
        ("bytes", "bytes", "of all tars"),
        ("bad", "images", "that were left out"),
        ("bad/<reason>", "images", "that were left out for this reason", "if there are any"),
        ("traits/<trait>", "images", "with this trait, such as grey ones", "if there are any"),
        ("unused", "files", "of the source that are no images of a class"),
        ("unused/<ending>", "files", "of them, by their names' ending", "if there are any"),
    ),
    *_of("mixture", ("images", "images", "in all splits"), ("classes", "classes", "of the mixture")),
    *_of(
        "subset",
        ("images", "images", "in the reduced splits before"),
        ("kept", "images", "in them after"),
        ("removed_exact", "images", "whose pixels are another data set's too"),
        ("removed_near", "images", "that differ from another data set's in at most `near` bits"),
        ("unreadable", "images", "that could not be compared, and were kept"),
        ("unreadable_others", "images", "of the other data sets that could not be compared"),
    ),
    *_of(
        "import",
        ("arrays", "arrays", "that the file has"),
        ("classes", "classes", "of the last layer"),
        ("parameters", "numbers", "of the network"),
    ),
    *_of("choice", ("candidates", "models", "that were chosen from; beside it are all figures of the one chosen")),
    *_of(
        "summary",
        ("models", "models", "that the means are of"),
        (
            "<group>/<figure>",
            "the figure's",
            "mean of that figure over a group",
            "as figures are named, with their own /",
        ),
    ),
    *_of("features", ("images", "images", "of all splits"), ("bytes", "bytes", "that are stored")),
    *_of(
        "fewshot",
        (
            "<features>/<class_set>/<shots>_shot",
            PART,
            "test accuracy, mean over the draws; features, untrained, pixels",
        ),
        ("<features>/<class_set>/<shots>_shot_<classifier>", PART, "the same of other classifiers", "where asked for"),
        ("<data>/<features>/<class_set>/<shots>_shot", PART, "the same of each data set", "of several data sets"),
    ),
    *_of(
        "evaluate",
        ("<split>/accuracy", PART, "of the images that is right"),
        ("<split>/accuracy_top5", PART, "whose class is among the first five", "of more than five classes"),
        ("<split>/loss", "nats", "cross-entropy of the softmax"),
        ("<split>/calibration_error", PART, "mean distance of confidence and accuracy"),
        ("<split>/images", "images", "that were counted"),
    ),
    *_of(
        "analyze",
        ("images", "images", "that are averaged over"),
        ("attention_distance/layer_<layer>", "pixels", "mean over heads of the distance that attention goes"),
        ("attention_entropy/layer_<layer>", "nats", "mean over heads of attention's entropy"),
        ("untrained/attention_distance/layer_<layer>", "pixels", "of the untrained network", "with `untrained`"),
        ("untrained/attention_entropy/layer_<layer>", "nats", "of the untrained network", "with `untrained`"),
    ),
    *_of(
        "scaling",
        ("models", "models", "that are compared"),
        ("exaflops", "10¹⁸ operations", "of all of their pretraining, as far as known"),
        ("spearman", "1", "rank correlation of few-shot and fine-tuned accuracy", "of three models or more"),
    ),
)


def of_kind(metrics: tuple[Metric, ...], kind: str) -> list[Metric]:
    """Those that stages of a kind have."""
    return [metric for metric in metrics if kind in metric.kinds]
