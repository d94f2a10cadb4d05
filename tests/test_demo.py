"""The parts of the demonstration, on parts of its text, and that a claim that does not hold is detected."""

from __future__ import annotations

import sysconfig
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rich.console import Console
from tolerances import FLOAT32, FLOAT64

import softxent
from softxent.demo import baselines, checks, corpus, memory
from softxent.demo.complete import complete, pretty
from softxent.demo.heads import Fused, Gradients, Plain, peak_bytes
from softxent.demo.model import CONTEXT, Model, Trainer
from softxent.demo.one_token import central_differences, examine
from softxent.demo.train import train

ASYNCIO = Path(sysconfig.get_paths()["stdlib"]) / "asyncio"


@pytest.fixture(scope="module")
def text():
    return corpus.load(3000, CONTEXT, ASYNCIO)


@pytest.fixture(scope="module")
def layer():
    """Return hidden states, a weight whose logits are as large as those of a trained model, and labels with a long-tailed distribution."""
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((600, 64), dtype=np.float32), rng.standard_normal((3000, 64), dtype=np.float32)
    return x, W * np.float32(0.5), (3000 * rng.random(600) ** 4).astype(np.int32)


def test_corpus_is_deterministic(text):
    again = corpus.load(3000, CONTEXT, ASYNCIO)
    for a, b in zip(text, again, strict=True):
        assert_array_equal(a, b)


def test_no_file_is_both_trained_on_and_held_out(text):
    names = {p.relative_to(ASYNCIO).as_posix() for p in ASYNCIO.rglob("*.py")}
    assert text.train_files and text.held_out_files
    assert set(text.train_files).isdisjoint(text.held_out_files)
    assert set(text.train_files) | set(text.held_out_files) == names
    for ids, files in ((text.train, text.train_files), (text.held_out, text.held_out_files)):
        read = [token for name in files for token in corpus.tokens((ASYNCIO / name).read_text(encoding="utf-8"))]
        assert len(corpus.positions(ids)) == len(read)
        known = {token: i for i, token in enumerate(text.vocab)}
        assert_array_equal(ids[corpus.positions(ids)], [known.get(token, corpus.UNKNOWN) for token in read])


def test_vocabulary_is_the_commonest_tokens_of_the_training_files(text):
    counts = np.bincount(text.train, minlength=len(text.vocab))[2:]
    assert len(text.vocab) == len(set(text.vocab)) <= 3000
    assert np.all(counts[:-1] >= counts[1:]) and counts[-1] > 0


def test_the_split_is_by_path_alone():
    names = ("shutil.py", "heapq.py", "copy.py", "queue.py", "random.py", "json/decoder.py")
    assert [n for n in names if corpus.is_held_out(n)] == ["shutil.py", "copy.py", "random.py"]


def test_a_window_is_the_tokens_before(text):
    at = corpus.positions(text.train)[[0, 5, 700]]
    seen = corpus.examples(text.train, at, CONTEXT)
    for row, label, p in zip(seen.context, seen.labels, at, strict=True):
        assert_array_equal(row[::-1], text.train[p - CONTEXT : p])
        assert label == text.train[p]
    assert set(seen.context[0]) == {corpus.START}


def test_no_source_is_an_error_that_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="finds 0 files"):
        corpus.load(100, CONTEXT, tmp_path)


def test_bigram_is_a_distribution_after_every_token(text):
    classes = len(text.vocab)
    p1 = np.add(np.bincount(text.train[text.train != corpus.START], minlength=classes), 1.0)
    p1 /= p1.sum()
    for before in (2, 50, classes - 1, corpus.START):
        p2 = baselines.bigram(text.train, np.full(classes, before), np.arange(classes), p1)
        assert p2.min() > 0
        assert_allclose(p2.sum(), 1, rtol=FLOAT64)


@pytest.mark.parametrize("budget", [3000 * 4 * 100, 1 << 30], ids=["6 chunks", "1 chunk"])
def test_heads_agree(layer, budget):
    fused, plain = Fused(budget).gradients(*layer), Plain().gradients(*layer)
    assert fused.dx.dtype == plain.dx.dtype == fused.dw.dtype == plain.dw.dtype == np.float32
    assert checks.same_gradients(fused, plain).holds
    assert_allclose(Fused(budget).losses(*layer), Plain().losses(*layer, rows=250), rtol=10 * FLOAT32, atol=10 * FLOAT32)


def test_heads_agree_with_the_equations_in_float64(layer):
    x, W, labels = layer[0].astype(np.float64), layer[1].astype(np.float64), layer[2]
    yhat = softxent.softmax(x @ W.T)
    G = (yhat - np.eye(len(W))[labels]) / len(x)
    want = Gradients(float(-np.log(yhat[np.arange(len(x)), labels]).mean()), G @ W, G.T @ x)
    for head in (Fused(1 << 20), Plain()):
        assert checks.same_gradients(head.gradients(*layer), want).holds


def test_a_slightly_wrong_gradient_is_caught(layer):
    good = Plain().gradients(*layer)
    for wrong in (good._replace(dx=good.dx * 1.001), good._replace(dw=-good.dw), good._replace(loss=good.loss * 1.001)):
        assert checks.same_gradients(wrong, good).holds is False
    assert checks.same_gradients(good._replace(dx=good.dx * np.nan), good).holds is False


def test_fused_head_takes_less_memory_and_does_not_grow():
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((8000, 16), dtype=np.float32), rng.standard_normal((512, 16), dtype=np.float32)
    labels = rng.integers(0, 8000, 512)
    sizes = [memory.measure([Fused(1 << 20), Plain()], x[:n], W, labels[:n]) for n in (64, 128, 256, 512)]
    assert sizes[-1].peaks[1] > 512 * 8000 * 4
    assert sizes[-1].peaks[0] < sizes[-1].peaks[1] / 3
    assert checks.memory(sizes, 1 << 20, 8000).holds
    swapped = [s._replace(peaks=s.peaks[::-1]) for s in sizes]
    assert checks.memory(swapped, 1 << 20, 8000).holds is False
    assert checks.memory(sizes, 1 << 30, 8000).holds is None


def test_peak_counts_what_is_held_at_once():
    assert 3e6 <= peak_bytes(lambda: np.zeros(1_000_000, np.uint8).repeat(2).size) < 3.1e6
    assert peak_bytes(lambda: [np.zeros(1_000_000, np.uint8).size for _ in range(5)]) < 1.1e6


def test_both_trainings_go_the_same_way(text):
    at = corpus.positions(text.held_out)[:1000]
    test = corpus.examples(text.held_out, at, CONTEXT)
    counted = baselines.count(text.train, text.held_out, at, len(text.vocab))
    trainers = [Trainer(Model(counted.frequency, seed=3), head) for head in (Fused(1 << 20), Plain())]
    console = Console(file=StringIO(), force_terminal=True, width=100)
    glances = train(trainers, text.train, test, steps=20, batch=256, seed=3, console=console)
    losses = np.array([[s.loss for s in t.steps] for t in trainers])
    assert losses.shape == (2, 20)
    # 20 steps of training in float32 amplify the roundings
    assert_allclose(losses[0], losses[1], rtol=1e-3)
    perplexities = [baselines.perplexity(t.losses(test)) for t in trainers]
    assert [g.step for g in glances] == list(range(2, 21, 2))
    assert max(perplexities) < 0.7 * counted.unigram
    assert all(s.head < s.whole for t in trainers for s in t.steps)
    assert all(word in console.file.getvalue() for word in ("softxent", "plain NumPy", "20/20", "tokens/s"))


def test_slope_of_the_loss_is_prediction_minus_truth():
    z = np.random.default_rng(1).standard_normal(500) * 4
    _, (dz,) = softxent.cross_entropy_and_grad(z[None], [7])
    at = np.array([7, *np.argsort(-z)[:5], 0])
    assert_allclose(central_differences(z, 7, at), dz[at], rtol=0, atol=checks.SLOPE)


def test_one_token_adds_up_and_a_wrong_slope_is_caught(text):
    counted = np.full(len(text.vocab), 1 / len(text.vocab))
    model, test = Model(counted, 0), corpus.examples(text.held_out, corpus.positions(text.held_out)[:50], CONTEXT)
    model.W[:, :-1] = np.random.default_rng(0).standard_normal((len(counted), 127)) / 4
    token = examine(model, text.vocab, test, np.arange(50.0))
    assert token.label in {e.token for e in token.entries} and [e.y for e in token.entries].count(1.0) == 1
    assert abs(token.total) < FLOAT64
    assert_allclose(sum(e.gradient for e in token.entries) + token.rest, 0, rtol=0, atol=FLOAT64)
    assert all(c.holds for c in checks.slopes(token))
    first = token.entries[0]
    assert [c.holds for c in checks.slopes(token._replace(apart=1e-8))] == [False, True]
    for wrong in (first._replace(slope=first.slope + 1e-7), first._replace(gradient=-first.gradient)):
        assert not all(c.holds for c in checks.slopes(token._replace(entries=[wrong, *token.entries[1:]])))


@pytest.mark.parametrize(
    ("both", "bigram", "trained", "holds"),
    [
        ([50.0, 50.04], 80, 400_000, [True, True, True, True]),
        ([50.0, 50.1], 80, 400_000, [False, True, True, True]),
        ([90.0, 90.0], 80, 400_000, [True, True, False, True]),
        ([300.0, 300.0], 80, 400_000, [True, False, False, True]),
        ([90.0, 90.0], 80, 50_000, [True, True, None, True]),
        ([260.0, 260.0], 80, 100, [True, None, None, True]),
        ([50.0, 50.0], 260, 400_000, [True, True, True, False]),
        ([float("nan"), 50.0], 80, 400_000, [False, False, False, True]),
        ([50.0, float("nan")], 80, 400_000, [False, False, False, True]),
    ],
)
def test_perplexities_are_claimed_as_far_as_the_training_went(both, bigram, trained, holds):
    counted = SimpleNamespace(unigram=250.0, bigram=float(bigram))
    assert [c.holds for c in checks.perplexities(both, counted, trained)] == holds


@pytest.mark.parametrize(
    "line",
    [
        "for i in range(10):", "def __init__(self, name):", "if x is not None:", "return self.items[i]", "from os import path",
        "x += y ** 2", "@property", "if a != b and (c <= d):",
    ],
)  # fmt: skip
def test_pretty_gives_ordinary_code_back(line):
    assert pretty(corpus.tokens(line)) == line


def test_completion_stops_where_a_line_ends(text):
    model = Model(np.full(len(text.vocab), 1 / len(text.vocab)), 0)

    def always(token):
        model.W[:, -1] = np.arange(len(text.vocab)) == text.vocab.index(token)
        model.W[corpus.UNKNOWN, -1] = 2
        return complete(model, text.vocab, "if x", most=3)

    assert always(":") == ["if", "x", ":"]
    assert always("return") == ["if", "x"]
    assert always("self") == ["if", "x"]
    assert always("(") == ["if", "x", "(", "(", "(", "..."]
