"""The examples run and give the results that they claim."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from cases import fsdp2_on_the_cpu
from threadpoolctl import threadpool_limits
from tolerances import FLOAT32

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_losses_train_the_same_model(capsys):
    stock, ours = load("train_text").main(steps=12, batch=128, classes=2000)
    # training in float32 amplifies the roundings of a step
    assert max(abs(a - b) for a, b in zip(stock, ours, strict=True)) < 1e-4 and stock[-1] < stock[0] - 0.5
    assert "times less" in capsys.readouterr().out


def test_a_head_by_chunks_trains_the_same_model(capsys):
    whole, chunks = load("train_head").main(steps=12, batch=128, classes=2000)
    # training in float32 amplifies the roundings of a step
    assert max(abs(a - b) for a, b in zip(whole, chunks, strict=True)) < 1e-4 and whole[-1] < whole[0] - 0.2
    assert "64 MiB for both" in capsys.readouterr().out


@fsdp2_on_the_cpu
def test_four_processes_train_the_model_of_one():
    """FSDP2 on one axis of a mesh, classes divided on the other, with a checkpoint in between."""
    command = [sys.executable, str(EXAMPLES / "tensor_parallel.py"), "--steps", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"largest relative difference (\S+);", done.stdout)[1]) < 10 * FLOAT32
    first, last = map(float, re.search(r"fell from (\S+) to (\S+)", done.stdout).groups())
    assert last < first - 0.3


def test_both_classifiers_of_text_are_the_same(capsys):
    example = load("classify_text")
    with threadpool_limits(1):  # its threads wait for each other by polling, which takes long while other tests need the cores
        found = example.main(files=5)
    theirs, ours = found["LogisticRegression"], found["SoftmaxRegression"]
    assert abs(ours["loss"] - theirs["loss"]) < FLOAT32 and ours["right"] == theirs["right"] > 0.8
    assert "of 5" in capsys.readouterr().out


def test_the_shares_of_votes_train_a_better_model(capsys):
    found = load("boost_with_soft_labels").main(votes=5, rows=5000, rounds=40)
    # a gap that no other seed closes
    assert found["the true probabilities"] < found["shares of the votes"] < found["most votes"] - 0.02
    assert "5000 other rows" in capsys.readouterr().out


def test_flax_and_equinox_train_the_same_model_with_both_losses(capsys):
    curves = load("train_jax").main(steps=8, batch=128, classes=2000)
    assert len(curves) == 2
    for stock, chunks in curves.values():
        # training in float32 amplifies the roundings of a step
        assert max(abs(a - b) for a, b in zip(stock, chunks, strict=True)) < 1e-4 and chunks[-1] < chunks[0] - 0.05
    assert capsys.readouterr().out.count("the loss fell from") == 2
