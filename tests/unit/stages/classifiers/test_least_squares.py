"""The closed form against scikit-learn's ridge regression, and against its own other side."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from stages.classifiers.least_squares import fit
from stages.classifiers.linear import LinearClassifier

SIDES = {"more images than features": (60, 17), "as many as columns": (18, 17), "fewer": (17, 17), "few": (5, 40)}
REGULARISATION = 1024.0


def problem(images, columns, classes=4, seed=0):
    """Features to fit to, of very different sizes and places, their labels, and 200 rows more of the same kind."""
    random = np.random.default_rng(seed)
    labels = np.arange(images + 200) % classes
    features = random.normal(size=(classes, columns))[labels] + random.normal(size=(images + 200, columns))
    features = features * 10.0 ** random.integers(-2, 3, columns) + random.normal(size=columns)
    return features[:images], labels[:images], features[images:]


def design(features, seen):
    """Z of big_vision's `fewshot_lsr.py`: standardised by the training images, and a constant of 100."""
    standardised = (seen - features.mean(axis=0)) / (features.std(axis=0, ddof=0) + 1e-5)
    return np.hstack([standardised, np.full((len(seen), 1), 100.0)])


def ridge_scores(features, labels, seen, classes, regularisation=REGULARISATION):
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    ridge = Ridge(alpha=regularisation, fit_intercept=False, solver="svd")
    return ridge.fit(design(features, features), targets).predict(design(features, seen))


def scores(classifier, seen):
    return classifier.scores(seen)


@pytest.mark.parametrize("regularisation", [1e-3, 1024.0])
@pytest.mark.parametrize(("images", "columns"), SIDES.values(), ids=SIDES)
def test_scores_are_those_of_scikit_learns_ridge(images, columns, regularisation):
    features, labels, seen = problem(images, columns)
    classifier = fit(features, labels, 4, regularisation)
    expected = ridge_scores(features, labels, seen, 4, regularisation)
    np.testing.assert_allclose(scores(classifier, seen), expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    assert np.array_equal(classifier.predict(seen), expected.argmax(axis=1))


def test_features_in_float32_lose_nothing_more():
    features, labels, seen = problem(60, 17)
    single = features.astype(np.float32)
    one, other = fit(single, labels, 4, 1.0), fit(single.astype(np.float64), labels, 4, 1.0)
    assert one.weights.dtype == np.float64
    np.testing.assert_allclose(scores(one, seen), scores(other, seen), rtol=0, atol=1e-12)


def test_columns_follow_the_labels():
    features, labels, seen = problem(60, 17)
    order = np.array([2, 0, 3, 1])
    one, other = fit(features, labels, 4, 1.0), fit(features, order[labels], 4, 1.0)
    np.testing.assert_allclose(scores(one, seen), scores(other, seen)[:, order], rtol=0, atol=1e-10)
    assert np.array_equal(order[one.predict(seen)], other.predict(seen))


def test_of_equal_scores_the_first_class_wins():
    # As numpy's and jax's argmax, and so big_vision's accuracy.
    classifier = LinearClassifier(
        centre=np.zeros(2), weights=np.array([[0.0, 1.0, 1.0], [2.0, 0.0, 0.0]]), offset=np.zeros(3)
    )
    assert classifier.predict(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 1.0]])).tolist() == [1, 0, 0, 0]


def test_a_class_without_images_is_never_chosen():
    features, labels, seen = problem(60, 17, classes=3)
    classifier = fit(features, labels, 4, REGULARISATION)
    expected = ridge_scores(features, labels, seen, 4)
    np.testing.assert_allclose(scores(classifier, seen), expected, rtol=0, atol=1e-8)
    assert 3 not in classifier.predict(features)


@pytest.mark.parametrize("images", [60, 8])
def test_a_constant_feature_says_nothing(images):
    # Of zeros, and of a number whose mean is rounded.
    features, labels, seen = problem(images, 17)
    constant = np.hstack([features, np.zeros((images, 1)), np.full((images, 1), 0.1)])
    classifier = fit(constant, labels, 4, REGULARISATION)
    assert np.isfinite(classifier.weights).all()
    assert np.isfinite(classifier.offset).all()
    plain = fit(features, labels, 4, REGULARISATION)
    found = scores(classifier, np.hstack([seen, np.zeros((200, 1)), np.full((200, 1), 0.1)]))
    np.testing.assert_allclose(found, scores(plain, seen), rtol=0, atol=1e-9)


def test_one_image_of_each_class_is_enough():
    features, labels, _ = problem(4, 17)
    assert fit(features, labels, 4, REGULARISATION).predict(features).tolist() == [0, 1, 2, 3]
