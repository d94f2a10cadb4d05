"""The benchmark of models that are fitted with softxent, beside the libraries' own: `softxent bench --sklearn` and `--boosting`.

Each contender fits a model to the same data, with the same tolerance or the same number of rounds. All run in one process, on as many
threads as softxent has, in rounds of random order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from .. import contract, cross_entropy, get_num_threads
from ..partials import Array
from . import measured, progress, written
from .measure import interleave
from .report import machine, ratio, table

OURS = "softxent"
Fits = dict[str, Callable[[], Any]]
TOKENS, VOCABULARY = 100, 20_000  # of a document, and of all


class Case(NamedTuple):
    contender: str  # beside which softxent is measured
    rows: int
    features: int
    classes: int
    dtype: str = "f64"
    sparse: bool = False
    rounds: int = 0  # of boosting

    def title(self) -> str:
        return f"{self.contender} {self.rows} x {self.features}{', sparse' * self.sparse}, {self.classes} classes"


LBFGS, NEWTON = "LogisticRegression", "LogisticRegression newton-cg"
CASES = {
    "sklearn": [
        *(Case(LBFGS, 50_000, 100, classes, dtype) for dtype in ("f32", "f64") for classes in (10, 100, 1000)),
        *(Case(LBFGS, 20_000, VOCABULARY, 100, dtype, sparse=True) for dtype in ("f32", "f64")),
        *(Case(NEWTON, 50_000, 100, 10, dtype) for dtype in ("f32", "f64")),
    ],
    "boosting": [
        Case("xgboost", 100_000, 20, 20, rounds=50),
        Case("lightgbm", 100_000, 20, 20, rounds=50),
        Case("catboost", 2_000, 20, 5, rounds=10),
    ],
}
QUICK = {
    "sklearn": [Case(LBFGS, 200, 10, 3), Case(NEWTON, 200, 10, 3, "f32"), Case(LBFGS, 100, 500, 3, sparse=True)],
    "boosting": [Case(name, 200, 4, 3, rounds=2) for name in ("xgboost", "lightgbm", "catboost")],
}
PACKAGES = {"sklearn": ["scikit-learn"], "boosting": ["xgboost-cpu", "lightgbm", "catboost"]}


def run(which: str, repeats: int, output: Path, quick: bool) -> None:
    """Measure, print the table, and write sklearn.json and sklearn.md, or boosting.json and boosting.md."""
    contract.place("bench", "output", output, folder=True)
    cases = (QUICK if quick else CASES)[which]
    records = []
    threads = [{"OMP_NUM_THREADS": str(get_num_threads()), "OPENBLAS_NUM_THREADS": str(get_num_threads())}]
    with progress(len(cases)) as step:
        for record in measured("fits-worker", [[repeats, cases]], True, threads):
            records.append(record)
            step({"kind": which, "threads": get_num_threads(), "isa": "", "dtype": record["case"][4], "shape": record["shape"]})
    about = machine() | {name: version(name) for name in PACKAGES[which]}
    results = {"machine": about, "repeats": repeats, "threads": get_num_threads(), "records": records}
    written(which, results, text(which, results), output)


def work(repeats: int, cases: list[Any]) -> None:
    """Measure the cases in this process, and print a line of JSON for each."""
    for c in (Case(*case) for case in cases):
        fits, loss = BOOSTED.get(c.contender, logistic)(c)
        models: dict[str, Any] = {}

        def call(name: str, fits: Fits = fits, models: dict[str, Any] = models) -> Callable[[], None]:
            return lambda: models.update({name: fits[name]()})

        seconds = interleave({name: call(name) for name in fits}, repeats, 0.0)
        found = {name: [int(getattr(m, "n_iter_", [c.rounds])[0]), float(loss(m))] for name, m in models.items()}
        print(json.dumps({"shape": c.title(), "case": list(c), "seconds": seconds, "found": found}), flush=True)


# ---- the contenders: functions that fit a model, and the loss of a model ----


def logistic(c: Case) -> tuple[Fits, Callable[[Any], Any]]:
    x, y = text_data(c) if c.sparse else dense_data(c)
    solver = "newton-cg" if c.contender == NEWTON else "lbfgs"
    theirs = import_module("sklearn.linear_model").LogisticRegression(solver=solver)
    ours = import_module("softxent.sklearn").SoftmaxRegression(solver=solver)
    fits = {OURS: lambda: ours.fit(x, y), c.contender: lambda: theirs.fit(x, y)}
    return fits, lambda model: cross_entropy(x @ model.coef_.T + model.intercept_, y)


def xgboost(c: Case) -> tuple[Fits, Callable[[Any], Any]]:
    library, (x, y) = import_module("xgboost"), dense_data(c)
    data, objective = library.DMatrix(x, y), import_module("softxent.boosting").XGBoostObjective()
    shared = {"num_class": c.classes, "max_depth": 4, "base_score": 0.5, "nthread": get_num_threads()}
    ours, theirs = shared | {"disable_default_eval_metric": True}, shared | {"objective": "multi:softprob"}
    fits = {OURS: lambda: library.train(ours, data, c.rounds, obj=objective), c.contender: lambda: library.train(theirs, data, c.rounds)}
    return fits, lambda model: cross_entropy(model.predict(data, output_margin=True), y)


def lightgbm(c: Case) -> tuple[Fits, Callable[[Any], Any]]:
    library, (x, y) = import_module("lightgbm"), dense_data(c)
    data = library.Dataset(x, y, free_raw_data=False).construct()
    shared = {"num_class": c.classes, "num_leaves": 15, "verbosity": -1, "boost_from_average": False, "num_threads": get_num_threads()}
    ours, theirs = ({"objective": o} | shared for o in (import_module("softxent.boosting").LightGBMObjective(), "multiclass"))
    fits = {OURS: lambda: library.train(ours, data, c.rounds), c.contender: lambda: library.train(theirs, data, c.rounds)}
    return fits, lambda model: cross_entropy(model.predict(x, raw_score=True), y)


def catboost(c: Case) -> tuple[Fits, Callable[[Any], Any]]:
    library, (x, y) = import_module("catboost"), dense_data(c)
    shared = {
        "iterations": c.rounds, "depth": 4, "classes_count": c.classes, "eval_metric": "MultiClass", "verbose": False, "random_seed": 0,
        "thread_count": get_num_threads(), "allow_writing_files": False, "leaf_estimation_method": "Newton",
        "leaf_estimation_iterations": 1, "random_strength": 0, "bootstrap_type": "No",
    }  # fmt: skip
    objective = import_module("softxent.boosting").CatBoostObjective()
    fits = {
        OURS: lambda: library.CatBoostClassifier(loss_function=objective, **shared).fit(x, y),
        c.contender: lambda: library.CatBoostClassifier(loss_function="MultiClass", **shared).fit(x, y),
    }
    return fits, lambda model: cross_entropy(model.predict(x, prediction_type="RawFormulaVal"), y)


BOOSTED = {"xgboost": xgboost, "lightgbm": lightgbm, "catboost": catboost}


def dense_data(c: Case) -> tuple[Array, Array]:
    """Return rows of normal features, and classes by a linear model of them with noise."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((c.rows, c.features)), rng.standard_normal((c.features, c.classes))
    y = np.concatenate([(part @ w + 3 * rng.gumbel(size=(len(part), c.classes))).argmax(axis=1) for part in np.array_split(x, 50)])
    y[: c.classes] = np.arange(c.classes)
    return x.astype({"f32": np.float32, "f64": np.float64}[c.dtype]), y


def text_data(c: Case) -> tuple[Any, Array]:
    """Return passages of Python's standard library as word counts, their norms 1, and the files that they are from."""
    from scipy import sparse
    from sklearn.preprocessing import normalize

    from ..demo.corpus import START, load

    ids = load(c.features, 1).train
    starts = np.flatnonzero(ids == START)
    length = np.diff(np.append(starts, len(ids)))
    files = np.argsort(-length)[: c.classes]
    rng = np.random.default_rng(0)
    y = np.arange(c.rows) % c.classes
    at = starts[files[y]] + 1 + (rng.random(c.rows) * (length[files[y]] - 1 - min(TOKENS, length[files].min() - 1))).astype(np.int64)
    words = ids[at[:, None] + np.arange(min(TOKENS, length[files].min() - 1))]
    ones = np.ones(words.size, {"f32": np.float32, "f64": np.float64}[c.dtype])
    counts = sparse.csr_matrix((ones, (np.repeat(np.arange(c.rows), words.shape[1]), words.ravel())), shape=(c.rows, c.features))
    return normalize(counts), y


def text(which: str, results: dict[str, Any]) -> str:
    """Return the table. A loss is that of the training data."""
    rows = []
    for r in results["records"]:
        theirs = next(name for name in r["seconds"] if name != OURS)
        seconds = [f"{median(s for s in r['seconds'][name] if s):.3g}" for name in (OURS, theirs)]
        (ours_at, our_loss), (theirs_at, their_loss) = r["found"][OURS], r["found"][theirs]
        found = ratio(r, theirs, OURS)
        cells = [f"{ours_at:.0f} / {theirs_at:.0f}", f"{our_loss:.6g} / {their_loss:.6g}"]
        rows.append([r["shape"], r["case"][4], *seconds, f"{found[0]:.3g} ({found[1]:.3g})" if found else "-", *cells])
    columns = ["", "dtype", f"{OURS}, s", "its own, s", f"own : {OURS}", "iterations", "loss"]
    packages = ", ".join(f"{name} {results['machine'][name]}" for name in PACKAGES[which])
    heading = f"Seconds of a fit with {packages}, {results['threads']} thread(s): median of the rounds (shortest)"
    return table(heading, columns, rows)
