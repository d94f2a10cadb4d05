"""softxent.boosting: with no options, the trained models are those of the libraries' own objectives."""

from __future__ import annotations

import copy
import pickle

import catboost
import lightgbm
import numpy as np
import pytest
import xgboost
from cases import python
from tolerances import FEW64, FLOAT32, FLOAT64

import softxent
from softxent.boosting import CatBoostObjective, LightGBMObjective, XGBoostObjective

ROWS, CLASSES, ROUNDS = 300, 4, 6
XGBOOST = {"num_class": CLASSES, "max_depth": 3, "eta": 0.5, "base_score": 0.5, "nthread": 1, "tree_method": "exact"}
LIGHTGBM = {"num_class": CLASSES, "num_leaves": 6, "min_data_in_leaf": 5, "verbosity": -1, "num_threads": 1, "deterministic": True}
CATBOOST = {
    "iterations": ROUNDS, "depth": 3, "learning_rate": 0.5, "random_seed": 0, "thread_count": 1, "verbose": False,
    "boost_from_average": False, "leaf_estimation_method": "Newton", "leaf_estimation_iterations": 1, "bootstrap_type": "No",
    "random_strength": 0, "allow_writing_files": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((ROWS, 5))
    y = (x @ rng.standard_normal((5, CLASSES)) + rng.gumbel(size=(ROWS, CLASSES))).argmax(axis=1)
    return x, y, rng.random(ROWS) + 0.1


def by_xgboost(x, y, weights=None, objective="multi:softprob"):
    own = objective == "multi:softprob"
    data = xgboost.DMatrix(x, y, weight=weights)
    parameters = XGBOOST | ({"objective": objective} if own else {"disable_default_eval_metric": True})
    return xgboost.train(parameters, data, ROUNDS, obj=None if own else objective).predict(xgboost.DMatrix(x), output_margin=True)


def by_lightgbm(x, y, weights=None, objective="multiclass"):
    data = lightgbm.Dataset(x, y, weight=weights)
    model = lightgbm.train(LIGHTGBM | {"objective": objective, "boost_from_average": False}, data, ROUNDS)
    return model.predict(x, raw_score=True)


def by_catboost(x, y, weights=None, objective="MultiClass"):
    model = catboost.CatBoostClassifier(loss_function=objective, eval_metric="MultiClass", classes_count=CLASSES, **CATBOOST)
    return model.fit(x, y, sample_weight=weights).predict(x, prediction_type="RawFormulaVal")


SCORES = 1e-6  # of scores of up to some units: the libraries keep them in float32, and add up ROUNDS trees
WEIGHTS = 1e-9  # LightGBM keeps the weights in float32, whose roundings are averaged
LIBRARIES = {
    "xgboost": (by_xgboost, XGBoostObjective),
    "lightgbm": (by_lightgbm, LightGBMObjective),
    "catboost": (by_catboost, CatBoostObjective),
}


@pytest.fixture(params=LIBRARIES)
def library(request):
    return LIBRARIES[request.param]


def test_the_model_is_that_of_the_library_s_own_objective(library, data):
    """The scores of all rows agree, so that every tree has the same splits and leaves; also with sample weights."""
    train, objective = library
    x, y, weights = data
    for w in (None, weights):
        theirs = train(x, y, w)
        assert np.ptp(theirs) > 1
        np.testing.assert_allclose(train(x, y, w, objective()), theirs, rtol=0, atol=SCORES)


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_class_weights_are_sample_weights(name, data):
    """Not in CatBoost, which also scales its penalty by the sample weights."""
    train, objective = LIBRARIES[name]
    x, y, weights = data
    w = np.array([1.0, 3.0, 0.5, 2.0])
    np.testing.assert_allclose(train(x, y, weights, objective(class_weight=w)), train(x, y, weights * w[y]), rtol=0, atol=SCORES)


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_soft_labels_take_the_place_of_the_labels(name, data):
    """One-hot rows give the model of the labels, and smoothed ones that of label smoothing, whatever labels the library has."""
    train, objective = LIBRARIES[name]
    x, y, weights = data
    one_hot, none = np.eye(CLASSES)[y], np.zeros(ROWS)
    found = train(x, none, weights, objective(soft_labels=one_hot))
    np.testing.assert_allclose(found, train(x, y, weights, objective()), rtol=0, atol=SCORES)
    found = train(x, none, weights, objective(soft_labels=0.8 * one_hot + 0.2 / CLASSES))
    smoothed = train(x, y, weights, objective(label_smoothing=0.2))
    np.testing.assert_allclose(found, smoothed, rtol=0, atol=SCORES)
    assert np.abs(smoothed - train(x, y, weights)).max() > 0.1


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_ignored_rows_are_rows_of_weight_0(name, data):
    train, objective = LIBRARIES[name]
    x, y, _ = data
    ignored = np.arange(ROWS) % 3 == 0
    found = train(x, np.where(ignored, -100, y), None, objective())
    np.testing.assert_allclose(found[~ignored], train(x, y, 1.0 - ignored)[~ignored], rtol=0, atol=SCORES)


def derivatives(z, y, e, w):
    """The gradient and the Hessian of the loss of each row, from their definition."""
    truth = w * ((1 - e) * np.eye(CLASSES)[y] + e / CLASSES)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    mass = truth.sum(axis=1)
    return mass[:, None] * p - truth, mass[:, None, None] * (p[:, :, None] * np.eye(CLASSES) - p[:, :, None] * p[:, None, :])


@pytest.mark.parametrize("e", [0.0, 0.3])
@pytest.mark.parametrize("w", [None, np.array([1.0, 3.0, 0.5, 2.0])], ids=["", "class_weight"])
def test_the_derivatives_are_in_each_library_s_convention(rng, e, w):
    z, y, s = 2 * rng.standard_normal((7, CLASSES)), rng.integers(0, CLASSES, 7), rng.random(7)
    gradient, hessian = derivatives(z, y, e, np.ones(CLASSES) if w is None else w)
    gradient, hessian = s[:, None] * gradient, s[:, None, None] * hessian
    diagonal = hessian[:, range(CLASSES), range(CLASSES)]
    options = {"label_smoothing": e, "class_weight": w}
    for objective, scores, factor in (
        (XGBoostObjective(**options), z.astype(np.float32), 2),
        (LightGBMObjective(**options), np.asfortranarray(z), CLASSES / (CLASSES - 1)),
    ):
        first, second = objective(y.astype(np.float32), scores, s)
        for found in (first, second):
            assert found.dtype == scores.dtype and found.strides == scores.strides
        np.testing.assert_allclose(first, gradient, rtol=0, atol=FLOAT32)
        np.testing.assert_allclose(second, factor * diagonal, rtol=0, atol=FLOAT32)
    for i in range(7):
        first, second = CatBoostObjective(**options).calc_ders_multi(list(z[i]), float(y[i]), s[i])
        np.testing.assert_allclose(first, -gradient[i], rtol=FLOAT64, atol=FEW64)
        np.testing.assert_allclose(second, -hessian[i], rtol=FLOAT64, atol=FEW64)


def test_second_derivatives_have_xgboost_s_lower_bound_except_in_ignored_rows():
    first, second = XGBoostObjective()(np.array([0, -100]), np.array([[200, 0], [1, 2]], np.float32))
    assert (second == np.array([[1e-16, 1e-16], [0, 0]], np.float32)).all() and (first == 0).all()


def test_the_metric_is_the_mean_loss(data):
    """In training, in each library, with sample weights; the last value is the loss of the predictions."""
    x, y, weights = data
    history: dict = {}
    objective = XGBoostObjective()
    train = xgboost.DMatrix(x, y, weight=weights)
    model = xgboost.train(
        XGBOOST | {"disable_default_eval_metric": True}, train, ROUNDS, obj=objective, custom_metric=objective.metric,
        evals=[(train, "train")], evals_result=history, verbose_eval=False,
    )  # fmt: skip
    scores = model.predict(train, output_margin=True)
    last = softxent.cross_entropy(scores, y, sample_weight=weights)
    # XGBoost adds up the metric in float32
    assert history["train"]["softxent"][-1] == pytest.approx(last, rel=FLOAT32) and last < history["train"]["softxent"][0] - 0.1

    objective = LightGBMObjective()
    train = lightgbm.Dataset(x, y, weight=weights)
    record = lightgbm.record_evaluation(history)
    model = lightgbm.train(
        LIGHTGBM | {"objective": objective}, train, ROUNDS, [train], ["train"], feval=objective.metric, callbacks=[record]
    )
    last = softxent.cross_entropy(model.predict(x, raw_score=True), y, sample_weight=weights)
    assert history["train"]["softxent"][-1] == pytest.approx(last, rel=WEIGHTS) and len(history["train"]["softxent"]) == ROUNDS

    model = catboost.CatBoostClassifier(loss_function="MultiClass", eval_metric=CatBoostObjective(), classes_count=CLASSES, **CATBOOST)
    model.fit(x, y, sample_weight=weights)
    last = softxent.cross_entropy(model.predict(x, prediction_type="RawFormulaVal"), y, sample_weight=weights)
    assert list(model.get_evals_result()["learn"].values())[-1][-1] == pytest.approx(last, rel=FLOAT32)


def test_the_interfaces_of_scikit_learn_take_them(data):
    x, y, weights = data
    shared = {"n_estimators": ROUNDS, "max_depth": 3, "n_jobs": 1}
    metric = XGBoostObjective().metric
    model = xgboost.XGBClassifier(objective=XGBoostObjective(), eval_metric=metric, num_class=CLASSES, base_score=0.5, **shared)
    model.fit(x, y, sample_weight=weights, eval_set=[(x, y)], verbose=False)
    theirs = xgboost.XGBClassifier(objective="multi:softprob", base_score=0.5, **shared).fit(x, y, sample_weight=weights)
    scores = model.predict(x, output_margin=True)
    np.testing.assert_allclose(scores, theirs.predict(x, output_margin=True), rtol=0, atol=SCORES)
    np.testing.assert_allclose(softxent.softmax(scores), theirs.predict_proba(x), rtol=0, atol=SCORES)
    assert model.evals_result()["validation_0"]["metric"][-1] == pytest.approx(softxent.cross_entropy(scores, y), rel=2 * FLOAT32)

    model = lightgbm.LGBMClassifier(objective=LightGBMObjective(), num_class=CLASSES, verbosity=-1, **shared)
    model.fit(x, y, sample_weight=weights, eval_set=[(x, y)], eval_metric=LightGBMObjective().metric)
    theirs = lightgbm.LGBMClassifier(objective="multiclass", boost_from_average=False, verbosity=-1, **shared).fit(
        x, y, sample_weight=weights
    )
    np.testing.assert_allclose(model.predict(x, raw_score=True), theirs.predict(x, raw_score=True), rtol=0, atol=SCORES)
    last = softxent.cross_entropy(model.predict(x, raw_score=True), y, sample_weight=weights)  # it is the training data, with its weights
    assert model.evals_result_["training"]["softxent"][-1] == pytest.approx(last, rel=WEIGHTS)


@pytest.mark.parametrize("objective", [XGBoostObjective, LightGBMObjective, CatBoostObjective])
def test_they_are_copied_and_pickled(objective):
    one = objective(label_smoothing=0.1)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(other) is objective and other.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("options", "labels", "scores", "message"),
    [
        ({}, [0.5, 1], np.zeros((2, 3)), r"labels must be class indices; got .*0\.5"),
        ({}, [0, 3], np.zeros((2, 3)), r"labels must lie in \[0, 3\) or be ignore_index=-100; got 3 at row 1"),
        ({}, [0, 1], np.zeros(2), r"scores must have shape \(rows, classes\) \(pass the number of classes to the library\); got \(2,\)"),
        ({"label_smoothing": 2}, [0, 1], np.zeros((2, 3)), "label_smoothing must be a finite number"),
        ({"soft_labels": np.zeros((2, 4))}, [0, 1], np.zeros((2, 3)), r"probability labels must have shape \(2, 3\) to match logits"),
    ],
)
def test_what_does_not_fit_is_an_error(options, labels, scores, message):
    for objective in (XGBoostObjective, LightGBMObjective):
        with pytest.raises(ValueError, match=f"^{objective.__name__}: {message}"):
            objective(**options)(np.array(labels), scores)


def test_boosting_imports_no_library_and_sklearn_names_its_extra():
    code = """
import sys, softxent.boosting
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"xgboost", "lightgbm", "catboost", "sklearn", "scipy"}))
sys.modules["sklearn"] = None
try:
    import softxent.sklearn
except ModuleNotFoundError as error:
    print(error, error.name)
"""
    none, message = python(code).splitlines()
    assert not none
    assert message == "softxent.sklearn needs the extra \"sklearn\"; in a clone of softxent: pip install '.[sklearn]' sklearn"


def test_catboost_is_given_the_sum_of_the_losses_and_that_of_the_weights(data):
    _, y, weights = data
    scores = np.random.default_rng(4).standard_normal((ROWS, CLASSES))
    each = softxent.cross_entropy(scores, y, reduction="none")
    for given, w in ((weights, weights), (None, np.ones(ROWS)), ([], np.ones(ROWS))):
        loss, weight = CatBoostObjective().evaluate(list(scores.T), y, given)
        np.testing.assert_allclose([loss, weight], [(w * each).sum(), w.sum()], rtol=FEW64)
        np.testing.assert_allclose(CatBoostObjective().get_final_error(loss, weight), (w * each).sum() / w.sum(), rtol=FEW64)
