"""Softmax cross-entropy as the objective and the metric of XGBoost, LightGBM and CatBoost, with the options of `softxent.cross_entropy`.

An object of this file is passed to the library, in the conventions of that library: the sign of the gradient, the factor of the second
derivatives, the order of the arrays and their dtype. With no options, the trained model is that of the library's own objective. The
libraries come with the extra `boosting`; this file imports none of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import contract
from .loss import cross_entropy
from .partials import Array
from .probabilities import softmax, softmax_jacobian
from .sweep import forward, fused, output
from .truth import IDENTITY, Truth, truth

__all__ = ["CatBoostObjective", "LightGBMObjective", "XGBoostObjective"]


class _Objective:
    """The options, which are those of `softxent.cross_entropy`."""

    def __init__(
        self,
        *,
        class_weight: npt.ArrayLike | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        soft_labels: npt.ArrayLike | None = None,
    ) -> None:
        """Take the options.

        Args:
            class_weight: [C]; multiplies the truth at each class.
            label_smoothing: e in [0, 1]; the truth becomes (1 - e) y + e/C, before class_weight.
            ignore_index: rows with this label have no gradient and no second derivatives, and do not count in the metric.
            soft_labels: [N, C]: probabilities that take the place of the labels of the training data, in the order of its rows. The metric
                compares with the labels.
        """
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.soft_labels = soft_labels

    @property
    def _options(self) -> dict[str, Any]:
        return {"class_weight": self.class_weight, "label_smoothing": self.label_smoothing, "ignore_index": self.ignore_index}

    def _truth(self, scores: Array, labels: Any, weights: Array | None) -> Truth:
        fn = type(self).__name__
        labels = self.soft_labels if self.soft_labels is not None else _indices(fn, labels)
        return truth(fn, labels, scores, -1, sample_weight=weights, reduction="sum", **self._options)

    def _loss(self, scores: Array, labels: Any, weights: Array | None) -> float:
        labels = _indices(type(self).__name__, labels)
        return float(cross_entropy(scores, labels, sample_weight=weights, **self._options))


class _DiagonalObjective(_Objective):
    """An objective whose library takes the gradient and the diagonal of the Hessian, times a factor, as arrays."""

    smallest = 0.0  # of the second derivatives in rows that count

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        """Return the gradient and the second derivatives, [N, C], as the library calls an objective.

        The arguments are (scores, training data), or in the scikit-learn interface (labels, scores) or (labels, scores, sample weights).
        """
        scores, labels, weights = _arguments(type(self).__name__, first, second, sample_weight)
        t = self._truth(scores, labels, weights)
        gradient = output(type(self).__name__, None, scores, -1)
        fused(scores, t, IDENTITY, gradient)
        seconds = softmax(scores)
        seconds -= seconds * seconds
        mass = t.mass()
        seconds *= (self._factor(scores.shape[1]) * mass).astype(seconds.dtype)[:, None]
        np.maximum(seconds, self.smallest, out=seconds)
        if not mass.all():
            seconds[mass == 0] = 0
        return gradient, seconds

    def _factor(self, classes: int) -> float:
        raise NotImplementedError


class XGBoostObjective(_DiagonalObjective):
    """The objective and the metric for XGBoost, in place of its multi:softprob.

    The gradient is prediction - truth, and the second derivatives are XGBoost's, `2 mass yhat (1 - yhat)`, at least 1e-16 in rows that
    count: an upper bound of the Hessian's rows. Both are times the sample weights.

    Pass the object as `obj` to `xgboost.train`, or as `objective` to `XGBClassifier`, together with the number of classes, and `metric` as
    `custom_metric` or `eval_metric`. The model then predicts scores, whose `softxent.softmax` are the probabilities. XGBoost's own
    objective sets `base_score` by the frequencies of the classes, a custom one leaves it at 0.5 for every class.

    Args:
        class_weight, label_smoothing, ignore_index, soft_labels: as in `softxent.cross_entropy`. soft_labels [N, C] take the place of the
            labels of the training data, not of those of the metric.

    Raises:
        ValueError, TypeError: at the first call, if an option or a label does not fit.

    Cost: two passes of the kernel for each round, and a few of NumPy.
    """

    smallest = 1e-16  # as in XGBoost, so that no leaf divides by 0

    def metric(self, first: Any, second: Any, sample_weight: Any = None) -> Any:
        """Return ("softxent", the mean loss), or the mean loss alone in the scikit-learn interface. The arguments are those of the call."""
        loss = self._loss(*_arguments("XGBoostObjective.metric", first, second, sample_weight))
        return ("softxent", loss) if hasattr(second, "get_label") else loss

    def _factor(self, classes: int) -> float:
        return 2.0


class LightGBMObjective(_DiagonalObjective):
    """The objective and the metric for LightGBM, in place of its multiclass.

    The gradient is prediction - truth, and the second derivatives are LightGBM's, `C / (C - 1) mass yhat (1 - yhat)`. Both are times the
    sample weights, in the order of LightGBM's scores, whose rows are adjacent.

    Pass the object as `objective`, in the parameters of `lightgbm.train` or to `LGBMClassifier`, together with the number of classes, and
    `metric` as `feval` or `eval_metric`. The model then predicts scores, whose `softxent.softmax` are the probabilities. LightGBM's own
    objective starts from the frequencies of the classes, unless boost_from_average is False; a custom one starts from 0.

    Args:
        class_weight, label_smoothing, ignore_index, soft_labels: as in `XGBoostObjective`.

    Raises:
        ValueError, TypeError: at the first call, if an option or a label does not fit.

    Cost: two passes of the kernel for each round, and a few of NumPy.
    """

    def metric(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[str, float, bool]:
        """Return ("softxent", the mean loss, False), where False tells that less is better. The arguments are those of the call."""
        return "softxent", self._loss(*_arguments("LightGBMObjective.metric", first, second, sample_weight)), False

    def _factor(self, classes: int) -> float:
        return classes / max(1, classes - 1)


class CatBoostObjective(_Objective):
    """The objective and the metric for CatBoost, in place of its MultiClass.

    CatBoost maximizes, and asks for the derivatives one row at a time: truth - prediction, and the whole matrix
    `- mass (diag(yhat) - yhat yhat^T)`, times the sample weight. Python is slow at that: tens of microseconds for each row and call.

    Pass the object as `loss_function`, and as `eval_metric`, to `CatBoostClassifier`. There are no soft labels, as CatBoost does not say
    which row it asks for.

    Args:
        class_weight, label_smoothing, ignore_index: as in `XGBoostObjective`.

    Raises:
        ValueError, TypeError: at the first call, if an option or a label does not fit.
    """

    def __init__(self, *, class_weight: npt.ArrayLike | None = None, label_smoothing: float = 0.0, ignore_index: int = -100) -> None:
        super().__init__(class_weight=class_weight, label_smoothing=label_smoothing, ignore_index=ignore_index)

    def calc_ders_multi(self, approxes: Any, target: float, weight: float) -> tuple[list[float], list[list[float]]]:
        """Return the derivatives [C] and the second derivatives [C, C] of one row, as CatBoost asks for them. approxes: its scores."""
        scores = np.array([approxes], np.float64)
        t = self._truth(scores, [target], np.array([weight], np.float64))
        gradient = np.empty_like(scores)
        fused(scores, t, IDENTITY, gradient)
        return (-gradient[0]).tolist(), (softmax_jacobian(scores)[0] * -t.mass()).tolist()

    def is_max_optimal(self) -> bool:
        """Tell CatBoost that less is better."""
        return False

    def evaluate(self, approxes: Any, target: Any, weight: Any) -> tuple[float, float]:
        """Return the sum of the losses and that of the weights. approxes: the scores, one array [N] for each class."""
        scores = np.stack([np.asarray(a, np.float64) for a in approxes], axis=1)
        t = self._truth(scores, target, None if weight is None or len(weight) == 0 else np.asarray(weight, np.float64))
        return float(forward(scores, t, IDENTITY)[0].sum()), t.total

    def get_final_error(self, error: float, weight: float) -> float:
        """Return the mean loss."""
        return error / weight if weight else 0.0


def _arguments(fn: str, first: Any, second: Any, sample_weight: Any) -> tuple[Array, Any, Array | None]:
    """Return the scores [N, C], the labels and the weights of a call by one of the libraries' interfaces."""
    if hasattr(second, "get_label"):
        scores, labels, sample_weight = first, second.get_label(), second.get_weight()
    else:
        labels, scores = first, second
    scores = contract.floats(fn, "scores", scores)
    if scores.ndim != 2:
        contract.fail(fn, "scores", "have shape (rows, classes) (pass the number of classes to the library)", scores.shape)
    weights = None if sample_weight is None or not np.size(sample_weight) else np.asarray(sample_weight, np.float64)
    return scores, labels, weights


def _indices(fn: str, labels: Any) -> Array:
    """Return the labels, which the libraries keep as floats, as integers."""
    given = np.asarray(labels)
    found = given.astype(np.int64)
    if len(wrong := given[found != given]):
        contract.fail(fn, "labels", "be class indices", wrong[0])
    return found
