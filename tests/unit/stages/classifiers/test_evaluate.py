"""Accuracies against the formulas as they are written down, and against scikit-learn where it has the same method."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV

from cluster.errors import UserError
from stages.classifiers.evaluate import Problem, evaluate
from stages.classifiers.least_squares import Dual, Primal, system
from stages.classifiers.linear import LinearClassifier, predictions
from stages.classifiers.moments import Moments
from stages.classifiers.neighbours import neighbour_predictions
from stages.classifiers.probe import probe
from stages.classifiers.selection import best, best_by_rank
from stages.fewshot.config import FewshotConfig
from stages.frozen.store import Images
from tests.unit.stages.classifiers import statement

CANDIDATES = (2.0**-10, 0.5, 16.0, 1024.0, 2.0**19)


def images(count, width, classes, seed=0, scale=True):
    """Features in float32 of very different sizes and places; every class has some of the first 2 C."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.tile(np.arange(classes), 2), random.integers(0, classes, count)])[:count]
    features = random.normal(size=(classes, width))[labels] + random.normal(size=(count, width))
    if scale:
        features = features * 10.0 ** random.integers(-2, 3, width) + 3 * random.normal(size=width)
    return Images(features=features.astype(np.float32), labels=labels)


def config(**fields):
    given = {"data": "d", "from": "m", "shots": (1, 3, 8), "draws": 2, "candidates": CANDIDATES}
    return FewshotConfig.model_validate({**given, **fields})


def found(pool, test, classes, **fields):
    return evaluate(config(**fields), Problem(pool, test, range(classes)))


def expected(pool, test, classes, seed, shots, regularisation):
    """The accuracy by the statement, and by how much ties may change it."""
    chosen = statement.drawn(pool.labels, classes, seed, 0, shots)
    rows = statement.scores(pool.features[chosen], pool.labels[chosen], classes, test.features, regularisation)
    ties = sum(statement.is_tie(row) for row in rows)
    return float(np.mean(rows.argmax(axis=1) == test.labels)), ties / len(rows)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(8, 90),
    width=st.integers(1, 30),
    classes=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    regularisation=st.sampled_from([2.0**-10, 1.0, 1024.0]),
    constant=st.booleans(),
)
def test_accuracies_are_those_of_the_formulas(count, width, classes, seed, regularisation, constant):
    pool, test = images(count, width, classes, seed), images(60, width, classes, seed + 1)
    if constant:
        # In the pool alone: among the test images it takes other values.
        pool.features[:, 0] = 0.1
    scores = found(pool, test, classes, regularisation=regularisation)
    for shots in (1, 3, 8):
        for draw in range(2):
            accuracy, ties = expected(pool, test, classes, draw, shots, regularisation)
            assert abs(scores["least_squares", shots].values[draw, 0] - accuracy) <= ties + 1e-12


@pytest.mark.parametrize(("count", "width"), [(40, 9), (16, 9), (9, 9), (12, 40)])
def test_leave_one_out_is_what_leaving_each_one_out_gives(count, width):
    own = images(count, width, 3)
    order = np.argsort(own.labels, kind="stable")
    few, labels = own.features[order], own.labels[order]
    solved = system(few, labels, 3)
    assert isinstance(solved, Primal if count > width else Dual)
    one_by_one = [statement.leave_one_out(few, labels, 3, value) for value in CANDIDATES]
    np.testing.assert_allclose(solved.leave_one_out(CANDIDATES), one_by_one, rtol=1e-6)


@pytest.mark.parametrize(("count", "width"), [(120, 20), (15, 40)])
def test_leave_one_out_chooses_as_scikit_learn(count, width):
    own = images(count, width, 5, seed=3)
    order = np.argsort(own.labels, kind="stable")
    few, labels = own.features[order], own.labels[order]
    errors = system(few, labels, 5).leave_one_out(CANDIDATES)
    peer = RidgeClassifierCV(alphas=CANDIDATES, fit_intercept=False, store_cv_results=True)
    peer.fit(statement.design(few, few), labels)
    np.testing.assert_allclose(errors, peer.cv_results_.mean(axis=(0, 1)), rtol=1e-6)
    assert best(CANDIDATES, -errors) == peer.alpha_


def test_leave_one_out_is_the_policy_of_every_draw():
    pool, test = images(80, 12, 4), images(50, 12, 4, seed=1)
    scores = found(pool, test, 4, regularisation_by="leave_one_out")
    for shots in (1, 3, 8):
        for draw in range(2):
            chosen = statement.drawn(pool.labels, 4, draw, 0, shots)
            few, labels = pool.features[chosen], pool.labels[chosen]
            errors = [statement.leave_one_out(few, labels, 4, value) for value in CANDIDATES]
            own = scores["least_squares", shots]
            assert own.regularisation[draw, 0] == CANDIDATES[int(np.argmin(errors))]
            accuracy, ties = expected(pool, test, 4, draw, shots, own.regularisation[draw, 0])
            assert abs(own.values[draw, 0] - accuracy) <= ties + 1e-12


def test_validation_looks_at_the_images_after_the_shots():
    pool, test = images(120, 12, 4), images(50, 12, 4, seed=1)
    scores = found(pool, test, 4, regularisation_by="validation", validation_images=5)
    for shots in (1, 3, 8):
        for draw in range(2):
            rows = statement.drawn(pool.labels, 4, draw, 8, 13)
            apart = Images(features=pool.features[rows], labels=pool.labels[rows])
            by_value = [expected(pool, apart, 4, draw, shots, value)[0] for value in CANDIDATES]
            chosen = max(v for v, a in zip(CANDIDATES, by_value, strict=True) if a == max(by_value))
            assert scores["least_squares", shots].regularisation[draw, 0] == chosen
    with pytest.raises(UserError, match="no class has more than shots=1000 images"):
        found(pool, test, 4, shots=(1, 1000), regularisation_by="validation")


def test_global_rank_has_the_test_accuracy_of_every_candidate():
    pool, test = images(80, 12, 4), images(50, 12, 4, seed=1)
    scores = found(pool, test, 4, regularisation_by="global_rank")["least_squares", 3]
    assert scores.values.shape == (2, len(CANDIDATES))
    for draw in range(2):
        for number, value in enumerate(CANDIDATES):
            accuracy, ties = expected(pool, test, 4, draw, 3, value)
            assert abs(scores.values[draw, number] - accuracy) <= ties + 1e-12


def test_the_best_of_ranks_is_no_mean_of_accuracies():
    # The first data set's accuracies differ by a lot, the others' by a little, in the other direction.
    by_data_set = [np.array([0.9, 0.1, 0.1]), np.array([0.50, 0.51, 0.52]), np.array([0.50, 0.51, 0.52])]
    assert best_by_rank((1.0, 2.0, 4.0), by_data_set) == 4.0
    assert best_by_rank((1.0, 2.0, 4.0), by_data_set[:1]) == 1.0
    assert best((1.0, 4.0, 2.0), np.array([0.5, 0.5, 0.5])) == 4.0


@settings(deadline=None, max_examples=40)
@given(classes=st.integers(1, 6), width=st.integers(1, 40), shift=st.sampled_from([0.0, 1e3]), seed=st.integers(0, 99))
def test_products_in_float32_choose_as_float64(classes, width, shift, seed):
    random = np.random.default_rng(seed)
    rows = (random.normal(size=(300, width)) + shift).astype(np.float32)
    weights = random.normal(size=(width, classes)) * 10.0 ** random.integers(-4, 5)
    # Nearly equal columns: scores whose difference float32 cannot see.
    weights[:, -1] = weights[:, 0] * (1 + 1e-9)
    centre = random.normal(size=width) + shift
    own = LinearClassifier(centre=centre, weights=weights, offset=random.normal(size=classes))
    twin = LinearClassifier(centre=centre + 0.5, weights=weights[:, ::-1], offset=np.zeros(classes))
    said = [np.concatenate(parts) for parts in zip(*(p for _, p in predictions(rows, [own, twin])), strict=True)]
    for classifier, answer in zip((own, twin), said, strict=True):
        exact = classifier.scores(rows)
        sure = ~np.array([statement.is_tie(row, 1e-13) for row in exact])
        assert np.array_equal(answer[sure], exact.argmax(axis=1)[sure])


def test_sums_that_lose_their_digits_are_made_anew():
    random = np.random.default_rng(0)
    rows = random.normal(size=(60, 5)) + np.array([0, 0, 1e6, 0, 0])
    labels = np.sort(random.integers(0, 3, 60))
    moments = Moments(np.zeros(5), 3)
    moments.add(rows, labels)
    assert not moments.are_exact()
    np.testing.assert_allclose(
        system(rows, labels, 3, moments).fit(1.0).scores(rows),
        statement.scores(rows, labels, 3, rows, 1.0),
        rtol=0,
        atol=1e-8,
    )


@pytest.mark.parametrize("shots", [1, 5])
def test_neighbours_vote_with_their_cosines(shots):
    pool, test = images(80, 12, 4, scale=False), images(60, 12, 4, seed=1, scale=False)
    scores = found(pool, test, 4, shots=(1, 5), classifiers=("neighbours",), neighbours=7, temperature=0.1)
    for draw in range(2):
        chosen = statement.drawn(pool.labels, 4, draw, 0, shots)
        few, rows = (part / np.linalg.norm(part, axis=1)[:, None] for part in (pool.features[chosen], test.features))
        cosines = rows.astype(np.float64) @ few.astype(np.float64).T
        right = 0
        for row, truth in zip(cosines, test.labels, strict=True):
            nearest = np.argsort(-row)[:7]
            votes = np.bincount(pool.labels[chosen][nearest], np.exp(row[nearest] / 0.1), 4)
            right += votes.argmax() == truth
        assert scores["neighbours", shots].values[draw, 0] == right / len(rows)


def test_features_of_zeros_have_neighbours_too():
    few, labels = np.eye(3, dtype=np.float32), np.arange(3)
    said = neighbour_predictions(
        np.array([[0, 0, 0], [0, 0, 1]], np.float32), few, labels, [3], classes=3, neighbours=1, temperature=0.07
    )
    assert said[0, 1] == 2


def test_the_probe_is_scikit_learns():
    every = images(130, 8, 4)
    few, labels, rows = every.features[:90].astype(np.float64), every.labels[:90], every.features[90:]
    ours = probe(few, labels, 4, 2.0).scores(rows)
    mean, deviation = few.mean(axis=0), few.std(axis=0) + 1e-5
    peer = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit((few - mean) / deviation, labels)
    theirs = peer.decision_function((rows - mean) / deviation)
    # What is added to all classes alike changes no probability.
    np.testing.assert_allclose(ours - ours.mean(axis=1)[:, None], theirs - theirs.mean(axis=1)[:, None], atol=1e-3)
    assert np.array_equal(ours.argmax(axis=1), peer.predict((rows - mean) / deviation))


ALL = {"classifiers": ("least_squares", "neighbours", "linear_probe")}


@pytest.mark.parametrize("policy", ["fixed", "validation", "leave_one_out", "global_rank"])
def test_of_one_class_everything_is_right(policy):
    pool, test = images(40, 5, 1), images(20, 5, 1, seed=1)
    for scores in found(pool, test, 1, regularisation_by=policy, **ALL).values():
        assert (scores.values == 1.0).all()


@pytest.mark.parametrize("policy", ["fixed", "leave_one_out", "global_rank"])
def test_fewer_images_than_shots_are_all_that_there_are(policy):
    pool, test = images(12, 5, 3), images(20, 5, 3, seed=1)
    scores = found(pool, test, 3, shots=(50, 100), regularisation_by=policy, **ALL)
    for name in ALL["classifiers"]:
        np.testing.assert_array_equal(scores[name, 50].values, scores[name, 100].values)
        # Every draw is the same set.
        assert (scores[name, 50].values == scores[name, 50].values[0]).all()


@pytest.mark.parametrize("policy", ["fixed", "validation", "leave_one_out", "global_rank"])
def test_features_that_are_all_constant_say_the_first_of_the_most_frequent(policy):
    labels = np.array([0] * 9 + [1] * 30 + [2] * 9)
    pool = Images(features=np.full((48, 6), 0.1, dtype=np.float32), labels=labels)
    test = Images(features=np.full((10, 6), 0.1, dtype=np.float32), labels=np.array([1] * 4 + [0] * 6))
    scores = found(pool, test, 3, shots=(1, 20), regularisation_by=policy, **ALL)
    assert (scores["least_squares", 20].values == 0.4).all()
    assert (scores["least_squares", 1].values == 0.6).all()
    assert (scores["linear_probe", 20].values == 0.4).all()


def test_classes_that_have_no_test_images_count_as_wrong_answers_alone():
    pool, test = images(80, 12, 4), images(50, 12, 4, seed=1)
    few = test.labels < 2
    scores = found(pool, Images(features=test.features[few], labels=test.labels[few]), 4)
    for draw in range(2):
        chosen = statement.drawn(pool.labels, 4, draw, 0, 3)
        rows = statement.scores(pool.features[chosen], pool.labels[chosen], 4, test.features[few], 1024.0)
        assert scores["least_squares", 3].values[draw, 0] == np.mean(rows.argmax(axis=1) == test.labels[few])


def test_classes_are_told_apart_among_themselves():
    pool, test = images(120, 12, 6), images(90, 12, 6, seed=1)
    some = (4, 1, 3)
    scores = evaluate(config(), Problem(pool, test, some))
    called = {label: place for place, label in enumerate(some)}
    kept = [np.isin(own.labels, some) for own in (pool, test)]
    few, rows = (
        Images(features=own.features[k], labels=np.array([called[i] for i in own.labels[k].tolist()]))
        for own, k in zip((pool, test), kept, strict=True)
    )
    for draw in range(2):
        accuracy, ties = expected(few, rows, 3, draw, 3, 1024.0)
        assert abs(scores["least_squares", 3].values[draw, 0] - accuracy) <= ties + 1e-12


def test_of_equal_cosines_earlier_images_vote():
    few = np.ones((40, 3), dtype=np.float32)
    labels = np.repeat(np.arange(4), 10)
    for neighbours, expected in ((5, 0), (10, 0), (20, 0)):
        found = neighbour_predictions(few[:2], few, labels, [40], classes=4, neighbours=neighbours, temperature=0.07)
        assert found.tolist() == [[expected] * 2]
    nearer = few.copy()
    nearer[35] = [1, 1, 1.001]
    order = neighbour_predictions(nearer[35:36], nearer, labels, [40], classes=4, neighbours=1, temperature=0.07)
    assert order.tolist() == [[3]]


def test_candidates_that_cannot_be_computed_with_are_refused():
    with pytest.raises(UserError, match=r"candidates=1e\+300: so far from 1 that nothing can be computed"):
        best([1.0, 1e300], np.array([0.5, np.nan]))
