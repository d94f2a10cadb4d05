"""L-BFGS: the minimum of a smooth function of many variables, from its values and gradients.

SciPy's L-BFGS-B computes the same iterates, but it also handles bounds, on one thread. With two million variables it took four fifths of
the time of a fit. Here an iteration reads the last PAIRS steps and the changes of the gradient twice, in products of NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .partials import Array

PAIRS = 10  # of steps and changes of the gradient that are kept
TRIALS = 50  # of a line search
DECREASE, FLATTER = 1e-3, 0.9  # what a step must reach, of the decrease that the slope foretells, and of the slope (as in SciPy)
FLAT = 64 * np.finfo(np.float64).eps  # a relative decrease that ends the search, as in scikit-learn

Function = Callable[[Array], tuple[float, Array]]


class Found(NamedTuple):
    x: Array
    nit: int
    success: bool
    message: str


def minimize(function: Function, start: Array, tol: float, max_iter: int) -> Found:
    """Search the minimum of a function, which returns its value and its gradient, a new array.

    The search ends where no entry of the gradient is larger than `tol`, or the value hardly falls any more, or after `max_iter` iterations.

    Memory: 2 PAIRS + 5 vectors.

    Source: Byrd, Nocedal and Schnabel, Representations of quasi-Newton matrices (1994), equation 3.1.
    """
    x = start.copy()
    value, gradient = function(x)
    history = _History(len(x))
    for iteration in range(max_iter + 1):
        if np.abs(gradient).max(initial=0.0) <= tol:
            return Found(x, iteration, True, "the gradient is at most tol")
        if iteration == max_iter:
            break
        direction = history.direction(gradient)
        slope = float(gradient @ direction)
        if not slope < 0:
            history.order.clear()
            direction, slope = -gradient, -float(gradient @ gradient)
        step = 1.0 if history.order else min(1.0, 1 / math.sqrt(-slope))
        found = _line_search(function, x, direction, value, slope, step)
        if found is None:
            return Found(x, iteration, False, "no step decreases the loss enough, in its precision")
        step, new_value, new_gradient = found
        history.add(direction, step, gradient, new_gradient)
        x += np.multiply(direction, step, out=direction)
        before, value, gradient = value, new_value, new_gradient
        if before - value <= FLAT * max(abs(before), abs(value), 1.0):
            return Found(x, iteration + 1, True, "the loss hardly falls any more")
    return Found(x, max_iter, False, "the number of iterations reached max_iter")


class _History:
    """The last steps s and changes y of the gradient, and their products: what is known of the inverse Hessian."""

    def __init__(self, size: int) -> None:
        self.order: list[int] = []  # the rows of the pairs, oldest first
        self.s, self.y = np.empty((2, PAIRS, size))
        self.sy, self.yy = np.zeros((2, PAIRS, PAIRS))
        self.products = np.zeros((2, PAIRS))  # S g and Y g

    def add(self, direction: Array, step: float, before: Array, after: Array) -> None:
        """Add a step and the change of the gradient, unless the function is not convex there."""
        k = len(self.order) if len(self.order) < PAIRS else self.order.pop(0)
        s = np.multiply(direction, step, out=self.s[k])
        y = np.subtract(after, before, out=self.y[k])
        sy, yy = float(s @ y), float(y @ y)
        if not sy > np.finfo(np.float64).eps * -float(s @ before):
            self.order.clear()
            return
        self.order.append(k)
        old, count = self.products, len(self.order)
        self.products = np.stack([self.s[:count] @ after, self.y[:count] @ after])
        rows = self.order[:-1]
        self.sy[rows, k] = self.products[0, rows] - old[0, rows]
        self.yy[rows, k] = self.yy[k, rows] = self.products[1, rows] - old[1, rows]
        self.sy[k, k], self.yy[k, k] = sy, yy

    def direction(self, gradient: Array) -> Array:
        """Return minus the inverse Hessian times the gradient, which is the one that was added last."""
        order, count = self.order, len(self.order)
        if not order:
            return -gradient
        sg, yg = self.products[:, order]
        sy, yy = np.triu(self.sy[np.ix_(order, order)]), self.yy[np.ix_(order, order)]
        scale = sy[-1, -1] / yy[-1, -1]
        u = np.linalg.solve(sy, sg)
        of_s = np.linalg.solve(sy.T, (np.diag(np.diag(sy)) + scale * yy) @ u - scale * yg)
        s, y = np.zeros((2, count))
        s[order], y[order] = -of_s, scale * u
        found = s @ self.s[:count]
        found += y @ self.y[:count]
        found -= scale * gradient
        return np.asarray(found)


class _Point(NamedTuple):
    """A step along the direction, and the value and the slope there."""

    step: float
    value: float
    slope: float


def _line_search(
    function: Function, x: Array, direction: Array, value: float, slope: float, step: float
) -> tuple[float, float, Array] | None:
    """Return a step that satisfies the strong Wolfe conditions, with the value and the gradient there, or None."""
    low, high = _Point(0.0, value, slope), None
    trial = np.empty_like(x)
    for _ in range(TRIALS):
        np.multiply(direction, step, out=trial)
        trial += x
        found, gradient = function(trial)
        here = _Point(step, found, float(gradient @ direction))
        if not found <= value + DECREASE * step * slope or (high and found > low.value):
            high = here
        elif abs(here.slope) <= -FLATTER * slope:
            return step, found, gradient
        elif here.slope < 0:
            low = here
        else:
            high = here
        step = _between(low, high) if high else step + min(4 * (step - low.step) if step > low.step else 4 * step, 1e10)
    return None


def _between(low: _Point, high: _Point) -> float:
    """Return the minimum of the cubic through two points, at least a tenth of their distance away from both, or the middle."""
    width = high.step - low.step
    a = low.slope + high.slope + 3 * (low.value - high.value) / width
    square = a * a - low.slope * high.slope
    if not 0 <= square < math.inf:
        return low.step + width / 2
    root = math.copysign(math.sqrt(square), width)
    bottom = high.slope - low.slope + 2 * root
    at = 1 - (high.slope + root - a) / bottom if bottom else 0.5
    return low.step + width * min(max(at, 0.1), 0.9)
