"""softxent.sklearn: the estimator keeps scikit-learn's rules, and has the coefficients of LogisticRegression."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
import sklearn
from scipy import sparse
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as log_loss_of_sklearn
from sklearn.model_selection import cross_validate
from sklearn.utils.estimator_checks import estimator_checks_generator
from threadpoolctl import threadpool_limits
from tolerances import FEW64, FLOAT32

import softxent
from softxent.bench.measure import growth
from softxent.sklearn import SOLVERS, SoftmaxRegression, log_loss

ROWS, FEATURES, CLASSES = 120, 6, 5


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The threads of matrix products wait for each other by polling, which takes long while other tests need the cores."""
    with threadpool_limits(1):
        yield


# Array API: it takes arrays of other libraries, if SCIPY_ARRAY_API was set before SciPy was loaded; softxent.sklearn takes those of NumPy.
RULES = [c for _, c in estimator_checks_generator(SoftmaxRegression()) if c.func.__name__ != "check_array_api_input"]


@pytest.mark.parametrize("rule", RULES, ids=lambda c: c.func.__name__)
def test_the_rules_of_scikit_learn(rule):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rule(SoftmaxRegression())


def test_all_rules_are_found():
    assert len(RULES) > 40


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((ROWS, FEATURES)) * (rng.random((ROWS, FEATURES)) < 0.7)
    y = (x @ rng.standard_normal((FEATURES, CLASSES)) + rng.gumbel(size=(ROWS, CLASSES))).argmax(axis=1)
    return x, np.array(["ant", "bee", "cat", "dog", "eel"])[y], rng.random(ROWS) * (rng.random(ROWS) < 0.8)


SOLVED = 2e-6  # both solvers stop where the gradient is below 1e-9, or 1e-7, which is divided by the smallest curvature


def close(fitted, to):
    assert fitted.coef_.shape == to.coef_.shape and fitted.intercept_.shape == to.intercept_.shape
    np.testing.assert_allclose(fitted.coef_, to.coef_, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(fitted.intercept_, to.intercept_, rtol=0, atol=SOLVED)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", [np.asarray, sparse.csc_array], ids=["dense", "csc"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"C": 0.1, "fit_intercept": False},
        {"class_weight": "balanced"},
        {"class_weight": {"ant": 3, "cat": 0.5}},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_the_coefficients_are_those_of_logistic_regression(data, solver, form, options, classes):
    """On weighted and unweighted rows, to 1e-6."""
    x, y, weights = data
    if classes == 2:
        y = np.where(y == "ant", "ant", "cat")
    for w in (None, weights):
        ours = SoftmaxRegression(tol={"lbfgs": 1e-9, "newton-cg": 1e-7}[solver], max_iter=500, solver=solver, budget=4000, **options).fit(
            form(x), y, w
        )
        theirs = LogisticRegression(tol=1e-9, max_iter=500, solver="newton-cholesky", **options).fit(x, y, w)
        close(ours, theirs)
        assert (ours.classes_ == theirs.classes_).all() and ours.n_iter_.shape == (1,)
        np.testing.assert_allclose(ours.decision_function(form(x)), theirs.decision_function(x), rtol=0, atol=3 * SOLVED)
        np.testing.assert_allclose(ours.predict_proba(form(x)), theirs.predict_proba(x), rtol=0, atol=SOLVED)
        np.testing.assert_allclose(ours.predict_log_proba(form(x)), theirs.predict_log_proba(x), rtol=0, atol=3 * SOLVED)
        assert (ours.predict(form(x)) == theirs.predict(x)).all() and ours.score(x, y) == theirs.score(x, y)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_the_solver_is_given_the_derivatives_of_the_loss(data, monkeypatch, form, intercept, classes):
    """The gradient, and products with the Hessian, are differences of the loss and of the gradient."""
    x, y, weights = data
    seen = []

    def differences(f, start, hessp, **options):
        p, v, e = *np.random.default_rng(0).standard_normal((2, start.size)), 1e-5
        (above, up), (below, down) = f(p + e * v), f(p - e * v)
        seen.append((f(p)[1] @ v - (above - below) / (2 * e), hessp(p, v) - (up - down) / (2 * e)))
        return minimize(f, start, hessp=hessp, **options)

    monkeypatch.setattr("softxent.sklearn.minimize", differences)
    SoftmaxRegression(solver="newton-cg", fit_intercept=intercept, budget=4000).fit(
        form(x), np.unique(y)[:classes].repeat(ROWS // classes), weights
    )
    # of differences with the step 1e-5: e^2 / 6 of a third derivative, and 1e-15 / e by rounding
    assert len(seen) == 1 and all(np.abs(difference).max() < 1e-8 for difference in seen[0])


@pytest.mark.parametrize("solver", SOLVERS)
def test_probabilities_and_smoothing_are_weighted_rows(data, solver):
    """A row with probabilities has the loss of C rows that have one label each, and the probabilities as weights."""
    x, y, weights = data
    one_hot = (y[:, None] == np.unique(y)).astype(float)
    u = np.random.default_rng(0).dirichlet(np.ones(CLASSES), ROWS)
    cases = {0.0: (u, u), 0.3: (u, 0.7 * u + 0.3 / CLASSES), 0.2: (y, 0.8 * one_hot + 0.2 / CLASSES)}
    for smoothing, (truth, as_weights) in cases.items():
        ours = SoftmaxRegression(
            tol={"lbfgs": 1e-9, "newton-cg": 1e-7}[solver], max_iter=500, solver=solver, label_smoothing=smoothing
        ).fit(x, truth, weights)
        repeated = np.repeat(x, CLASSES, axis=0), np.tile(np.arange(CLASSES), ROWS), (weights[:, None] * as_weights).ravel()
        close(ours, LogisticRegression(tol=1e-9, max_iter=500, solver="newton-cholesky").fit(*repeated))
    assert (SoftmaxRegression().fit(x, u).classes_ == np.arange(CLASSES)).all()
    weighted = SoftmaxRegression(tol=1e-9, class_weight={1: 4.0}).fit(x, u)
    factor = np.where(np.arange(CLASSES) == 1, 4.0, 1.0)
    close(weighted, SoftmaxRegression(tol=1e-9, C=1.0).fit(x, u * factor))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_stays_float32(data, form, solver):
    x, y, weights = data
    narrow = SoftmaxRegression(solver=solver, C=0.1).fit(form(x.astype(np.float32)), y, weights)
    wide = SoftmaxRegression(solver=solver, C=0.1).fit(x, y, weights)
    found = narrow.decision_function, narrow.predict_proba, narrow.predict_log_proba
    assert {narrow.coef_.dtype, narrow.intercept_.dtype, *(f(form(x.astype(np.float32))).dtype for f in found)} == {np.dtype(np.float32)}
    assert wide.coef_.dtype == np.float64
    np.testing.assert_allclose(narrow.coef_, wide.coef_, rtol=0, atol=FLOAT32)


def test_the_number_of_threads_does_not_change_a_sparse_fit(data):
    x, y = sparse.csr_array(data[0]), np.arange(ROWS) % 40
    found = []
    for threads in (1, 2, 3):
        softxent.set_num_threads(threads)
        found.append(SoftmaxRegression(max_iter=5, tol=10.0).fit(x, y).coef_)
    assert all((f == found[0]).all() for f in found) and found[0].shape == (40, FEATURES)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_scores_are_not_held_at_once():
    rows, classes = 20_000, 500
    x, y = np.random.default_rng(0).standard_normal((rows, 4)), np.arange(rows) % classes
    model = SoftmaxRegression(budget=1 << 20, tol=1.0)
    model.fit(x[:1000], y[:1000])
    assert growth(lambda: model.fit(x, y)) < rows * classes
    assert growth(lambda: model.predict(x)) < rows * classes


def test_a_warm_start_continues(data):
    x, y, _ = data
    model = SoftmaxRegression(warm_start=True, max_iter=1)
    with pytest.warns(
        ConvergenceWarning, match=r"^SoftmaxRegression.fit: lbfgs stopped after 1 iterations, before it reached tol=0.0001"
    ) as seen:
        model.fit(x, y)
    assert seen[0].filename == __file__
    first = model.coef_
    with pytest.warns(ConvergenceWarning):
        assert not (model.fit(x, y).coef_ == first).all()
    whole = SoftmaxRegression(warm_start=True, tol=1e-6, max_iter=500).fit(x, y)
    before, again = whole.coef_, whole.fit(x, y)
    assert again.n_iter_[0] == 0 and (again.coef_ == before).all()
    assert again.fit(x[:, :3], y).coef_.shape == (CLASSES, 3)  # other features: from 0


def test_sample_weights_are_routed(data):
    x, y, weights = data
    with sklearn.config_context(enable_metadata_routing=True):
        model = SoftmaxRegression().set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        found = cross_validate(
            model, x, y, params={"sample_weight": weights}, cv=[(np.arange(80), np.arange(80, ROWS))], return_estimator=True
        )
    assert (found["estimator"][0].coef_ == SoftmaxRegression().fit(x[:80], y[:80], weights[:80]).coef_).all()


def test_no_penalty_and_a_large_gap(data):
    """Two classes that a line separates: without a penalty the coefficients grow, and log-probabilities stay finite."""
    x = np.array([[-1.0], [1.0]])
    model = SoftmaxRegression(C=math.inf, tol=1e-12).fit(x, [0, 1])
    assert model.coef_[0, 0] > 5
    assert np.isfinite(model.predict_log_proba(1e4 * x)).all() and model.predict_proba(1e4 * x).min() == 0
    np.testing.assert_allclose(model.predict_log_proba(x)[1, 1], -np.log1p(np.exp(-model.decision_function(x)[1])), rtol=FEW64)


@pytest.mark.parametrize(
    ("parameters", "arguments", "message"),
    [
        ({"C": 0}, {}, "C must be inf or a finite number of at least"),
        ({"tol": -1}, {}, "tol must be a finite number of at least 0; got -1"),
        ({"solver": "saga"}, {}, "solver must be 'lbfgs' or 'newton-cg'; got 'saga'"),
        ({"max_iter": 0}, {}, "max_iter must be an int of at least 1; got 0"),
        ({"label_smoothing": 2}, {}, "label_smoothing must be a finite number of at least 0 and at most 1; got 2"),
        (
            {"class_weight": "balanced"},
            {"y": np.full((3, 2), 0.5)},
            "class_weight must be None or a dict if y has probabilities; got 'balanced'",
        ),
        ({}, {"y": [1, 1, 1]}, "y must have at least two classes; got one class, "),
        ({}, {"y": np.full((3, 2), -0.5)}, "probabilities y must not be negative; got -0.5"),
        ({}, {"sample_weight": [1, -1, 1]}, r"sample_weight must have shape \(3,\) and no negative or missing entry; got "),
        ({}, {"sample_weight": [0, 0, 0]}, "sample_weight must have an entry that is not zero; got zeros"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(parameters, arguments, message):
    with pytest.raises(ValueError, match=rf"^SoftmaxRegression.fit: {message}"):
        SoftmaxRegression(**parameters).fit(**{"X": np.eye(3), "y": [0, 1, 0]} | arguments)


# ---- log_loss ----


def test_log_loss_is_that_of_scikit_learn(rng):
    p, y, weights = rng.dirichlet(np.ones(4), 50), rng.integers(0, 4, 50), rng.random(50)
    p[3] = [0, 1, 0, 0]
    names = np.array(list("abcd"))[y]
    for options in ({}, {"sample_weight": weights}, {"normalize": False}, {"labels": list("abcd")}):
        np.testing.assert_allclose(log_loss(names, p, **options), log_loss_of_sklearn(names, p, **options), rtol=FEW64)
    narrow = p.astype(np.float32)
    np.testing.assert_allclose(log_loss(y, narrow), log_loss_of_sklearn(y, narrow), rtol=FLOAT32)
    for two in (p[:, 0], p[:, :1]):
        np.testing.assert_allclose(log_loss(y > 1, two), log_loss_of_sklearn(y > 1, p[:, 0]), rtol=FEW64)
    one_hot = np.eye(4)[y]
    np.testing.assert_allclose(log_loss(one_hot, p), log_loss_of_sklearn(y, p), rtol=FEW64)


def test_log_loss_takes_scores_and_keeps_the_digits_of_a_small_loss():
    p = np.array([[1 - 1e-9, 1e-9]])
    assert log_loss([0], p, labels=[0, 1]) == pytest.approx(-np.log1p(-1e-9), rel=FEW64, abs=0)
    z = np.array([[30.0, 0, -4], [0, 40, 2]])
    exact = np.mean([np.log1p(np.exp(-30.0) + np.exp(-34.0)), np.log1p(np.exp(-40.0) + np.exp(-38.0))])
    assert log_loss([0, 1], z, labels=[0, 1, 2], from_logits=True) == pytest.approx(exact, rel=FEW64, abs=0)
    assert log_loss([0, 1], np.array([-30.0, 30.0]), from_logits=True) == pytest.approx(np.log1p(np.exp(-30.0)), rel=FEW64, abs=0)


@pytest.mark.parametrize(
    ("y", "p", "options", "message"),
    [
        ([0, 1], np.ones((2, 3)) / 3, {}, "labels must name the 3 classes of y_proba; got 2 classes"),
        ([0, 7], np.ones((2, 2)) / 2, {"labels": [0, 1]}, "y_true must have the classes of labels; got .*7"),
        ([0, 1], np.ones((3, 2)) / 2, {}, r"y_proba must have shape \(rows, classes\), and y_true its rows"),
        ([0, 1], np.array([[2.0, -1], [0, 1]]), {}, r"y_proba must lie in \[0, 1\] \(from_logits=True takes scores\); got -1 to 2"),
    ],
)
def test_log_loss_refuses_what_does_not_fit(y, p, options, message):
    with pytest.raises(ValueError, match=f"^log_loss: {message}"):
        log_loss(y, p, **options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_probability_of_0_counts_as_the_epsilon_of_its_dtype(dtype):
    p = np.array([[1, 0], [0.5, 0.5]], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn has no float16
        theirs = log_loss_of_sklearn([1, 0], p)
    want = (-np.log(float(np.finfo(dtype).eps)) - np.log(0.5)) / 2
    # the logarithms are rounded to the dtype
    assert log_loss([1, 0], p) == pytest.approx(want, rel=2 * float(np.finfo(dtype).eps))
    if dtype != np.float16:
        assert log_loss([1, 0], p) == pytest.approx(theirs, rel=FLOAT32)
