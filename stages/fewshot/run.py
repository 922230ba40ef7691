"""Few-shot evaluation of frozen features, beside raw pixels and the same network untrained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cluster.errors import UserError
from stages.context import Context, Inputs, Result, canonical_json
from stages.fewshot.config import FewshotConfig
from stages.fewshot.evaluate import Problem, Scores, evaluate
from stages.fewshot.figure import accuracy_figure
from stages.fewshot.selection import best_by_rank
from stages.fewshot.tables import Count, Key, accuracy_rows, comparison_rows, metrics
from stages.frozen.extract import extract
from stages.frozen.store import FeatureSet, Images, read_features

CLASS_SETS = ("all", "seen", "held_out")


def run(config: FewshotConfig, inputs: Inputs, context: Context) -> Result:
    """Accuracy by class set, kind of features and number of shots: mean and standard error over draws."""
    sets = _feature_sets(config, inputs, context)
    class_sets = {name: choose_class_sets(config, own) for name, own in sets.items()}
    found: dict[Key, Scores] = {}
    counts: dict[tuple[str, str], Count] = {}
    for name, features in sets.items():
        for kind in features.kinds:
            pool, test = features.load(kind)
            _check_images(class_sets[name], features, pool, test)
            for class_set, members in class_sets[name].items():
                problem = Problem(pool, test, members)
                counts[name, class_set] = Count(classes=len(members), test_images=len(problem.truth))
                for (classifier, shots), scores in evaluate(config, problem).items():
                    key = Key(data=name, class_set=class_set, features=kind, classifier=classifier, shots=shots)
                    found[key] = scores
    if config.regularisation_by == "global_rank":
        found = _ranked(config, found)
    found = dict(sorted(found.items(), key=lambda item: _place(item[0], sets)))
    return _commit(context, found, counts, sets, class_sets)


def choose_class_sets(config: FewshotConfig, features: FeatureSet) -> dict[str, tuple[int, ...]]:
    """The classes of each set. `seen` and `held_out` are there where the model was trained without the latter."""
    everything = tuple(range(len(features.classes)))
    known = {"all": everything}
    if features.never_trained_on:
        known["seen"] = tuple(i for i in everything if i not in features.held_out)
        known["held_out"] = tuple(sorted(features.held_out))
    wanted = config.class_sets or tuple(known)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise UserError(
            f"class_sets={list(wanted)}: {', '.join(missing)} needs a model that was trained on this data set without "
            f"its held-out classes; possible here: {', '.join(known)}"
        )
    return {name: known[name] for name in wanted}


def _feature_sets(config: FewshotConfig, inputs: Inputs, context: Context) -> dict[str, FeatureSet]:
    """By the data sets' names; by the stages' where two have the same."""
    if not config.features:
        own = extract(config, inputs["data"], inputs["model"], context)
        return {own.name: own}
    found = [read_features(context.storage, inputs[f"features.{i}"]) for i in range(len(config.features))]
    names = [own.name for own in found]
    if len(set(names)) < len(names):
        names = list(config.features)
    return dict(zip(names, found, strict=True))


def _check_images(class_sets: Mapping[str, tuple[int, ...]], features: FeatureSet, pool: Images, test: Images) -> None:
    """Every set needs images to test on, and every class one to learn from. Raises UserError."""
    for class_set, members in class_sets.items():
        if not members:
            raise UserError(f"data set {features.name!r} has no classes to tell apart: look at its ingestion")
        if not np.isin(test.labels, members).any():
            raise UserError(f"no test images of the {class_set} classes: raise test_fraction of the ingestion")
        there = set(np.unique(pool.labels).tolist())
        empty = [features.classes[i] for i in members if i not in there]
        if empty:
            raise UserError(f"no images to draw shots from for the classes {', '.join(empty)}: lower test_fraction")


def _ranked(config: FewshotConfig, found: Mapping[Key, Scores]) -> dict[Key, Scores]:
    """Least squares with one λ for all data sets, for each number of shots, set of classes and kind of features."""
    chosen = dict(found)
    for key, scores in found.items():
        if key.classifier != "least_squares":
            continue
        alike = [own for other, own in found.items() if {**vars(other), "data": key.data} == vars(key)]
        value = best_by_rank(config.candidates, [own.values.mean(axis=0) for own in alike])
        column = [config.candidates.index(value)]
        chosen[key] = Scores(values=scores.values[:, column], regularisation=scores.regularisation[:, column])
    return chosen


def _place(key: Key, sets: Mapping[str, FeatureSet]) -> tuple[int, int, int, int]:
    """Where a row stands: by data set, set of classes, kind of features, shots; classifiers in the order given."""
    own = sets[key.data]
    return (list(sets).index(key.data), CLASS_SETS.index(key.class_set), own.kinds.index(key.features), key.shots)


def _commit(
    context: Context,
    found: Mapping[Key, Scores],
    counts: Mapping[tuple[str, str], Count],
    sets: Mapping[str, FeatureSet],
    class_sets: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> Result:
    rows = accuracy_rows(found, counts)
    tables = {"fewshot": rows, "comparison": comparison_rows(found)}
    files = [
        # Addresses in it are meant of the folder of the stage that computed the features: this one's, or another's.
        context.write("features.json", canonical_json({name: own.meta for name, own in sets.items()})),
        context.write("table.json", canonical_json(tables)),
        context.write("fewshot.png", accuracy_figure(rows)),
    ]
    skipped = [name for name in CLASS_SETS if not any(name in own for own in class_sets.values())]
    figures = metrics(rows)
    meta = {"format": 1, "metrics": figures, **tables, "skipped_class_sets": skipped}
    return Result(output=context.commit("evaluation", files, meta), metrics=figures, tables=tables)
