"""Few-shot evaluation of frozen features, beside raw pixels and the same network untrained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stages.classifiers.class_sets import CLASS_SETS, check_images, class_sets_of
from stages.classifiers.evaluate import Problem, Scores, evaluate
from stages.classifiers.selection import best_by_rank
from stages.classifiers.tables import Count, Key, accuracy_rows, comparison_rows, metrics
from stages.context import Context, Inputs, Result, canonical_json
from stages.fewshot.config import FewshotConfig
from stages.fewshot.figure import accuracy_figure
from stages.frozen.extract import extract
from stages.frozen.store import FeatureSet, read_features
from stages.rendered import csv_bytes


def run(config: FewshotConfig, inputs: Inputs, context: Context) -> Result:
    """Accuracy by class set, kind of features and number of shots: mean and standard error over draws."""
    sets = _feature_sets(config, inputs, context)
    class_sets = {name: choose_class_sets(config, own) for name, own in sets.items()}
    found: dict[Key, Scores] = {}
    counts: dict[tuple[str, str], Count] = {}
    for name, features in sets.items():
        for kind in features.kinds:
            pool, test = features.load(kind)
            there, tested = (set(np.unique(images.labels).tolist()) for images in (pool, test))
            check_images(class_sets[name], features.name, features.classes, pool=there, test=tested)
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
    """The classes of each set. Raises UserError where one is asked for that the model does not allow."""
    return class_sets_of(
        config.class_sets,
        classes=len(features.classes),
        held_out=features.held_out,
        never_trained_on=features.never_trained_on,
    )


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
        context.write("fewshot.csv", csv_bytes(rows)),
        context.write("fewshot.png", accuracy_figure(rows)),
    ]
    skipped = [name for name in CLASS_SETS if not any(name in own for own in class_sets.values())]
    figures = metrics(rows)
    meta = {"format": 1, "metrics": figures, **tables, "skipped_class_sets": skipped}
    return Result(output=context.commit("evaluation", files, meta), metrics=figures, tables=tables)
