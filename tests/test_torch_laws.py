"""softxent.torch compared with the NumPy front end, for every option and dtype, and special values on every backend.

test_conformance.py compares it with the definitions.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, OPTIONS, option_cases
from tolerances import FEW64, FLOAT32

import softxent
from softxent import torch as st

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["cpu", "formula", "triton"]
TYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
each_option = pytest.mark.parametrize("option", OPTIONS)
each_dtype = pytest.mark.parametrize("dtype", TYPES)
ROWS, CLASSES = 9, 7


@pytest.fixture(params=BACKENDS)
def device(request):
    """Return the device of the tensors for a backend; the compiled kernel takes CPU tensors."""
    if request.param == "cpu":
        yield "cpu"
        return
    with st.use_backend(request.param):
        yield DEVICE


def logits(rng, kind: str) -> np.ndarray:
    z = rng.standard_normal((ROWS, CLASSES))
    z[np.arange(ROWS), rng.integers(0, CLASSES, ROWS)] += 12 * (kind == "peaked")
    return z


def torchs(labels, options, device):
    """Return the labels and options of the NumPy front end as those of torch."""
    as_tensor = lambda x: torch.as_tensor(x).to(device) if isinstance(x, np.ndarray) else x  # noqa: E731
    named = {"weight" if name == "class_weight" else name: as_tensor(x) for name, x in options.items()}
    return as_tensor(labels), named


@each_option
@each_dtype
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_the_front_end_adds_nothing_to_numpys(reduction, dtype, option, rng):
    """It gives the same bits, rounded once to the dtype of the logits."""
    labels, options = option_cases(rng, ROWS, CLASSES)[option]
    z = logits(rng, "peaked").astype(DTYPES[dtype])
    loss, dz = softxent.cross_entropy_and_grad(z, labels, reduction=reduction, **options)
    bits = torch.from_numpy(z.view(np.int16)).view(torch.bfloat16) if z.dtype == ml_dtypes.bfloat16 else torch.from_numpy(z)
    x = bits.clone().requires_grad_()
    target, named = torchs(labels, options, "cpu")
    mine = st.cross_entropy(x, target, reduction=reduction, **named)
    (grad,) = torch.autograd.grad(mine, x, torch.ones_like(mine))
    assert torch.equal(mine.detach(), torch.as_tensor(loss).to(mine.dtype))
    assert grad.view(torch.uint8).numpy().tobytes() == np.ascontiguousarray(dz).tobytes()


# ---- special values ----


def test_a_tie_of_the_label_and_another_class_is_correct(device):
    z = torch.tensor([[2.0, 2.0, 1.0], [1.0, 2.0, 2.0], [1.0, 1.0, 2.0]], device=device)
    assert st.cross_entropy(z, torch.tensor([1, 1, 1], device=device), return_correct=True).correct == 2


def test_a_row_of_nan_whose_lse_is_not_used_has_gradient_0(device):
    z = torch.tensor([[torch.nan, 1.0, 2.0], [3.0, 1.0, 2.0]], device=device, requires_grad=True)
    (dz,) = torch.autograd.grad(st.logsumexp(z, 1), z, torch.tensor([0.0, 1.0], device=device))
    assert (dz[0] == 0).all()
    torch.testing.assert_close(dz[1], z[1].softmax(0), rtol=FLOAT32, atol=0)


LAZY = {"negated": torch._neg_view, "zeros": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device)}


@pytest.mark.parametrize("make", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "none"}], ids=lambda o: next(iter(o), "plain"))
def test_values_that_are_not_in_memory(device, options, make):
    """A tensor may be negated, or 0, only when it is read: logits, labels, probabilities and upstream gradients."""
    rng = np.random.default_rng(0)
    x, u = (torch.as_tensor(rng.random((ROWS, CLASSES))).to(device) for _ in range(2))
    t = torch.as_tensor(rng.integers(0, CLASSES, ROWS)).to(device)
    for given, target in ((make(x), t), (x, make(-t)), (make(x), make(-u))):
        z, w = given.detach().requires_grad_(), given.clone().requires_grad_()
        loss, want = st.cross_entropy(z, target, **options), F.cross_entropy(w, target.clone(), **options)
        torch.testing.assert_close(loss, want, rtol=FEW64, atol=FEW64)
        up = make(torch.ones_like(want))
        torch.testing.assert_close(torch.autograd.grad(loss, z, up), torch.autograd.grad(want, w, up.clone()), rtol=FEW64, atol=FEW64)
