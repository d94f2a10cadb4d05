"""The functions of other libraries that tools/field.py checks and whose signature `softxent check` does not know.

Each function adapts the signature alone. Liger's and cut-cross-entropy's kernels run on CPU tensors, in Triton's interpreter, which
is given what it lacks (`_interpreter`). The functions of these two have an attribute `dtypes`, the dtypes that they are tried in.
"""

from __future__ import annotations

import os
import warnings
from functools import cache

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"


def torch_in_chunks(
    input, linear_weight, target, *, linear_bias=None, weight=None, reduction="mean", ignore_index=None, label_smoothing=0.0
):  # fmt: skip
    """torch's linear_cross_entropy, with the logits computed in chunks of two rows."""
    import torch

    warnings.simplefilter("ignore")  # it warns where it computes all logits at once
    return torch.nn.functional.linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight, reduction=reduction, ignore_index=ignore_index,
        label_smoothing=label_smoothing, options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2, allow_retain_graph=True),
    )  # fmt: skip


@cache
def _within_loss_parallel():
    from torch.distributed.tensor.parallel import loss_parallel

    loss_parallel().__enter__()  # for good: the backward pass must be within it, too


def torch_loss_parallel(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    import torch

    _within_loss_parallel()
    return torch.nn.functional.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


# ---- Keras, on PyTorch ----


@cache
def _keras():
    os.environ["KERAS_BACKEND"] = "torch"  # not for TensorFlow, which imports Keras and does not load beside PyTorch
    import keras

    return keras


def _class_axis(input):
    return 1 if input.ndim > 2 else -1  # as in torch


def keras_sparse_categorical_crossentropy(input, target, *, ignore_index=None):
    return _keras().losses.sparse_categorical_crossentropy(
        target, input, from_logits=True, ignore_class=ignore_index, axis=_class_axis(input)
    )  # fmt: skip


def keras_categorical_crossentropy(input, target, *, label_smoothing=0.0):
    return _keras().losses.categorical_crossentropy(
        target, input, from_logits=True, label_smoothing=label_smoothing, axis=_class_axis(input)
    )


# ---- TensorFlow ----


def tf_sparse_softmax_cross_entropy_with_logits(logits, labels):
    import tensorflow as tf

    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits).numpy()


def tf_sparse_softmax_cross_entropy_with_logits_and_grad(logits, labels, *, upstream):
    import tensorflow as tf

    return _loss_and_gradient(tf.nn.sparse_softmax_cross_entropy_with_logits, logits, labels, upstream)


def tf_softmax_cross_entropy_with_logits(logits, labels):
    import tensorflow as tf

    return tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits).numpy()


def tf_softmax_cross_entropy_with_logits_and_grad(logits, labels, *, upstream):
    import tensorflow as tf

    return _loss_and_gradient(tf.nn.softmax_cross_entropy_with_logits, logits, labels, upstream)


def _loss_and_gradient(f, logits, labels, upstream):
    import tensorflow as tf

    z = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = f(labels=labels, logits=z)
    g = tf.broadcast_to(tf.cast(upstream, loss.dtype), loss.shape)
    return loss.numpy(), tape.gradient(loss, z, output_gradients=g).numpy()


# ---- kernels in Triton's interpreter ----


@cache
def _interpreter():
    """Give Triton's interpreter what the kernels need and it lacks: tanh, log1p, and float arguments as float32."""
    import numpy as np
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.runtime import interpreter

    def tensor(a, dtype, type):
        return tl.tensor(interpreter.TensorHandle(a, dtype), type)

    def of_numpy(f):
        return lambda x: tensor(f(x.handle.data), x.handle.dtype, x.type)

    def argument(x):
        return tensor(np.array([x], np.float32), tl.float32, tl.float32) if isinstance(x, float) else converted(x)

    libdevice.tanh, libdevice.log1p = of_numpy(np.tanh), of_numpy(np.log1p)
    converted, interpreter._implicit_cvt = interpreter._implicit_cvt, argument


@cache
def _liger():
    _interpreter()
    from liger_kernel.transformers import functional

    return functional


@cache
def _cce():
    _interpreter()
    import cut_cross_entropy

    return cut_cross_entropy


def liger_cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0, lse_square_scale=0.0, softcap=None
):
    return _liger().liger_cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
        lse_square_scale=lse_square_scale, softcap=softcap,
    )  # fmt: skip


def liger_fused_linear_cross_entropy(
    input, linear_weight, target, *, bias=None, weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction="mean",
    softcap=None,
):  # fmt: skip
    return _liger().liger_fused_linear_cross_entropy(
        input, linear_weight, target, bias=bias, ce_weight=weight, ignore_index=ignore_index, lse_square_scale=lse_square_scale,
        label_smoothing=label_smoothing, reduction=reduction, softcap=softcap,
    )  # fmt: skip


def cut_cross_entropy(input, linear_weight, target, *, ignore_index=-100, softcap=None, reduction="mean"):
    return _cce().linear_cross_entropy(
        input, linear_weight, target, ignore_index=ignore_index, softcap=softcap, reduction=reduction, impl="cce"
    )


# the interpreter cuts off the digits of bfloat16 and does not multiply it; the gradients of cut-cross-entropy refuse float32
liger_cross_entropy.dtypes = liger_fused_linear_cross_entropy.dtypes = ("float32", "float16")
cut_cross_entropy.dtypes = ("float16",)
