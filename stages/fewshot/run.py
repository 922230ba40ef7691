"""Few-shot evaluation of frozen features, beside raw pixels and the same network untrained."""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.context import Context, Inputs, Output, Result, canonical_json
from stages.data.manifest import DatasetMeta, dataset_meta
from stages.fewshot.config import FewshotConfig
from stages.fewshot.draws import draw
from stages.fewshot.features import Features, extract, extractors
from stages.fewshot.figure import accuracy_figure
from stages.fewshot.least_squares import fit
from stages.models.store import load_model

POOL = ("train", "held_out")
TEST = ("test", "held_out_test")


def run(config: FewshotConfig, inputs: Inputs, context: Context) -> Result:
    """Accuracy by class set, kind of features and number of shots: mean and standard error over draws."""
    torch.set_num_threads(config.threads)
    dataset = dataset_meta(inputs["data"])
    class_sets = choose_class_sets(config, dataset, inputs["data"], inputs["model"])
    pool, test = _features(config, inputs, context, dataset)
    _check_images(class_sets, dataset, pool, test)
    accuracies = {
        (class_set, kind, shots): _accuracies(config, pool, test, kind, members, shots)
        for class_set, members in class_sets.items()
        for kind in pool.by_kind
        for shots in sorted(config.shots)
    }
    rows = [
        {
            "class_set": class_set,
            "features": kind,
            "shots": shots,
            "accuracy": float(values.mean()),
            "standard_error": _standard_error(values),
            "draws": config.draws,
            "classes": len(class_sets[class_set]),
            "test_images": int(np.isin(test.labels, class_sets[class_set]).sum()),
        }
        for (class_set, kind, shots), values in accuracies.items()
    ]
    comparison = _comparison(accuracies)
    tables = {"fewshot": rows, "comparison": comparison}
    stored = {f"{name}/{kind}": part.by_kind[kind] for name, part in _parts(pool, test) for kind in part.by_kind}
    stored |= {f"{name}/labels": part.labels for name, part in _parts(pool, test)}
    files = [
        context.write("features.safetensors", safetensors.numpy.save(dict(sorted(stored.items())))),
        context.write("table.json", canonical_json(tables)),
        context.write("fewshot.png", accuracy_figure(rows)),
    ]
    skipped = [name for name in ("all", "seen", "held_out") if name not in class_sets]
    output = context.commit("evaluation", files, {"format": 1, **tables, "skipped_class_sets": skipped})
    metrics = {f"{r['features']}/{r['class_set']}/{r['shots']}_shot": r["accuracy"] for r in rows}
    return Result(output=output, metrics=metrics, tables=tables)


def choose_class_sets(
    config: FewshotConfig, dataset: DatasetMeta, data: Output, model: Output
) -> dict[str, tuple[int, ...]]:
    """The classes of each set. `seen` and `held_out` are there where the model was trained without the latter."""
    everything = tuple(range(len(dataset.classes)))
    known = {"all": everything}
    trained = set(model.meta["class_ids"]) if model.meta["trained_on"] == data.digest else set(everything)
    if dataset.held_out and not trained & set(dataset.held_out):
        known["seen"] = tuple(i for i in everything if i not in dataset.held_out)
        known["held_out"] = tuple(sorted(dataset.held_out))
    wanted = config.class_sets or tuple(known)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise UserError(
            f"class_sets={list(wanted)}: {', '.join(missing)} needs a model that was trained on this data set without "
            f"its held-out classes; possible here: {', '.join(known)}"
        )
    return {name: known[name] for name in wanted}


def _check_images(class_sets: dict[str, tuple[int, ...]], dataset: DatasetMeta, pool: Features, test: Features) -> None:
    """Every set needs images to test on, and every class one to learn from. Raises UserError."""
    for class_set, members in class_sets.items():
        if not np.isin(test.labels, members).any():
            raise UserError(f"no test images of the {class_set} classes: raise test_fraction of the ingestion")
        empty = [dataset.classes[i] for i in members if i not in pool.labels]
        if empty:
            raise UserError(f"no images to draw shots from for the classes {', '.join(empty)}: lower test_fraction")


def _features(
    config: FewshotConfig, inputs: Inputs, context: Context, dataset: DatasetMeta
) -> tuple[Features, Features]:
    model = load_model(context.storage, inputs["model"])
    resolution = config.resolution or model.resolution
    if resolution != model.resolution:
        raise UserError(f"resolution={resolution}: the model has {model.resolution}; fine-tune it to change it")
    by_kind = extractors(model, config.baselines, int(inputs["model"].meta["seed"]))
    found = []
    for splits in (POOL, TEST):
        present = [name for name in splits if name in dataset.splits]
        if not present:
            raise UserError(f"data set {dataset.name!r} has none of the splits {', '.join(splits)}")
        found.append(
            extract(
                context.storage,
                inputs["data"],
                present,
                by_kind,
                resolution=resolution,
                batch=config.batch,
                classes=range(len(dataset.classes)),
                config=config.input,
            )
        )
    return found[0], found[1]


def _accuracies(
    config: FewshotConfig, pool: Features, test: Features, kind: str, classes: tuple[int, ...], shots: int
) -> NDArray[np.float64]:
    """Test accuracy of every draw."""
    inside = np.isin(test.labels, classes)
    position = {label: i for i, label in enumerate(classes)}
    truth = np.array([position[label] for label in test.labels[inside].tolist()])
    features = test.by_kind[kind][inside].astype(np.float64)
    found = []
    for seed in range(config.draws):
        chosen = draw(pool.labels, classes, seed, shots)
        labels = np.array([position[label] for label in pool.labels[chosen].tolist()])
        classifier = fit(pool.by_kind[kind][chosen].astype(np.float64), labels, len(classes), config.regularisation)
        found.append(np.mean(classifier.predict(features) == truth))
    return np.array(found)


def _comparison(accuracies: dict[tuple[str, str, int], NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Trained features minus each baseline, draw by draw: mean difference, its standard error, their ratio."""
    rows = []
    for (class_set, kind, shots), values in accuracies.items():
        if kind == "features":
            continue
        difference = accuracies[class_set, "features", shots] - values
        error = _standard_error(difference)
        mean = float(difference.mean())
        # Differences that are all the same leave a deviation of rounding alone.
        ratio = mean / error if error > 1e-12 else None
        rows.append(
            {"class_set": class_set, "baseline": kind, "shots": shots, "difference": mean, "standard_error": error,
             "standard_errors": ratio}
        )  # fmt: skip
    return rows


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _parts(pool: Features, test: Features) -> tuple[tuple[str, Features], ...]:
    return (("pool", pool), ("test", test))
