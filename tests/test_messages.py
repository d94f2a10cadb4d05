"""Messages: whatever is passed, an error is one printable line in the form of docs, and names no type of NumPy's scalars."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import environment

import softxent
import softxent.torch as st
from softxent import contract, messages
from softxent import sklearn as ours

Z, T, W = np.arange(24.0).reshape(4, 6), np.array([0, 1, 2, 0]), np.ones((6, 6))
TZ, TT, TW = torch.tensor(Z), torch.tensor(T), torch.tensor(W)
ESCAPE = "a\x1b[31m\u202e\x9b2J\nb\udc80"


class Named:
    def __repr__(self) -> str:
        return ESCAPE


HOSTILE = {
    "escape": ESCAPE, "np_str": np.str_(ESCAPE), "object": Named(), "true": True, "np_bool": np.bool_(True),
    "np_int": np.int64(-7), "np_float": np.float64(-2.5), "nan": np.float32("nan"), "half": np.float16(-2), "longdouble": np.longdouble(-3),
    "2^63": 2**63, "-2^63-1": -(2**63) - 1, "uint64": np.uint64(2**64 - 1), "huge": 10**400, "5000_digits": 10**5000,
    "list": [np.int64(1), ESCAPE], "array": np.array([ESCAPE]), "matrix": np.full((30, 40), -1.5), "date": np.datetime64("2020-01-01"),
    "complex": np.complex128(1j), "bytes": b"\x1b", "none": None, "tensor": torch.tensor([2.0, 3.0]),
}  # fmt: skip


def softmax_regression(X, y, **options):
    fit = {name: options.pop(name) for name in ("sample_weight",) if name in options}
    return ours.SoftmaxRegression(**{"max_iter": 2, "tol": 1.0, **options}).fit(X, y, **fit)


CALLS = {
    **{name: (getattr(softxent, name), (Z, T)) for name in ("cross_entropy", "cross_entropy_and_grad", "token_logprobs_and_grad")},
    **{name: (getattr(softxent, name), (Z,)) for name in ("softmax", "log_softmax", "logsumexp", "entropy")},
    "cross_entropy_hvp": (softxent.cross_entropy_hvp, (Z, Z, T)),
    "linear_cross_entropy_and_grad": (softxent.linear_cross_entropy_and_grad, (Z, W, T)),
    "linear_cross_entropy_hvp": (softxent.linear_cross_entropy_hvp, (Z, W, T, Z, W)),
    "explain": (softxent.explain, ([1.0, 2.0, 3.0], 0)),
    "torch.cross_entropy": (st.cross_entropy, (TZ, TT)),
    "torch.linear_cross_entropy": (st.linear_cross_entropy, (TZ, TW, TT)),
    "torch.log_softmax": (st.log_softmax, (TZ,)),
}
FLAGS = ("everything", "check", "gradient", "shift", "size_average", "reduce")  # any value is true or false, as in torch
OPTIONS = ("C", "tol", "solver", "max_iter", "budget", "sample_weight")


def refused_well(call, name, value):
    """A call with a hostile value gives a result, or an error of the usual form. softxent.sklearn also has scikit-learn's own checks."""
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        text = str(error)
        assert text.isprintable() and len(text) < 2000, text
        assert not re.search(r"\bnp\.|numpy\.", text.replace("NumPy", "")), text
        return text
    return ""


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", CALLS)
def test_every_error_is_one_printable_line_without_types_of_scalars(name, value):
    f, arguments = CALLS[name]
    for option, parameter in inspect.signature(f).parameters.items():
        if option not in ("label", *FLAGS) and not option.startswith("return_") and parameter.default is not parameter.empty:
            text = refused_well(lambda option=option: f(*arguments, **{option: HOSTILE[value]}), name, value)
            assert not text or re.fullmatch(r"[a-zA-Z_.]+(:|\(\)) .+", text), text


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_error_of_softmax_regression_does_too(option, value):
    refused_well(lambda: softmax_regression(Z, T, **{option: HOSTILE[value]}), option, value)


@pytest.mark.parametrize("label", [np.int64(7), np.uint8(7), np.str_(ESCAPE[:-1])], ids=ascii)
def test_every_error_that_names_a_class_does_too(label):
    y, others = np.full(4, label), np.array([1, 2]).astype(type(label))
    for call in (lambda: softmax_regression(Z, y), lambda: ours.log_loss(y, np.full((4, 2), 0.5), labels=others)):
        assert refused_well(call, "y", label)


@pytest.mark.parametrize("value", HOSTILE)
def test_every_error_of_the_settings_does_too(value):
    for call in (softxent.set_num_threads, lambda x: softxent.use_backend(x).__enter__(), lambda x: st.use_backend(x).__enter__()):
        assert refused_well(lambda call=call: call(HOSTILE[value]), "", value).endswith("") and softxent.get_num_threads() != 1


@pytest.mark.parametrize("labels", [T, T + 9, T.astype(np.uint64), np.array([0, 1, 2, 2**64 - 1], np.uint64)], ids=str)
@pytest.mark.parametrize("index", [2**63, -(2**63) - 1, 10**400, np.uint64(2**63)], ids=["2^63", "below", "huge", "uint64"])
@pytest.mark.parametrize("f", [softxent.cross_entropy, softxent.cross_entropy_and_grad, st.cross_entropy], ids=["loss", "grad", "torch"])
def test_an_ignore_index_beyond_64_bits_is_refused(f, index, labels):
    given = (Z, labels) if f is not st.cross_entropy else (TZ, torch.tensor(labels.astype(np.int64)))
    with pytest.raises(TypeError, match=r": ignore_index must be an int of at most 64 bits; got (an int of 1329 bits|-?\d+)$"):
        f(*given, ignore_index=index)


@pytest.mark.parametrize("index", [2**63 - 1, 2**63 - 2, -1, -2, -(2**63), -100])
def test_a_label_beyond_int64_is_never_the_ignored_one(index):
    for label in (2**63, 2**63 + 5, 2**64 - 1, 2**64 - 2, 2**64 - 100):
        with pytest.raises(ValueError, match=rf"got {label} at row 3"):
            softxent.cross_entropy(Z, np.array([0, 1, 2, label], np.uint64), ignore_index=index)
    if index >= 0:
        ignored = softxent.cross_entropy(Z, np.array([0, 1, 2, index], np.uint64), ignore_index=index)
        assert ignored == softxent.cross_entropy(Z[:3], T[:3])


def test_an_integer_of_a_framework_is_an_int_and_a_bool_is_none():
    for x in (5, np.int8(5), np.uint64(5)):
        assert contract.integer("f", "n", x) == 5
    for x in (True, np.bool_(True), 5.0, "5", None):
        with pytest.raises(TypeError, match=r"^f: n must be an int of at most 64 bits; got "):
            contract.integer("f", "n", x)
    with pytest.raises(ValueError, match="axis must be an int"):
        softxent.cross_entropy(Z, T, axis=True)
    with pytest.raises(ValueError, match="threads must be an int"):
        softxent.set_num_threads(True)


def test_a_number_may_be_the_least_and_the_largest_allowed():
    for x in (0, 0.0, np.float32(0), np.int64(0), 1, 1.0, np.float64(1)):
        assert contract.number("f", "x", x, low=0, high=1) == float(x)
    for x in (-5e-324, np.float64(-5e-324), 1 + 2**-52, np.float64(1 + 2**-52), -1, 2):
        with pytest.raises(ValueError, match="x must be a finite number of at least 0 and at most 1"):
            contract.number("f", "x", x, low=0, high=1)


def test_what_is_at_the_limit_of_an_option_is_accepted():
    assert softxent.cross_entropy(Z, T, label_smoothing=0, z_loss=0) == softxent.cross_entropy(Z, T)
    assert np.isfinite(softxent.cross_entropy(Z, T, label_smoothing=1, temperature=2.0**-126, softcap=2.0**-126))
    ours.SoftmaxRegression(tol=0.0, max_iter=1).fit(Z, T)


def test_a_value_is_shown_short():
    assert messages.shown(np.int64(3)) == "3" and messages.shown(np.str_("a\x1b")) == repr("a\x1b")
    assert messages.shown(10**5000) == "an int of 16610 bits" and messages.shown([np.float32(0.5), (np.int8(1),)]) == "[0.5, (1)]"
    assert len(messages.shown("x" * 10**6)) < 300


@pytest.mark.parametrize("value", ["9" * 5000, "0" * 5000 + "3", "٣", "-1", "1e3", "4097", "\x1b[31m", "\udcff", " 2 ", "²"], ids=repr)
def test_a_number_of_threads_in_the_environment_is_used_or_a_warning(value):
    code = "import softxent; print(softxent.get_num_threads(), softxent.cross_entropy([[0.0, 0.0]], [0]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(SOFTXENT_NUM_THREADS=value, PYTHONWARNINGS="default"),
        capture_output=True,
        timeout=600,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0 and "Traceback" not in err and len(err) < 1000 and "\x1b" not in err, err
    want = {"0" * 5000 + "3": "3", "٣": "3", " 2 ": "2"}.get(value)
    assert out.startswith(f"{want} ") if want else "SOFTXENT_NUM_THREADS must be an int from 1 to 4096" in err


@pytest.mark.parametrize("value", [b"\x1b[31mred", b"\xff", b"avx2\n", b"x" * 10_000], ids=repr)
def test_an_instruction_set_in_the_environment_that_is_none_is_one_printable_line(value):
    code = b"import softxent; softxent.backends()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environb, b"SOFTXENT_ISA": value}, capture_output=True, timeout=600
    )  # fmt: skip
    last = done.stderr.decode().splitlines()[-1]
    assert re.match(r"ValueError: softxent: SOFTXENT_ISA must be among [\w, ]+, which this machine has; got '", last) and last.isprintable()
    assert len(last) < 300


# ---- the same call in the three front ends ----

F, N = np.ones((4, 6), np.float32), np.zeros(4, np.int32)
LOGITS = {
    "labels that do not fit": (F, N[:3]),
    "probabilities that do not fit": (F, F[:3]),
    "floats as class indices": (F, F[:, 0]),
    "one-hot rows of integers": (F, F.astype(np.int32)),
    "labels true or false": (F, N > 0),
    "complex labels": (F, F[:, 0] * 1j),
    "labels first": (F[:, 0], F),
    "labels first, integers": (N, F),
    "no class": (F[:, :0], N),
    "a scalar": (F[0, 0], N[0]),
    "complex logits": (F * 1j, N),
    "class weights of too few classes": (F, N, F[0, :5]),
    "class weights of two axes": (F, N, F),
    "complex class weights": (F, N, F[0] * 1j),
    "sample weights that do not fit": (F, N, None, F[0]),
    "sample weights of two axes": (F, N, None, F[:, :1]),
    "complex sample weights": (F, N, None, F[:, 0] * 1j),
}
HEADS = {
    "W that does not fit": (F, F[:, :5], N),
    "W transposed": (F[:, :4], F[:, :5], N),
    "W of one axis": (F, F[0], N),
    "no class": (F, F[:0], N),
    "no feature": (F[:, :0], F[:, :0], N),
    "a scalar": (F[0, 0], F, N),
    "W of another dtype": (F, F.astype(np.float16), N),
    "complex features": (F * 1j, F, N),
    "a bias that does not fit": (F, F, N, F[0]),
    "complex bias": (F, F, N, F[0, :4] * 1j),
    "labels that do not fit": (F, F, N[:3]),
    "probabilities that do not fit": (F, F, F),
    "class weights of too few classes": (F, F, N, None, F[0, :3]),
    "sample weights that do not fit": (F, F, N, None, None, F[0]),
}
RENAMED = {
    "cross_entropy": {"weight": "class_weight", "input": "logits", "target": "labels"},
    "linear_cross_entropy": {"weight": "class_weight", "linear_weight": "weight", "linear_bias": "bias", "input": "x", "target": "labels"},
}


def refusal(call, *arguments, **named):
    with pytest.raises((ValueError, TypeError)) as error:
        call(*arguments, **{name: a for name, a in named.items() if a is not None})
    return error.type, str(error.value)


def in_numpys_words(message):
    """Return a message of softxent.torch with the names that softxent's own functions have for the arguments."""
    names = RENAMED[message.partition(":")[0]]
    message = message.replace("(pass input.movedim(0, 1) ", "(pass axis=0 ")
    return re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], message)


@pytest.mark.parametrize("arguments", LOGITS.values(), ids=LOGITS)
def test_the_three_front_ends_refuse_logits_in_the_same_words(arguments):
    jnp, sj = pytest.importorskip("jax.numpy"), pytest.importorskip("softxent.jax")
    z, t, w, sample = (*arguments, None, None)[:4]
    expected = refusal(softxent.cross_entropy, z, t, class_weight=w, sample_weight=sample)
    z, t, w, sample = (None if a is None else jnp.asarray(a) for a in (z, t, w, sample))
    assert refusal(sj.cross_entropy, z, t, class_weight=w, sample_weight=sample) == expected
    z, t, w, sample = (None if a is None else torch.tensor(np.asarray(a)) for a in (z, t, w, sample))
    error, message = refusal(st.cross_entropy, z, t, w, sample_weight=sample)
    assert (error, in_numpys_words(message)) == expected


@pytest.mark.parametrize("arguments", HEADS.values(), ids=HEADS)
def test_the_three_front_ends_refuse_heads_in_the_same_words(arguments):
    jnp, sj = pytest.importorskip("jax.numpy"), pytest.importorskip("softxent.jax")
    x, w, t, b, of_classes, sample = (*arguments, None, None, None)[:6]
    named = {"bias": b, "class_weight": of_classes, "sample_weight": sample}
    expected = refusal(softxent.linear_cross_entropy, x, w, t, **named)
    x, w, t = (jnp.asarray(a) for a in (x, w, t))
    assert refusal(sj.linear_cross_entropy, x, w, t, **named) == expected
    x, w, t = (torch.tensor(np.asarray(a)) for a in (x, w, t))
    b, of_classes, sample = (None if a is None else torch.tensor(a) for a in (b, of_classes, sample))
    error, message = refusal(st.linear_cross_entropy, x, w, t, linear_bias=b, weight=of_classes, sample_weight=sample)
    assert (error, in_numpys_words(message)) == expected
