"""Rounding.v and Frechet.v: Coq accepts their theorems and no others, and the bounds of rounding errors are those of bounds.py."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pytest
from cases import BACKENDS, Problem, allowed, command
from test_bounds import first, measured

import softxent
from softxent import formula
from softxent.explanation import verdict
from softxent.partials import finish
from softxent.proof import bounds, frechet, prove, rounding
from softxent.proof.derivation import DERIVATIONS
from softxent.proof.prove import AXIOMS, FRECHET, ROUNDING, check_file

CLASSES = (2, 3, 10, 65, 1000, 4097, 128_256)


def evaluated(expression: str, **numbers):
    """Return the value of an expression of rounding.py, in which Coq and Python differ in the syntax of calls only."""
    for name, (arguments, _) in rounding.BOUNDS.items():
        operand = r"(\([^()]*(?:\([^()]*\))?[^()]*\)|\w+)"
        call = re.compile(rf"\b{name}" + rf" {operand}" * len(arguments.split()))
        while found := call.search(expression):
            inner = dict(zip(arguments.split(), (evaluated(x, **numbers) for x in found.groups()), strict=True))
            numbers[f"_{name}"] = evaluated(rounding.BOUNDS[name][1], **inner)
            expression = expression[: found.start()] + f"_{name}" + expression[found.end() :]
    names = {
        "z t": "zt",
        "z k": "zk",
        "INR n": "n",
        "ln n": "ln(n)",
        "softmax n zk": "yhat",
        "softmax n zt": "hit",
        "bpow radix2 h": "2**h",
    }
    for coq, python in names.items():
        expression = re.sub(rf"\b{coq}\b", python, expression)
    expression = expression.replace("Rabs (", "abs(")
    return eval(expression, {"ln": math.log, "abs": np.abs}, numbers)


@pytest.mark.parametrize("file", [ROUNDING, FRECHET], ids=lambda file: file.source.stem)
def test_coq_proves_the_theorems(file):
    coqc = shutil.which("coqc")
    assert coqc, "coqc is missing"
    found = check_file(coqc, file)
    assert not found.missing, f"{file.library} is missing: {file.how_to_get}"
    assert found.proved and found.axioms == AXIOMS, found.error
    assert not re.search(r"\b(Axiom|Parameter|Conjecture|Admitted|admit|Abort|Unset|bypass_check)\b", file.source.read_text())


FALSE = {  # what is replaced in rounding.py or frechet.py, by what is not proved
    "a smaller bound": (ROUNDING, rounding.BOUNDS, "loss_bound", "3 * gap", "2 * gap"),
    "no term for a subnormal g r": (ROUNDING, rounding.THEOREMS, "other_entry", " + 1.03 * off * (eta + eta_n / bpow radix2 h)", ""),
    "no underflow": (ROUNDING, rounding.THEOREMS, "loss_of_label", " + 4 * INR n * eta", ""),
    "a hypothesis less": (ROUNDING, rounding.HYPOTHESES, "Build_row_computed", "(en <= 0)%Z /\\ ", ""),
    "another gradient": (FRECHET, frechet.THEOREMS, "gradient_is_the_derivative", "gradient n y", "softmax n"),
}


@pytest.mark.parametrize("false", FALSE)
def test_coq_refuses_what_is_not_proved(false, monkeypatch):
    file, table, name, was, now = FALSE[false]
    entry = table[name]
    wrong = entry.replace(was, now) if isinstance(entry, str) else tuple(x.replace(was, now) for x in entry)
    assert wrong != entry
    monkeypatch.setitem(table, name, wrong)
    found = check_file(shutil.which("coqc"), file)
    assert not found.proved and found.error and "states something else" in found.error


def test_without_its_library_a_file_is_not_called_proved(monkeypatch, capsys):
    missing = "Cannot find a physical path bound to logical path Core with prefix Flocq."
    monkeypatch.setattr(prove, "_compiled_file", lambda *_: (b"", missing, 0.0))
    line = prove.Checked(next(iter(DERIVATIONS.values())), 0, "no line", coq_seconds=0.0)
    found = prove.Proof([line], [check_file("coqc", ROUNDING)], coq="8.20", axioms=AXIOMS)
    monkeypatch.setattr(verdict, "with_progress", lambda *_, further: found if further else None)
    code, out, _ = command(["prove"], capsys)
    out = " ".join(out.split())
    assert code == 3 and "Rounding.v is not proved" in out and "libcoq-flocq" in out and "not run loss_of_label" in out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", CLASSES)
def test_the_bounds_are_those_of_bounds_py(dtype, classes):
    numbers = {"u": bounds.unit(dtype), "v": 2.0**-53, "depth": bounds.depth(classes), "n": classes}
    for gap in (0.0, 0.3, 40.0, 1e5):
        ours = {name: evaluated(says, gap=gap, distance=gap, **numbers) for name, (_, says) in rounding.BOUNDS.items()}
        theirs = (bounds.sum_bound(dtype, classes), bounds.loss_bound(dtype, classes, gap), bounds.grad_bound(dtype, classes, gap))
        assert list(ours.values()) == pytest.approx(theirs, rel=1e-14, abs=0)  # the order of the additions


@pytest.mark.parametrize("lanes", [16, 8])
def test_a_block_is_as_deep_as_bounds_py_says(lanes):
    """`sum_of_a_block`, and 3 units for the factor of the block. Rows of up to 64 columns have another tree."""
    for classes in range(65, 4097):
        groups = -(-classes // (4 * lanes))
        assert groups + math.log2(lanes) + 1 + 3 <= bounds.depth(classes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", (2, 10, 65))
def test_the_tolerance_of_the_gradient_is_not_below_the_theorem(dtype, classes):
    """Rows with a label and without z-loss, whose mass is computed within loss_bound."""
    p = first(np.random.default_rng(3), 120, classes, np.dtype(dtype))
    p.truth[2] = 0
    p.truth[3] = np.abs(p.truth[3])
    z = p.z.astype(float)
    off = p.off.astype(float)
    x = formula.partials(z, p.label, off)
    y, r, _, g = p.truth
    mass = y + r * off.sum(axis=1)
    gap = np.where(p.label >= 0, np.abs(x.m - x.zt), 0)
    smallest = bounds.TINY["float64"], bounds.TINY[dtype]
    numbers = {
        "u": bounds.unit(dtype), "v": 2.0**-53, "depth": bounds.depth(classes), "n": classes, "m": x.m[:, None], "zt": (x.m - gap)[:, None],
        "g": g[:, None], "r": r[:, None], "off": off, "lost_mass": 0.0, "h": 126, "eta": smallest[0] / 2, "eta_n": smallest[1] / 2,
    }  # fmt: skip
    ours = evaluated(rounding.OTHER_ENTRY, zk=z, yhat=formula.softmax(z, x), mass=mass[:, None], **numbers)
    hot = np.arange(classes) == p.label[:, None]
    tolerance = allowed(p)[1]
    assert (ours <= tolerance)[~hot & (p.label >= 0)[:, None]].all()
    p = p._replace(truth=p.truth * [[1], [0], [1], [1]])
    nll, miss, _ = finish(x)
    bound = rounding.LABEL_ENTRY.replace("(1 - softmax n z t)", "miss")  # without cancellation
    ours = evaluated(bound, hit=np.exp(-nll)[:, None], miss=miss[:, None], mass=y[:, None], **numbers) + 0 * z
    assert (ours <= allowed(p)[1] * (1 + 1e-12))[hot].all()  # the order of the operations differs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "of_r", "of_off", "g"), [(np.float32, -140, 120, 1.0), (np.float32, -240, 120, 1.0), (np.float64, -1070, 1000, 0.7)]
)
def test_a_subnormal_g_r_is_within_the_bounds(backend, dtype, of_r, of_off, g):
    """The theorem `other_entry` has a term for it: r is so small that g r is subnormal, and off so large that their product is not."""
    z = np.array([[20, 0, 1, -3.0], [-3, 0, 1, 0.0]] * 3, dtype)
    off = (np.array([1, 0.5, 0.7, 0.2]) * 2.0**of_off * np.ones((6, 1))).astype(dtype)
    truth = np.array([[0.0] * 6, np.array([1.37, 1.9, 1.01] * 2) * 2.0**of_r, [0.0] * 6, [g] * 6])
    p = Problem(z, np.array([-1, 0, 1, 2, 3, -1]), truth, off)
    with softxent.use_backend(backend):
        assert measured(p)[:4].max() <= 1
