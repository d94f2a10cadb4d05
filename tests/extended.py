"""What a row gives, from its definition in numbers of 80 bits, for arguments of any size, and how far a result may be from it.

The exponents of these numbers reach from -16,445 to 16,383, so that no product of a row's numbers overflows, and e^-x is 0 only where any
product with it is. The bounds are those of proof/bounds.py, which explains u, v, e and the depth of a sum, in these numbers too, and with
what a softcap or a temperature adds. Let x_k = top - z_k be the distance of a transformed logit from the largest:

    delta_k    the error of x_k: 2v x_k; with a temperature 4u x_k more (a difference, 1/T, a product), with a softcap 8u (|z_k| + |top|)
    drift      that of lse - top: log sum yhat_k e^delta_k, and never more than the largest delta_k
    yhat_k     is multiplied by at most e^(e + delta_k + drift + 10u), and stays below 1
    away_k     lse - z_k: e + delta_k + drift. Where the label has the largest logit, this is a relative error, from the other classes
    slope      4u, and with a softcap (4 |x / cap| + 10) u, and no digits below the normal numbers
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from cases import Problem, computed

from softxent.partials import times
from softxent.proof import bounds

WIDE = np.longdouble
V, TINY64 = bounds.UNIT["float64"], bounds.TINY["float64"]
GONE = {"float64": 760, "float32": 110}  # e^-x is 0 beyond


class Value(NamedTuple):
    want: Any
    bound: Any


class Transformed(NamedTuple):
    """Transformed logits and how far they are from the largest, derivatives of the transform, the relative error of the slope in units, and
    that of a difference of logits."""

    z: Any
    dist: Any
    slope: Any
    bend: Any
    steep: Any
    spoiled: float


def transformed(p: Problem) -> Transformed:
    x, temperature, cap = p.z.astype(WIDE), WIDE(p.transform[0]), WIDE(p.transform[1])
    if np.isinf(cap):
        dist = (x.max(axis=1, keepdims=True) - x) / temperature  # x / temperature is rounded, also in 80 bits
        return Transformed(x / temperature, dist, 1 / temperature, 0, 0, 4 * (temperature != 1))
    tanh, slope = np.tanh(x / cap), np.cosh(x / cap) ** -2 / temperature
    z = cap * tanh / temperature
    return Transformed(z, z.max(axis=1, keepdims=True) - z, slope, -2 / cap * tanh * slope, 10 + 4 * np.abs(x / cap), 4)


def growth(error: Any) -> Any:
    return np.expm1(np.minimum(error, 11_000))


def grown(away: Any, error: Any) -> Any:
    """Return e^-away (e^error - 1), also where e^-away is too small for 80 bits."""
    return np.where(error < 1, times(np.exp(-away), growth(np.minimum(error, 1))), np.exp(np.minimum(error - away, 11_000)))


def finite(a: Any) -> Any:
    return np.where(np.isfinite(a), a, 0)


@np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
def expected(
    p: Problem, v: np.ndarray | None = None, gauss_newton: bool = False, rounded: bool = False, blur: Any = 0, dtype: Any = None
) -> dict[str, Value]:
    """Return each result and the bound of its error, before it is stored. `p.label` has no LARGEST, and no row is IGNORED.

    `rounded`: the numbers of the rows and the truth at every class are given in 80 bits, and rounded to float64 and the type of the
    computation. A truth that may be rounded to 0 counts or not where the logit is -inf. `blur` [R, C]: errors of the
    logits, which are then given in 80 bits, for a computation in `dtype`.
    """
    dtype, classes = dtype or p.z.dtype, p.z.shape[1]
    kind = computed(dtype).name
    u, least, far = bounds.UNIT[kind], bounds.TINY[kind], GONE[kind]
    e = WIDE(bounds.loss_bound(dtype, classes))
    z, dist, slope, bend, steep, spoiled = transformed(p)
    hot = p.label[:, None] == np.arange(classes)
    highest = z.max(axis=1)
    tied = (hot & (z == highest[:, None])).any(axis=1)
    base = np.arange(classes) == np.where(tied, p.label, z.argmax(axis=1))[:, None]  # the largest logit; the label, where that is one
    apart = base & hot

    # ---- the prediction ----
    odds = times(~base, np.exp(-dist)).sum(axis=1, keepdims=True)
    away = np.where(base, 0, dist) + np.log1p(odds)  # lse - z_k
    yhat, miss = np.exp(-away), -np.expm1(-away)
    lse = highest + np.log1p(odds)[:, 0]
    delta = finite(
        2 * V * dist + (spoiled * u * dist if np.isinf(p.transform[1]) else 2 * spoiled * u * (np.abs(z) + np.abs(highest[:, None])))
    )
    d_slope = 0 if np.isinf(p.transform[1]) else growth(2 * blur / WIDE(p.transform[1]))
    blur = slope * blur * np.ones_like(z)
    delta += blur + blur.max(axis=1, keepdims=True)
    most = delta.max(axis=1, keepdims=True)
    more = grown(away, delta)
    drift = np.minimum(np.log1p(more.sum(axis=1, keepdims=True)), most)
    others = times(~base, yhat).sum(axis=1, keepdims=True)
    of_odds = e + np.minimum(np.log1p(np.nan_to_num(times(~base, more).sum(axis=1, keepdims=True) / others, posinf=np.inf)), most)
    error = e + delta + drift
    more = np.where(
        of_odds < 1,
        times(away, growth(np.minimum(of_odds, 1) + 14 * V)),
        np.log1p(times(~base, grown(away, error)).sum(axis=1, keepdims=True)),
    )
    d_top = np.where(base, np.minimum(of_odds, more), error + 4 * V * finite(away))
    d_away = np.where(base & ~hot, error, d_top)
    d_yhat = np.minimum(grown(away, error + 10 * u), 1)
    d_miss = np.where(of_odds < 1, np.minimum(times(miss, growth(of_odds + 14 * V)), 1), 1)
    d_yhat = np.where(apart, d_miss + 4 * V * yhat, d_yhat)
    upper, near = yhat + d_yhat, np.minimum(away, far)
    d_lse = (e + drift)[:, 0] + (2 * spoiled * u + V) * np.abs(highest) + 2 * V * np.abs(lse) + blur.max(axis=1)
    found = {
        "lse": Value(lse, d_lse),
        "log-softmax": Value(-away, d_top + 3 * u * finite(away) + classes * TINY64),
        "largest": Value(highest, d_lse),
    }

    # ---- what a row gives ----
    numbers = np.zeros((7, len(z)), WIDE)
    numbers[: len(p.truth)] = p.truth
    y, r, q, g, l, b, n = numbers[:, :, None]  # noqa: E741
    absent = ~hot.any(axis=1)
    off = np.zeros_like(z) if p.off is None else p.off.astype(WIDE) * np.ones_like(z)
    d_off = (4 * u * off + least * (off > 0)) if rounded else 0 * off
    unsure = rounded & (off > 0) & (off < 2 * least) & np.isinf(away)
    off = np.where(unsure, 0, off)
    truth = r * off + y * hot
    at, rest = times(hot, truth).sum(axis=1, keepdims=True), times(~hot, r * off).sum(axis=1, keepdims=True)
    at = at + times(absent[:, None], y)  # no column has it, and the mass does
    mass = at + rest
    penalty = q[:, 0] * lse**2 / 2
    amount = times(truth, away).sum(axis=1)
    loss = amount + penalty + times(times(absent, y[:, 0]), np.inf)
    d_loss = (times(truth, d_away) + times(r * off * ~hot, 6 * u * away) + times(r * d_off, away)).sum(axis=1) + 12 * V * (amount + penalty)
    d_loss += q[:, 0] * (np.abs(lse) * d_lse + d_lse**2 / 2) + 2 * classes * ((1 + mass) * TINY64 + least * r)[:, 0]
    d_loss += TINY64 * (lse**2 + finite(away).sum(axis=1)) + np.where(unsure.any(axis=1), np.inf, 0)
    entropy = times(yhat, away).sum(axis=1, keepdims=True)
    d_entropy = (times(d_yhat + 8 * u * upper, away) + times(upper, d_away)).sum(axis=1, keepdims=True)
    d_entropy = np.minimum(d_entropy, np.log(classes) + e) + 2 * least * (1 + times(yhat < least * 2**30, near)).sum(axis=1, keepdims=True)
    own = np.where(absent, np.inf, times(hot, away).sum(axis=1))
    found["loss"] = Value(loss, d_loss)
    found["log-probability"] = Value(-own, times(hot, d_away).sum(axis=1) + 14 * V * finite(own) + classes * TINY64)
    found["entropy"] = Value(entropy[:, 0], d_entropy[:, 0] + classes * TINY64)

    # ---- the gradient: A yhat_k + n yhat_k away_k - g r off_k ----
    level, size = q * lse[:, None], np.abs(g)
    a = g * (mass + level) + l - b - n * entropy
    parts = size * (mass + np.abs(level)) + np.abs(l) + np.abs(b) + np.abs(n) * entropy
    d_level = size * (q * d_lse[:, None] + 4 * u * mass + (r * d_off).sum(axis=1, keepdims=True) + TINY64 * (4 + np.abs(lse))[:, None])
    d_level = d_level + TINY64 * (mass + np.abs(level))
    d_a = d_level + np.abs(n) * d_entropy + 8 * V * parts
    weight = parts + np.abs(n) * finite(away)
    dz = a * yhat + n * times(yhat, away) - g * r * off
    d_dz = times(d_yhat + 8 * u * upper, weight) + times(upper, d_a + np.abs(n) * d_away) + size * r * (5 * u * off + d_off)
    d_dz += 2 * least * (parts + (np.abs(n) + (n != 0)) * near) + 4 * TINY64 * (1 + off)
    for_label = size * (rest + np.abs(level)) + np.abs(l) + np.abs(n) * (finite(away) + entropy)
    dz_t = g * ((rest + level) * yhat - at * miss) + l * yhat + b * miss + n * (times(yhat, away) - entropy * yhat)
    d_dz_t = times(d_yhat + 14 * V * upper, for_label) + (np.where(apart, d_yhat, d_yhat + 4 * V) + 14 * V * miss) * (size * at + np.abs(b))
    d_dz_t += 4 * TINY64 * size + times(upper, d_level + np.abs(n) * (d_away + d_entropy)) + classes * TINY64 * (4 + weight + size * at)
    dz, d_dz = np.where(hot, dz_t, dz), np.where(hot, d_dz_t, d_dz)
    faint = 0 if np.isinf(p.transform[1]) else 8 * float(ml_dtypes.finfo(kind).tiny)
    d_slope = times(slope * np.ones_like(z), (4 + steep) * u + d_slope) + faint / WIDE(p.transform[0])
    largest = np.maximum(np.maximum(parts, mass + np.abs(level)), np.abs(lse)[:, None])
    beyond = np.where(largest > 1e307, np.inf, 0)  # no float64 has the coefficients
    found["gradient"] = Value(slope * dz, slope * d_dz + times(d_slope, np.abs(dz)) + beyond)
    if v is None:
        return found

    # ---- its derivative along v: yhat_k ((A - n + n away_k) c_k + da), c = w - mean, w = slope v ----
    w = times(slope * np.ones_like(z), v.astype(WIDE))
    d_w = np.zeros_like(w) if np.isinf(p.transform[1]) else times(d_slope, np.abs(v))
    lead_w, d_lead_w = (times(base, x).sum(axis=1, keepdims=True) for x in (w, d_w))
    spread = w.max(axis=1, keepdims=True) - w.min(axis=1, keepdims=True)
    rel = w - lead_w
    lead = times(yhat, rel).sum(axis=1, keepdims=True)
    c, mean = rel - lead, lead_w + lead
    rough = d_yhat + 10 * u * upper
    d_lead = times(~base, rough * spread + times(upper, d_w + d_lead_w)).sum(axis=1, keepdims=True) + least * classes * spread
    d_c = d_lead + 2 * u * np.abs(rel) + 2 * V * np.abs(lead_w) + d_w + d_lead_w
    d_mean = d_lead + d_lead_w + ((4 if spoiled else 0) * u + 2 * V) * np.abs(lead_w)
    along = times(yhat * c, away).sum(axis=1, keepdims=True)  # the derivative of the entropy
    d_along = (times(rough * np.abs(c), away) + times(upper * d_c, away) + times(upper * np.abs(c), d_away)).sum(axis=1, keepdims=True)
    d_along += 2 * least * (spread * near).sum(axis=1, keepdims=True)
    da, weight = g * q * mean - n * along, weight + np.abs(n)
    d_da = size * q * d_mean + np.abs(n) * d_along + 4 * V * (size * q * np.abs(mean) + np.abs(n * along))
    hv = times(yhat, (a - n) * c + n * times(c, away) + da)
    d_hv = times(rough, np.abs(c) * weight + np.abs(da)) + times(upper, weight * d_c + np.abs(c) * (d_a + np.abs(n) * d_away) + d_da)
    d_hv += 2 * least * ((parts + np.abs(n) * (1 + near)) * spread + np.abs(da)) + 4 * TINY64
    turn = np.zeros_like(z) if gauss_newton else times(bend * np.ones_like(z), v.astype(WIDE))
    d_turn = times(d_slope, np.abs(2 / WIDE(p.transform[1]) * v)) + 10 * u * np.abs(turn)
    d_bend = (
        4 * least * np.abs(v).max(axis=1, keepdims=True).astype(WIDE) / WIDE(p.transform[1]) / WIDE(p.transform[0]) * (parts + size * r)
    )
    product = Value(
        slope * hv + times(turn, dz), slope * d_hv + d_slope * np.abs(hv) + np.abs(turn) * d_dz + d_turn * np.abs(dz) + d_bend + beyond
    )
    floor = 2 * classes * least
    share = Value(times(off, c).sum(axis=1), (times(off, d_c) + 6 * u * off * np.abs(c)).sum(axis=1) + floor)
    found |= {
        "Hessian product": product,
        "mean of v": Value(mean[:, 0], d_mean[:, 0] + floor),
        "v less its mean": Value(times(hot, c).sum(axis=1), times(hot, d_c).sum(axis=1) + floor),
        "off along v": share,
        "entropy along v": Value(along[:, 0], d_along[:, 0] + floor),
    }
    return found


class Worst(dict[str, float]):
    """The largest error divided by its bound, of each kind of result."""

    def check(self, kind: str, got: Any, value: Value, where: str = "") -> None:
        """Assert |got - want| <= bound, with the rounding of got's type.

        got need not be finite where want is beyond the range of its type, or beyond a quarter of it for float64.
        """
        got = np.asarray(got)
        name = got.dtype.name
        most, x = WIDE(float(ml_dtypes.finfo(got.dtype).max)), got.astype(WIDE)
        want, bound = np.broadcast_to(value.want, got.shape), np.broadcast_to(value.bound, got.shape)
        real = np.isfinite(want)
        with np.errstate(invalid="ignore", over="ignore"):
            bound = np.where(real, bound, 0) * 1.001
            bound = bound + 2 * bounds.UNIT[name] * (np.abs(np.where(real, want, 0)) + bound) + 4 * bounds.TINY[name]
            error = np.abs(x - want)
            fine = np.asarray((error <= bound) | (~real & ((x == want) | (np.isnan(x) & np.isnan(want)))))
            fine |= ~np.isfinite(x) & (np.abs(want) + bound > most * (0.25 if name == "float64" else 1 - bounds.UNIT[name]))
            fine |= np.isinf(bound)
            ratio = np.where(np.isfinite(error) & real & np.isfinite(bound), error / bound, 0)
        if not fine.all():
            at = tuple(int(i) for i in np.unravel_index(int(np.argmin(fine)), fine.shape))
            which = f"{where} {(~fine).sum()} of {fine.size} beyond the bound, first at {at}"
            raise AssertionError(f"{kind}: {which}: got {got[at]!r}, want {want[at]!r}, bound {bound[at]!r}")
        self[kind] = max(self.get(kind, 0.0), float(ratio.max(initial=0)))
