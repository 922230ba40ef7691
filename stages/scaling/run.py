"""The figures over several runs: each as a picture, its numbers beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.context import Context, Inputs, Result
from stages.rendered import csv_bytes
from stages.scaling import figures, tables
from stages.scaling.config import ScalingConfig
from stages.scaling.matching import check_evaluated, fewshot_accuracies, finetuned_accuracies
from stages.scaling.models import Pretrained, pretrained_models

Files = dict[str, bytes]
Found = tuple[Files, str]
"""The files of a figure, and what it shows, or why it is left out."""
NAMES = {"finetuned": "fine-tuned", "fewshot": "few-shot"}


def run(config: ScalingConfig, inputs: Inputs, context: Context) -> Result:
    """Match accuracies and models, put repeats together, draw what there is enough of. Raises UserError."""
    models = pretrained_models(config, inputs)
    found = {
        "finetuned": finetuned_accuracies(config, inputs, models),
        "fewshot": fewshot_accuracies(config, inputs, models, context.storage),
    }
    check_evaluated(config, models, *found.values())
    rows, pairs = tables.group_rows(models, found), tables.model_rows(models, found)
    rho = tables.spearman(pairs)
    drawn = {
        "compute.png": _compute(config, rows, models),
        "data.png": _data(config, rows),
        "agreement.png": _agreement(config, pairs, rho),
    }
    files = {name: body for own, _ in drawn.values() for name, body in own.items()}
    shown = {"scaling": rows, "figures": [{"figure": name, "of": about} for name, (_, about) in drawn.items()]}
    written = [context.write(name, body) for name, body in files.items()]
    output = context.commit("figures", written, {"format": 1, **shown})
    return Result(output=output, metrics=tables.metrics(models, rho), tables=shown)


def _compute(config: ScalingConfig, rows: Sequence[tables.Row], models: Sequence[Pretrained]) -> Found:
    kinds = tables.shown_kinds(rows, "exaflops")
    if not kinds:
        return {}, "left out: it needs evaluated models of two different costs of pretraining"
    files = {"compute.png": figures.compute_figure(kinds, _labels(config)), "compute.csv": _numbers(kinds, rows)}
    about = f"accuracy against exaFLOPs of pretraining{_told(kinds)}"
    if unknown := sum(model.exaflops is None for model in models):
        about += f"; without {unknown} imported, of which no compute is known"
    return files, about


def _data(config: ScalingConfig, rows: Sequence[tables.Row]) -> Found:
    kinds = tables.shown_kinds(rows, "train_images")
    if not kinds:
        return {}, "left out: it needs evaluated models of two different numbers of pretraining images"
    files = {"data.png": figures.data_figure(kinds, _labels(config)), "data.csv": _numbers(kinds, rows)}
    return files, f"accuracy against the number of pretraining images{_told(kinds)}; lines join the longest trainings"


def _agreement(config: ScalingConfig, pairs: Sequence[tables.Row], rho: float | None) -> Found:
    if len(pairs) < 2:
        return {}, "left out: it needs two models or more with both few-shot and fine-tuned accuracy"
    few = len(pairs) < tables.ENOUGH_FOR_RANKS
    why = f"fewer than {tables.ENOUGH_FOR_RANKS}" if few else "all equal in one of them"
    said = f"no Spearman's ρ: {why}" if rho is None else f"Spearman's ρ = {rho:.2f}".replace("-", "−")
    title = f"{len(pairs)} pretrained models, {said}"
    files = {
        "agreement.png": figures.agreement_figure(pairs, _labels(config), title),
        "agreement.csv": csv_bytes(pairs),
    }
    return files, f"few-shot against fine-tuned accuracy, a dot for each of {title}"


def _labels(config: ScalingConfig) -> dict[str, str]:
    """What the axes of the accuracies are called."""
    split = config.metric.rpartition("/")[0]
    classes = "" if config.class_set == "all" else f", {config.class_set.replace('_', '-')} classes"
    classifier = "" if config.classifier == "least_squares" else f", {config.classifier.replace('_', ' ')}"
    return {
        "finetuned": f"fine-tuned {split} accuracy (%)",
        "fewshot": f"{config.shots}-shot accuracy{classes}{classifier} (%)",
    }


def _numbers(kinds: Mapping[str, Sequence[tables.Row]], rows: Sequence[tables.Row]) -> bytes:
    """The rows that a figure's panels show, with those kinds of accuracy alone."""
    hidden = tuple(kind for kind in tables.KINDS if kind not in kinds)
    own: list[dict[str, Any]] = [
        {key: value for key, value in row.items() if not key.startswith(hidden)}
        for row in rows
        if any(row in shown for shown in kinds.values())
    ]
    return csv_bytes(own)


def _told(kinds: Mapping[str, Sequence[tables.Row]]) -> str:
    """Which kinds are shown, of how many points, which are not, and what bars mean where there are any."""
    points = ", ".join(f"{NAMES[kind]}: {len(rows)} points" for kind, rows in kinds.items())
    repeated = figures.has_bars(kinds)
    lacking = "".join(f"; no {NAMES[kind]} panel, for want of two" for kind in tables.KINDS if kind not in kinds)
    return f" ({points}){'; bars are standard deviations over repeats' if repeated else ''}{lacking}"
