"""Where only the images that are drawn have features, accuracies are those of all of them."""

import numpy as np
import pytest

from stages.classifiers.config import ClassifierSettings
from stages.classifiers.drawn import DrawnProblem, drawn_places
from stages.classifiers.draws import draw
from stages.classifiers.evaluate import Problem, evaluate
from stages.frozen.store import Images

CLASSES = {"all": (0, 1, 2, 3, 4), "held_out": (3, 1)}


def images(count: int, seed: int) -> Images:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, count)
    features = np.random.default_rng(0).normal(size=(5, 12))[labels] + random.normal(size=(count, 12))
    return Images(features=features.astype(np.float32), labels=labels)


def rows(own: Images, places) -> Images:
    return Images(features=own.features[places], labels=own.labels[places])


POOL, TEST = images(600, 1), images(200, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"regularisation_by": "validation", "validation_images": 6, "candidates": (1.0, 1024.0)},
        {"regularisation_by": "leave_one_out", "candidates": (1.0, 1024.0)},
        {"classifiers": ("neighbours", "linear_probe"), "shots": (2,)},
    ],
)
def test_accuracies_are_those_of_all_images(fields):
    settings = ClassifierSettings.model_validate({"shots": (1, 3, 8), "draws": 3, **fields})
    places = drawn_places(settings, CLASSES.values(), POOL.labels)
    assert len(places) < len(POOL.labels) / 2
    for classes in CLASSES.values():
        few = DrawnProblem(settings, rows(POOL, places), TEST, classes, places=places, labels=POOL.labels)
        found, expected = (evaluate(settings, problem) for problem in (few, Problem(POOL, TEST, classes)))
        assert found.keys() == expected.keys()
        for key, scores in expected.items():
            np.testing.assert_allclose(found[key].values, scores.values, atol=1 / len(few.truth))
            np.testing.assert_array_equal(found[key].regularisation, scores.regularisation)


def test_only_what_is_drawn_is_asked_for():
    settings = ClassifierSettings(shots=(2, 5), draws=2)
    expected = {
        place for classes in CLASSES.values() for seed in range(2) for place in draw(POOL.labels, classes, seed, 5)
    }
    assert drawn_places(settings, CLASSES.values(), POOL.labels).tolist() == sorted(expected)


def test_an_image_that_is_missing_is_passed_over():
    settings = ClassifierSettings(shots=(4,), draws=2)
    places = drawn_places(settings, [CLASSES["all"]], POOL.labels)
    gone = draw(POOL.labels, CLASSES["all"], 0, 4)[1]
    left = places[places != gone]
    problem = DrawnProblem(settings, rows(POOL, left), TEST, CLASSES["all"], places=left, labels=POOL.labels)
    drawn = [left[own].tolist() for own in problem.permuted(0)]
    expected = draw(POOL.labels, CLASSES["all"], 0, 4).reshape(5, 4).tolist()
    expected[0].remove(gone)
    assert drawn == expected
