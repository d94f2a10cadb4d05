"""The front end of scikit-learn: `SoftmaxRegression`, a linear classifier with the softmax cross-entropy, and the metric `log_loss`.

It needs the extra `sklearn`. The loss, its gradient and its Hessian products are those of linear.py, which computes the scores a chunk of
rows at a time. scipy.optimize.minimize looks for the coefficients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import contract, kernels

try:
    import sklearn  # noqa: F401  # the first import that may fail
except ModuleNotFoundError:
    raise ModuleNotFoundError(contract.needs_extra("softxent.sklearn", "sklearn"), name="sklearn") from None

from scipy import sparse
from scipy.optimize import OptimizeResult, minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from .chunks import BUDGET, Products, Sums, chunks
from .linear import Head, NumPyProducts
from .loss import cross_entropy
from .partials import Array
from .probabilities import log_softmax, softmax
from .truth import IDENTITY, Truth, truth

__all__ = ["SoftmaxRegression", "log_loss"]

SOLVERS = ("lbfgs", "newton-cg")
LARGE = 1 << 18  # coefficients. From here on, L-BFGS keeps 5 steps in place of 10: SciPy's passes over them take most of the time of a fit
THREAD_WORK = 1 << 20  # multiplications of a sparse product that a thread computes at least: about half a millisecond
FIT = "SoftmaxRegression.fit"


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    """A linear classifier that is fitted by softmax cross-entropy: multinomial logistic regression.

    It takes the place of scikit-learn's `LogisticRegression` with its default penalty, and minimizes the same function,

        C sum_i s_i loss_i + 1/2 ||W||^2,    loss_i = cross_entropy(x_i W^T + b, y_i),

    where s are the sample weights. The intercepts b are not penalized. With two classes, the scores of the first are 0, so that there is
    one row of coefficients.

    Args:
        C: the inverse strength of the penalty, C > 0. math.inf means none.
        tol: the solver stops where no entry of the gradient of the mean loss is larger (lbfgs), or its Euclidean norm is not (newton-cg).
        fit_intercept: whether there are intercepts.
        class_weight: None, a dict of the classes' weights (1 for those that it does not name), or "balanced", which weights each class by
            the inverse of its frequency. They multiply the truth at each class, as in `softxent.cross_entropy`.
        label_smoothing: e in [0, 1], as in `softxent.cross_entropy`.
        solver: "lbfgs", or "newton-cg", a trust-region method that uses products with the Hessian.
        max_iter: the largest number of iterations. If they do not suffice, the fit warns.
        warm_start: whether a fit starts from the coefficients of the last one, if they have the same shape, rather than from 0.
        budget: the bytes of scores that are held at once.

    Attributes:
        classes_: [C], sorted. The indices 0..C-1 if the model was fitted to probabilities.
        coef_: [C, D], or [1, D] for two classes, in the dtype of X, float32 or float64.
        intercept_: [C] or [1]; 0 without intercepts.
        n_iter_: [1] int32, the number of iterations.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Cost: an iteration computes two matrix products and one pass of the kernel (lbfgs), and three products for each product with the Hessian
    (newton-cg). Memory beyond X and y: `budget` and a few vectors of the number of coefficients; nothing grows with rows x classes.

    Source: Part 3 of the derivation, and its part on linear heads.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        label_smoothing: float = 0.0,
        solver: str = "lbfgs",
        max_iter: int = 100,
        warm_start: bool = False,
        budget: int = BUDGET,
    ) -> None:
        self.C = C
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.solver = solver
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.budget = budget

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegression:
        """Fit the model.

        Args:
            X: [N, D], an array or a sparse matrix. float32 is computed in float32, everything else in float64.
            y: classes [N], of any type that can be sorted, or probabilities [N, C] as floats, whose columns are the classes.
            sample_weight: [N], or None for ones.

        Returns:
            The estimator itself.

        Raises:
            ValueError, TypeError: if an argument or a parameter does not fit.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], order="C", multi_output=True)
        self.classes_, labels = _classes(y)
        t = self._truth(X, labels, sample_weight)
        rows = len(self.classes_) if len(self.classes_) > 2 else 1
        start = self._start(X, rows)
        with _products(X, self.budget) as (x, products):
            head = Head(x, start[:-1].T, start[-1], t, IDENTITY, None, x.shape[:1], self.budget, products)
            problem = _Problem(head, 1 / (self.C * t.total), rows, self.fit_intercept)
            found = problem.minimum(start if self.fit_intercept else start[:-1], self.solver, self.tol, self.max_iter)
        w = found.x.reshape(-1, rows).astype(X.dtype)
        self.coef_ = np.ascontiguousarray(w[: X.shape[1]].T)
        self.intercept_ = w[-1] if self.fit_intercept else np.zeros(rows, X.dtype)
        self.n_iter_ = np.array([found.nit], np.int32)
        return self

    def _check_parameters(self) -> None:
        if not isinstance(self.C, float) or self.C != math.inf:
            contract.number(FIT, "C", self.C, low=np.finfo(np.float64).tiny, or_else="inf or ")
        contract.number(FIT, "tol", self.tol, low=0)
        contract.choice(FIT, "solver", self.solver, SOLVERS)
        contract.integer(FIT, "max_iter", self.max_iter, low=1)
        contract.integer(FIT, "budget", self.budget, low=1)

    def _truth(self, X: Any, labels: Array, sample_weight: Any) -> Truth:
        scores = np.broadcast_to(np.zeros((), X.dtype), (X.shape[0], len(self.classes_)))  # has their shape, and needs no memory
        samples = None if sample_weight is None else contract.floats(FIT, "sample_weight", np.asarray(sample_weight)).astype(np.float64)
        if samples is not None and (samples.shape != X.shape[:1] or not (samples >= 0).all()):
            contract.fail(FIT, "sample_weight", f"have shape {X.shape[:1]} and no negative or missing entry", f"shape {samples.shape}")
        w = self._class_weights(labels, samples)
        found = truth(
            FIT, labels, scores, -1, class_weight=w, label_smoothing=self.label_smoothing, sample_weight=samples, reduction="mean",
            names=contract.Names("X", "y", None),
        )  # fmt: skip
        if not found.total > 0:
            contract.fail(FIT, "sample_weight", "have an entry that is not zero", "zeros, or class weights that make them so")
        return found

    def _class_weights(self, labels: Array, samples: Array | None) -> Array | None:
        if self.class_weight is None:
            return None
        classes, y, options = self.classes_, self.classes_, {}
        if not isinstance(self.class_weight, dict):  # a dict does not depend on the rows
            if labels.ndim == 2:
                contract.fail(FIT, "class_weight", "be None or a dict if y has probabilities", contract.shown(self.class_weight))
            classes, y, options = np.arange(len(classes)), labels, {} if samples is None else {"sample_weight": samples}
        weights: Array = compute_class_weight(self.class_weight, classes=classes, y=y, **options)
        return weights

    def _start(self, X: Any, rows: int) -> Array:
        """Return the coefficients [D + 1, rows] to start from, those of the intercepts last."""
        start = np.zeros((X.shape[1] + 1, rows))
        if self.warm_start and getattr(self, "coef_", start).shape == (rows, X.shape[1]):
            start[:-1], start[-1] = self.coef_.T, self.intercept_
        return start

    def _scores(self, X: Any) -> Iterator[tuple[slice, Array]]:
        """Yield slices of rows and their scores, in a buffer that the next chunk overwrites."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], order="C", reset=False)
        w, b = (a.astype(X.dtype, copy=False) for a in (self.coef_, self.intercept_))
        with _products(X, self.budget) as (x, products):
            yield from chunks(x, w, b, products, self.budget)

    def decision_function(self, X: Any) -> Array:
        """Return the scores `X W^T + b`, [N, C], or for two classes those of the second, [N].

        X: [N, D], an array or a sparse matrix.
        """
        scores = np.concatenate([z.copy() for _, z in self._scores(X)])
        return scores if len(self.classes_) > 2 else scores[:, 0]

    def predict(self, X: Any) -> Array:
        """Return the most probable class of each row, [N]. Memory: `budget` + O(N) bytes."""
        found = [z.argmax(axis=1) if z.shape[1] > 1 else (z[:, 0] > 0).astype(np.intp) for _, z in self._scores(X)]
        classes: Array = self.classes_[np.concatenate(found)]
        return classes

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, the softmax of the scores, [N, C]."""
        z = _both(self.decision_function(X))
        return softmax(z, out=z)

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of `predict_proba`, [N, C]. They are finite where a probability is too small for its dtype."""
        return log_softmax(_both(self.decision_function(X)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _classes(y: Array) -> tuple[Array, Array]:
    """Return the classes, and the index of each label [N] or the probabilities [N, C]."""
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind == "f":
        if not (y >= 0).all():
            contract.fail(FIT, "probabilities y", "not be negative", f"{y.min():g}")
        return np.arange(y.shape[1]), y
    y = column_or_1d(y, warn=True)
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        contract.fail(FIT, "y", "have at least two classes", f"one class, {contract.shown(classes[0])}")
    return classes, labels


def _both(scores: Array) -> Array:
    """Return the scores of all classes: for two classes, whose scores are [N], those of the first are 0."""
    return scores if scores.ndim == 2 else np.stack([np.zeros_like(scores), scores], axis=1)


class _Problem(NamedTuple):
    """The function that a fit minimizes: the mean loss, and `penalty` / 2 times the sum of the squares of W.

    Its argument is a vector of float64 that holds W^T [D, rows] and the intercepts [rows].
    """

    head: Head  # its W and b are replaced in each call
    penalty: float
    rows: int  # of coef_
    intercepts: bool

    def minimum(self, start: Array, solver: str, tol: float, max_iter: int) -> OptimizeResult:
        if solver == "lbfgs":
            steps = 10 if start.size < LARGE else 5
            options = {"gtol": tol, "maxiter": max_iter, "ftol": 64 * np.finfo(np.float64).eps, "maxls": 50, "maxcor": steps}
            found = minimize(self.loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
        else:
            # From the default radius, 1, coefficients of some hundreds take 100 iterations in place of 25.
            options = {"gtol": tol, "maxiter": max_iter, "initial_trust_radius": 100.0, "max_trust_radius": 1e6}
            found = minimize(
                self.loss_and_gradient, start.ravel(), jac=True, hessp=self.hessian_product, method="trust-ncg", options=options
            )
        if not found.success:
            message = f"{FIT}: {solver} stopped after {found.nit} iterations, before it reached tol={tol:g} ({found.message})"
            warnings.warn(f"{message}; scale X, or raise max_iter or tol", ConvergenceWarning, stacklevel=3)
        return found

    def loss_and_gradient(self, coefficients: Array) -> tuple[float, Array]:
        w, b = self._matrices(coefficients)
        losses, sums = self.head._replace(w=w, b=b).losses_and_sums(fixed_x=True)
        slopes = coefficients[: self.head.x.shape[1] * self.rows]
        return losses.sum() / self.head.t.total + self.penalty / 2 * float(slopes @ slopes), self._vector(sums, coefficients)

    def hessian_product(self, coefficients: Array, v: Array) -> Array:
        w, b = self._matrices(coefficients)
        return self._vector(self.head._replace(w=w, b=b).curvature_sums(None, *self._matrices(v), whole=False), v)

    def _matrices(self, coefficients: Array) -> tuple[Array, Array | None]:
        """Return W and b of all classes, in the dtype of X."""
        p = coefficients.reshape(-1, self.rows).astype(self.head.x.dtype, copy=False)
        p = p if self.rows > 1 else np.concatenate([np.zeros_like(p), p], axis=1)
        return (p[:-1].T, p[-1]) if self.intercepts else (p.T, None)

    def _vector(self, sums: Sums, coefficients: Array) -> Array:
        """Return the derivatives by W and b as a vector, with the penalty's part, which is linear in the coefficients."""
        found = kernels.empty((coefficients.size // self.rows, self.rows), coefficients.dtype)
        features = self.head.x.shape[1]
        np.multiply(coefficients.reshape(found.shape)[:features], self.penalty, out=found[:features])
        found[:features] += sums.dw.T[:, -self.rows :]
        if sums.db is not None:
            found[features] = sums.db[-self.rows :]
        return found.ravel()


class _SparseRows:
    """A CSR matrix, slices of whose rows share its memory."""

    def __init__(self, x: Any) -> None:
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def __getitem__(self, i: slice) -> Any:
        pointers = self.x.indptr[i.start : i.stop + 1]
        entries = slice(pointers[0], pointers[-1])
        parts = self.x.data[entries], self.x.indices[entries], pointers - pointers[0]
        return type(self.x)(parts, shape=(len(pointers) - 1, self.shape[1]), copy=False)


class _SparseProducts(NamedTuple):
    """The products of rows of a CSR matrix. The threads divide the classes among themselves, so their number does not change the result."""

    pool: ThreadPoolExecutor
    threads: int

    def size(self, x: Any) -> int:
        return int(x.dtype.itemsize)

    def empty(self, like: Any, rows: int, classes: int) -> Array:
        return kernels.empty((rows, classes), like.dtype)

    def logits(self, x: Any, w: Array, b: Array | None, out: Array) -> None:
        def part(k: slice) -> None:
            out[:, k] = x @ w[k].T
            if b is not None:
                out[:, k] += b[k]

        self._by_classes(part, len(w), x)

    def product(self, a: Array, b: Any, out: Array, add: bool) -> None:
        def part(k: slice) -> None:
            found = (b.T @ a[k].T).T
            np.add(out[k], found, out=out[k]) if add else np.copyto(out[k], found)

        self._by_classes(part, len(a), b)

    def of_rows(self, a: Array, b: Any, out: Array, add: bool) -> None:
        self.product(a, b, out, add)

    def columns(self, g: Array) -> Array:
        total: Array = g.sum(axis=0, dtype=np.float64)
        return total

    def _by_classes(self, part: Callable[[slice], None], classes: int, x: Any) -> None:
        threads = max(1, min(self.threads, classes, x.nnz * classes // THREAD_WORK))
        step = math.ceil(classes / threads)
        parts = [slice(k, k + step) for k in range(0, classes, step)]
        for _ in map(part, parts) if threads == 1 else self.pool.map(part, parts):
            pass


@contextmanager
def _products(x: Any, budget: int) -> Iterator[tuple[Any, Products]]:
    """Yield what the functions of linear.py take for X: its rows, and their products."""
    if not sparse.issparse(x):
        yield x, NumPyProducts(budget // 8)
        return
    threads = kernels.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        yield _SparseRows(x), _SparseProducts(pool, threads)


def log_loss(
    y_true: npt.ArrayLike,
    y_proba: npt.ArrayLike,
    *,
    normalize: bool = True,
    sample_weight: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    from_logits: bool = False,
) -> float:
    """Compute the log loss of predicted probabilities or of scores, with the signature of `sklearn.metrics.log_loss`.

    A probability of 0 for the true class counts as the machine epsilon of its dtype, as in scikit-learn. Each row is divided by its sum.
    A loss near 0 keeps its digits, because it is computed from the probabilities of the other classes.

    Args:
        y_true: classes [N], or probabilities [N, C].
        y_proba: probabilities [N, C], or [N], those of the second of two classes.
        normalize: whether to return the mean, weighted by the sample weights, or the sum.
        sample_weight: [N], or None for ones.
        labels: the classes, if y_true does not have all of them.
        from_logits: whether y_proba has scores, as `decision_function` returns them, in place of probabilities.

    Returns:
        The mean or the sum.

    Raises:
        ValueError, TypeError: if a shape, a dtype or a class does not fit.
    """
    fn = "log_loss"
    p, y = contract.floats(fn, "y_proba", y_proba), np.asarray(y_true)
    if p.ndim == 1 or (p.ndim == 2 and p.shape[1] == 1):
        p = p.reshape(-1)
        p = np.stack([np.zeros_like(p) if from_logits else 1 - p, p], axis=1)
    if p.ndim != 2 or len(y) != len(p) or y.shape[1:] not in ((), p.shape[1:]):
        contract.fail(fn, "y_proba", "have shape (rows, classes), and y_true its rows", f"{p.shape} and {y.shape}")
    truth = y.astype(np.float64) if y.ndim == 2 else _indices(fn, y, labels, p.shape[1])
    if not from_logits:
        with np.errstate(divide="ignore"):
            p = np.log(_above_epsilon(fn, p, truth))
    return float(cross_entropy(p, truth, sample_weight=sample_weight, reduction="mean" if normalize else "sum"))


def _indices(fn: str, y: Array, labels: Any, classes: int) -> Array:
    """Return the index of each label among the classes."""
    known = np.unique(y if labels is None else np.asarray(labels))
    if len(known) != classes:
        contract.fail(fn, "labels", f"name the {classes} classes of y_proba", f"{len(known)} classes")
    found = np.searchsorted(known, y).clip(max=classes - 1)
    if len(wrong := y[known[found] != y]):
        contract.fail(fn, "y_true", "have the classes of labels", contract.shown(wrong[0]))
    return found


def _above_epsilon(fn: str, p: Array, truth: Array) -> Array:
    """Return p, with a probability of at least epsilon for the true classes."""
    if not ((p >= 0) & (p <= 1)).all():
        contract.fail(fn, "y_proba", "lie in [0, 1] (from_logits=True takes scores)", f"{p.min():g} to {p.max():g}")
    true = truth > 0 if truth.ndim == 2 else np.arange(p.shape[1]) == truth[:, None]
    return np.where(true, np.maximum(p, np.finfo(p.dtype).eps), p)
