"""The numbers at the head of a report, and what the workflow has used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.document import Cost, Figure, Span, StageReport
from pipeline.words import duration
from stages.context import Output
from stages.models.config import model_config
from stages.models.masked_config import MaskedConfig
from stages.training.memory import Network

SHOTS = 10
"""Images of each class that the few-shot figure is of; the most where there are none of these."""
CLASS_SETS = {"all": "all classes", "held_out": "classes never seen", "seen": "classes seen"}
MOST = 6
"""Accuracies at the head."""
UNITS = ((1.0, "exaFLOPs"), (1e-3, "petaFLOPs"), (1e-6, "teraFLOPs"), (1e-9, "gigaFLOPs"))


def work(output: Output) -> tuple[int, float] | None:
    """Images that a model was trained on, each as often as it was seen, and the exaFLOPs of that by formula.

    None of what is no model, was imported, or was made by a version that did not tell.
    """
    meta = output.meta
    if output.kind != "model" or "imported" in meta or "images_seen" not in meta:
        return None
    objective = meta.get("objective")
    network = Network(
        model=model_config(meta["model"]),
        resolution=meta["resolution"],
        num_classes=meta["num_classes"],
        masked=MaskedConfig.model_validate(objective) if objective else None,
    )
    return int(meta["images_seen"]), network.exaflops(int(meta["images_seen"]))


def figures(stages: Sequence[StageReport], fewshot: Mapping[str, list[dict[str, Any]]], cost: Cost) -> list[Figure]:
    """What people look for first. `fewshot` has the rows of the stages that evaluate with few images."""
    accuracies = [*_fewshot(fewshot), *_accuracies(stages)]
    return [*accuracies[:MOST], *_work(stages), *_used(cost)]


def _fewshot(tables: Mapping[str, list[dict[str, Any]]]) -> Iterator[Figure]:
    for stage, rows in tables.items():
        first = rows[0]
        alike = [row for row in rows if (row["data"], row["classifier"]) == (first["data"], first["classifier"])]
        shots = SHOTS if any(row["shots"] == SHOTS for row in alike) else max(row["shots"] for row in alike)
        own = [row for row in alike if row["shots"] == shots]
        for class_set in ("all", "held_out"):
            found = {row["features"]: row["accuracy"] for row in own if row["class_set"] == class_set}
            if "features" not in found:
                continue
            beside = {"untrained": "untrained", "pixels": "raw pixels"}
            told = [f"{beside[kind]} {100 * found[kind]:.1f} %" for kind in beside if kind in found]
            yield Figure(
                name=f"{stage}/{class_set}/{shots}_shot",
                label=f"{shots}-shot accuracy, {CLASS_SETS[class_set]}",
                value=found["features"],
                text=f"{100 * found['features']:.1f} %",
                detail=", ".join([stage, *told]),
            )


def _accuracies(stages: Iterable[StageReport]) -> Iterator[Figure]:
    """Of each kind of stage the best one, since a sweep has many."""
    by_kind: dict[str, list[StageReport]] = {}
    for stage in stages:
        if "test/accuracy" in stage.metrics and stage.kind != "choice":
            by_kind.setdefault(stage.kind, []).append(stage)
    for kind, own in reversed(by_kind.items()):
        best = max(own, key=lambda stage: stage.metrics["test/accuracy"])
        value = best.metrics["test/accuracy"]
        yield Figure(
            name=f"{best.name if len(own) == 1 else kind}/test/accuracy",
            label=f"test accuracy, {best.name if len(own) == 1 else kind}",
            value=value,
            text=f"{100 * value:.1f} %",
            detail=_validation(best) if len(own) == 1 else f"the best of {len(own)}: {best.name}",
        )


def _validation(stage: StageReport) -> str:
    value = stage.metrics.get("validation/accuracy")
    return f"validation {100 * value:.1f} %" if value is not None else ""


def _work(stages: Sequence[StageReport]) -> Iterator[Figure]:
    trained = [stage for stage in stages if stage.images_seen]
    if not trained:
        return
    seen = sum(stage.images_seen or 0 for stage in trained)
    each = ", ".join(f"{stage.name} {stage.images_seen:,}" for stage in trained[:3])
    more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
    yield Figure(name="images_seen", label="images seen", value=seen, text=f"{seen:,}", detail=each + more)
    known = [stage.exaflops for stage in trained if stage.exaflops is not None]
    if known:
        total = sum(known)
        yield Figure(
            name="exaflops",
            label="training, by formula",
            value=total,
            text=operations(total),
            detail="forward and backward" if total >= 1 else f"{total:.3g} exaFLOPs, forward and backward",
        )


def operations(exaflops: float) -> str:
    """A number of operations with the unit in which it is easily read."""
    scale, unit = next(((scale, unit) for scale, unit in UNITS if exaflops >= scale), UNITS[-1])
    return f"{exaflops / scale:.3g} {unit}"


def _used(cost: Cost) -> Iterator[Figure]:
    saved = f"reuse saved {duration(cost.saved_seconds)}" if cost.saved_seconds else ""
    yield Figure(
        name="seconds",
        label="time at work",
        value=cost.seconds,
        text=duration(cost.seconds),
        detail=saved,
    )
    for name, hours, label in (
        ("gpu_hours", cost.gpu_hours, "GPU time"),
        ("process_hours", cost.process_hours, "worker time on CPUs"),
    ):
        if hours:
            text = f"{hours:,.1f} h" if hours >= 1 else duration(3600 * hours)
            yield Figure(name=name, label=label, value=hours, text=text, detail="of training")
    if cost.money is not None:
        yield Figure(
            name="money",
            label="money",
            value=cost.money,
            text=f"{cost.money:,.2f}",
            detail=f"{cost.price:g} for a GPU and hour" if cost.gpu_hours else "no GPU was used",
        )


def cost(stages: Sequence[StageReport], price: float | None) -> Cost:
    """What the attempts of this workflow's own drivers have used."""
    spans = [(stage, span) for stage in stages for span in stage.spans]
    training = [span for stage, span in spans if stage.updates or stage.images_seen]
    gpu_hours = sum(span.seconds * span.gpus for _, span in spans) / 3600
    return Cost(
        seconds=sum(end - start for start, end in busy([span for _, span in spans])) / 1000,
        process_hours=sum(span.seconds * span.processes for span in training if not span.gpus) / 3600,
        gpu_hours=gpu_hours,
        price=price,
        money=None if price is None else price * gpu_hours,
        saved_seconds=sum(stage.seconds or 0.0 for stage in stages if stage.outcome == "reused"),
    )


def busy(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """The times, in milliseconds, at which at least one attempt was at work, in order and apart from each other."""
    found: list[tuple[int, int]] = []
    for start, end in sorted((span.started_ms, span.ended_ms) for span in spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
