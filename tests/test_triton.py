"""The Triton kernel, on a GPU if there is one and otherwise in Triton's interpreter, and its compilation for sm_90."""

from __future__ import annotations

import json
from importlib.metadata import version

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import DTYPES, OFFS, SHAPES, Problem, allowed, exact, problem, python, within

from softxent import torch as st
from softxent.kernels import reference, triton
from softxent.torch import operators

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = {"triton": triton, "formula": reference}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_off = pytest.mark.parametrize("off", OFFS)
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def tensor(a):
    if a is None:
        return None
    a = np.ascontiguousarray(a)
    bits = torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16) if a.dtype == ml_dtypes.bfloat16 else torch.from_numpy(a.copy())
    return bits.to(DEVICE)


def array(t):
    return (t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy()


def fused(kernel, p: Problem, out=None):
    z = tensor(p.z)
    out = torch.empty_like(z) if out is None else out
    result, parts = (torch.full((n, len(z)), -7.0, dtype=torch.float64, device=DEVICE) for n in (2, 6))
    kernel.fused(z, tensor(p.label), tensor(p.truth), tensor(p.off), out, result, parts, 1)
    return result, parts, out


def two_calls(kernel, p: Problem):
    z, numbers = tensor(p.z), (tensor(p.label), tensor(p.truth), tensor(p.off))
    out, (result, parts) = torch.empty_like(z), (torch.full((n, len(z)), -7.0, dtype=torch.float64, device=DEVICE) for n in (2, 6))
    kernel.forward(z, *numbers, result, parts, 1)
    kernel.backward(z, *numbers, parts, out, 1)
    return result, parts, out


def same(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@each_off
@each_dtype
@each_kernel
def test_loss_and_gradient_are_the_formula(kernel, dtype, off):
    """The results are within the bounds of the compiled kernel, with allowances: the interpreter of Triton 3.2 has no fma, and truncates to
    bfloat16, and a GPU flushes subnormals to 0."""
    for shape in SHAPES if kernel is triton else SHAPES[::3]:
        p = problem(*shape, dtype, off)
        result, parts, dz = fused(kernel, p)
        want, (loss_bound, dz_bound) = exact(p), allowed(p)
        factor = (8 if version("triton").startswith("3.2") else 6) if dtype == np.float32 and kernel is triton else 1
        dz_bound = dz_bound + 2.0**-120 * (dtype != np.float64)
        if dtype == ml_dtypes.bfloat16 and DEVICE == "cpu":
            dz_bound = dz_bound + 2.0**-7 * np.abs(np.where(np.isfinite(want.dz), want.dz, 0))
        within(array(result[0]), want.result[0], loss_bound, f"loss {shape}")
        within(array(dz), want.dz, factor * dz_bound, f"gradient {shape}")
        lse = want.result[1].astype(float)
        near = loss_bound + np.where(np.isfinite(lse), np.abs(lse), 0) * 2.0**-50 + 2.0**-22 * (dtype != np.float64)
        within(array(result[1]), want.result[1], near, f"lse {shape}")
        same((result, parts, dz), two_calls(kernel, p))


@each_kernel
def test_an_ignored_row_is_not_looked_at(kernel):
    p = problem(9, 33, DTYPES["f32"], "dense")
    p.z[4], p.off[4], p.truth[:3, 4] = np.nan, np.nan, 0
    result, parts, dz = fused(kernel, p)
    assert result[0, 4] == 0 and result[1, 4] == -np.inf and (dz[4] == 0).all()
    assert parts[:, 4].tolist() == [-np.inf, 0, 0, 0, -np.inf, 0]
    assert not torch.isnan(dz).any()


@each_kernel
@pytest.mark.parametrize("row", [-np.inf, np.inf, np.nan])
def test_what_is_wrong_with_a_row_stays_in_it(kernel, row):
    p = problem(8, 33, DTYPES["f32"])
    clean = fused(kernel, p)
    p.z[3] = row
    spoilt = fused(kernel, p)
    assert torch.isnan(spoilt[0][0, 3]) and torch.isnan(spoilt[2][3]).all()
    others = [i for i in range(8) if i != 3]
    same([x[..., others] for x in clean[:2]], [x[..., others] for x in spoilt[:2]])
    same([clean[2][others]], [spoilt[2][others]])


@each_kernel
def test_the_gradient_may_be_written_over_the_logits_and_rows_may_lie_apart(kernel):
    p = problem(7, 1000, DTYPES["f32"], "shared")
    want = fused(kernel, p)
    wide = torch.full((7, 1100), 5.0, device=DEVICE)
    wide[:, :1000] = tensor(p.z)
    z = wide[:, :1000]
    result, parts = torch.empty_like(want[0]), torch.empty_like(want[1])
    kernel.fused(z, tensor(p.label), tensor(p.truth), tensor(p.off), z, result, parts, 1)
    same((result, parts, z), want)
    assert (wide[:, 1000:] == 5).all()


@pytest.mark.parametrize("shape", [(70, 10), (65, 100), (7, 9001)], ids=str)
def test_a_row_has_the_same_bits_in_every_batch(shape):
    p = problem(*shape, DTYPES["f32"], "dense")
    whole = fused(triton, p)
    for i in (slice(0, 1), slice(2, 5), slice(3, shape[0])):
        some = fused(triton, p.rows(i))
        same(some, (whole[0][:, i], whole[1][:, i], whole[2][i]))


def test_a_tile_has_one_shape_whatever_the_batch(monkeypatch):
    """On a GPU, the order of additions depends on the shape of the tile. The interpreter's order is always that of NumPy."""
    seen = []

    class Layer:
        def __getitem__(self, grid):
            return lambda *_, ROWS, BLOCK, **__: seen.append((ROWS, BLOCK))

    monkeypatch.setattr(triton, "_layer", Layer())
    for classes in (10, 100, 9001):
        for rows in (1, 3, 70):
            fused(triton, problem(rows, classes, DTYPES["f32"]))
        assert len(set(seen[-3:])) == 1
    assert len(set(seen)) == 3


@pytest.mark.parametrize("g", [1.0, -2.5, 0.0])
def test_a_gradient_is_scaled_in_place(g):
    x = torch.randn(3, 5000, device=DEVICE)
    want, at = x * g, x.data_ptr()
    assert triton.scale(x, torch.tensor(g, device=DEVICE)).data_ptr() == at
    torch.testing.assert_close(x, want, rtol=0, atol=0)


COMPILE = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
import triton.language as tl
from softxent.kernels import triton as kernels

INTS = ["R", "C", "z_stride", "out_stride", "off_stride", "truth_stride", "truth_row"]
found = []
for logits, wide in (("fp32", tl.float32), ("bf16", tl.float32), ("fp16", tl.float32), ("fp64", tl.float64)):
    for forward, backward, off in ((True, True, False), (True, False, True), (False, True, True)):
        rows, block = (1, 4096) if off else (256, 16)
        flags = dict(FORWARD=forward, BACKWARD=backward, HAS_OFF=off, HAS_PARTS=True, WIDE=wide, ROWS=rows, BLOCK=block)
        types = dict(z=logits, label="i64", truth="fp64", off=str(wide), result="fp64", parts="fp64", out=logits)
        signature = {n: "*" + t for n, t in types.items()} | dict.fromkeys(INTS, "i32") | dict.fromkeys(flags, "constexpr")
        aligned = (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11)
        if hasattr(triton.backends.compiler, "AttrsDescriptor"):  # Triton 3.2
            attrs = triton.backends.compiler.AttrsDescriptor.from_hints(dict.fromkeys(aligned, 16))
            source = ASTSource(kernels._layer, {n: t for n, t in signature.items() if n not in flags}, flags, attrs)
        else:
            attrs = {(i,): [["tt.divisibility", 16]] for i in aligned}
            source = ASTSource(fn=kernels._layer, signature=signature, constexprs=flags, attrs=attrs)
        made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "enable_fp_fusion": False})
        ptx = made.asm["ptx"]
        found.append([logits, len(made.asm["cubin"]), ".local" in ptx, ".v4.b32" in ptx])
print(json.dumps(found))
"""


def test_it_compiles_for_a_gpu_without_spilling(tmp_path):
    """It is compiled for sm_90 by Triton's compiler, without spilled registers, and reads a tile 16 bytes at a time."""
    found = json.loads(python(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)).splitlines()[-1])
    assert len(found) == 12
    for logits, size, spills, vector in found:
        assert size > 1000 and not spills and (vector or logits == "fp64")


# ---- the front end over both ----

each_backend = pytest.mark.parametrize("backend", KERNELS)


@each_backend
def test_nothing_waits_for_the_device(backend, monkeypatch):
    """Neither the loss nor its gradient nor the scaling by an upstream gradient reads a number from the device."""
    monkeypatch.setattr(operators, "check_labels", lambda *_: None)
    z, t = torch.randn(6, 5, device=DEVICE, requires_grad=True), torch.randint(0, 5, (6,), device=DEVICE)
    with st.use_backend(backend), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        (st.cross_entropy(z, t, weight=torch.rand(5, device=DEVICE), label_smoothing=0.1) * 3).backward()
        st.cross_entropy(z, t, reduction="none", return_lse=True).loss.sum().backward()
    names = {e.name for e in seen.events()}
    assert ("aten::mul" in names) and ("aten::empty_like" in names)
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


@each_backend
def test_an_unchecked_label_out_of_range_spoils_its_row_alone(backend, monkeypatch):
    z, t = torch.randn(6, 5, device=DEVICE, requires_grad=True), torch.randint(0, 5, (6,), device=DEVICE)
    t[2] = 7
    with st.use_backend(backend):
        if DEVICE == "cpu":
            with pytest.raises(ValueError, match=r"^cross_entropy: target must lie in \[0, 5\) or be ignore_index=-100; got 7 at row 2$"):
                st.cross_entropy(z, t)
            monkeypatch.setattr(operators, "check_labels", lambda *_: None)
        loss = st.cross_entropy(z, t, reduction="none")
        (dz,) = torch.autograd.grad(loss.sum(), z)
        mean = st.cross_entropy(z, t)
    bad = torch.arange(6, device=DEVICE) == 2
    assert (loss.isnan() == bad).all() and (dz.isnan() == bad[:, None]).all() and mean.isnan()


@each_backend
@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
        lambda z: z[:, None].expand(-1, 2, -1)[:, 1],
        lambda z: torch.stack([z, z], 2)[..., 1],
    ],
    ids=["columns", "expanded", "apart"],
)
def test_any_layout(backend, layout):
    z, t = torch.randn(6, 5, device=DEVICE), torch.randint(0, 5, (6,), device=DEVICE)
    found = []
    with st.use_backend(backend):
        for x in (z.clone(), layout(z)):
            x.requires_grad_()
            loss = st.cross_entropy(x, t, z_loss=0.1)
            found.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    same(*found)


@each_backend
def test_every_derivative(backend):
    torch.manual_seed(0)
    z = torch.randn(3, 4, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    t = torch.randint(0, 4, (3, 2), device=DEVICE)

    def loss(z, reduction="none"):
        r = st.cross_entropy(z, t, reduction=reduction, label_smoothing=0.1, z_loss=0.01, return_lse=True)
        return r.loss.sum() + (r.lse**2).sum()

    with st.use_backend(backend):
        torch.autograd.gradcheck(loss, (z,), check_forward_ad=True)
        torch.autograd.gradgradcheck(loss, (z,))
        torch.autograd.gradcheck(lambda z: st.cross_entropy(z, t) * -2, (z,))


def test_backends_says_what_computes():
    names = {b.name: b for b in st.backends()}
    assert list(names) == ["cpu", "triton", "formula"]
    assert names["cpu"].active and names["triton"].available == names["triton"].active == torch.cuda.is_available()
    with st.use_backend("formula"):
        assert [b.name for b in st.backends() if b.active] == ["formula"]
    with pytest.raises(ValueError, match=r"^use_backend: name must be 'formula' or 'triton'; got 'cuda'"), st.use_backend("cuda"):
        pass


def test_without_triton_the_formula_computes_and_says_so():
    code = """
import sys, warnings
sys.modules["triton"] = None
import torch, softxent.torch as st
from softxent.torch import compute
print([(b.name, b.available) for b in st.backends()], st.backends()[1].detail)
class Cuda:
    is_cpu, is_cuda, device = False, True, torch.device("cuda")
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    print(compute.backend(Cuda).__name__, compute.backend(Cuda).__name__, len(seen), str(seen[0].message)[:48])
"""
    listed, computed = python(code).splitlines()
    assert listed.startswith("[('cpu', True), ('triton', False), ('formula', True)] Triton is missing (")
    assert computed == "softxent.kernels.reference softxent.kernels.reference 1 softxent runs on torch's operations, slowly: Tri"
