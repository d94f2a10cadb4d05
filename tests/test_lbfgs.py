"""softxent.lbfgs: the minimum of functions, by the iterates of SciPy's L-BFGS-B."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

from softxent import lbfgs


def rosenbrock(x):
    return rosen(x), rosen_der(x)


def quadratic(size):
    scales = np.logspace(0, 3, size)
    return lambda x: (scales @ (x - 1) ** 2 / 2, scales * (x - 1))


def logistic(rng):
    x, y = rng.standard_normal((200, 12)), rng.random(200) < 0.5

    def function(w):
        z = x @ w
        return (np.logaddexp(0, z) - y * z).sum() + w @ w / 2, x.T @ (1 / (1 + np.exp(-z)) - y) + w

    return function


@pytest.mark.parametrize("name, size", [("rosenbrock", 2), ("rosenbrock", 30), ("quadratic", 1), ("quadratic", 30), ("logistic", 12)])
def test_the_minimum_is_that_of_scipy_in_about_as_many_iterations(name, size, rng):
    function = {"rosenbrock": rosenbrock, "quadratic": quadratic(size), "logistic": logistic(rng)}[name]
    start = np.full(size, -0.7)
    given = start.copy()
    found = lbfgs.minimize(function, start, 1e-7, 1000)
    theirs = minimize(function, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-7, "ftol": lbfgs.FLAT, "maxiter": 1000})
    assert found.success and (start == given).all()
    np.testing.assert_allclose(found.x, theirs.x, atol=1e-5)
    assert found.nit <= 1.5 * theirs.nit + 3, (found.nit, theirs.nit)


def test_a_direction_is_that_of_the_recursion(rng):
    """Of the two loops over the pairs, oldest first, with which the method is usually written."""
    history, matrix = lbfgs._History(20), rng.standard_normal((20, 20))
    matrix = matrix @ matrix.T + np.eye(20)
    gradient, pairs = rng.standard_normal(20), []
    for _ in range(lbfgs.PAIRS + 5):
        direction, step = rng.standard_normal(20), rng.random() + 0.1
        direction *= -np.sign(direction @ gradient)
        after = gradient + step * matrix @ direction
        history.add(direction, step, gradient, after)
        pairs = [*pairs, (step * direction, after - gradient)][-lbfgs.PAIRS :]
        gradient, q, factors = after, after.copy(), []
        for s, y in reversed(pairs):
            factors.append(s @ q / (s @ y))
            q -= factors[-1] * y
        q *= pairs[-1][0] @ pairs[-1][1] / (pairs[-1][1] @ pairs[-1][1])
        for (s, y), factor in zip(pairs, reversed(factors), strict=True):
            q += s * (factor - y @ q / (s @ y))
        np.testing.assert_allclose(history.direction(gradient), -q, rtol=1e-6, atol=1e-9)


def test_the_end_of_a_search_is_told():
    at_once = lbfgs.minimize(rosenbrock, np.ones(3), 1e-3, 5)
    assert at_once.success and at_once.nit == 0
    short = lbfgs.minimize(rosenbrock, np.zeros(3), 1e-9, 2)
    assert not short.success and short.nit == 2 and "max_iter" in short.message
    stuck = lbfgs.minimize(lambda x: (float(x @ x), -x), np.ones(2), 1e-3, 5)  # the gradient has the wrong sign
    assert not stuck.success and "no step" in stuck.message and (stuck.x == 1).all()
    beyond = lbfgs.minimize(lambda x: (float(np.where(x[0] > 2, np.nan, (x[0] - 1.9) ** 2)), 2 * (x - 1.9)), np.array([-30.0]), 1e-9, 50)
    assert beyond.success and beyond.x[0] == pytest.approx(1.9)  # a value that is NaN is too far away
