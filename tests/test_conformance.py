"""softxent.conformance: right implementations pass every law, each mutant breaks its law, and what is reported is what is run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import implementations
import numpy as np
import pytest
from cases import BACKENDS, command, environment
from tolerances import DIFFERENCES, FEW64, FLOAT32

from softxent import conformance
from softxent.conformance import BROKEN, CRASHED, HOLDS, LACKING, LAWS, REFUSED, Subject, definition, laws
from softxent.conformance import law as comparisons
from softxent.conformance.case import case
from softxent.conformance.check import try_law
from softxent.conformance.laws import Broken
from softxent.proof.bounds import UNIT

COMPILE = "a compiler changes nothing"  # takes seconds
RIGHT = {"numpy": implementations.numpy_right, "torch": implementations.torch_right, "torch-linear": implementations.linear_right}
SOFTXENT = [
    *((f"softxent:{f}", backend) for f in ("cross_entropy", "linear_cross_entropy") for backend in BACKENDS),
    *(("softxent.torch:cross_entropy", backend) for backend in ("default", "formula", "triton")),
    ("softxent.torch:linear_cross_entropy", "default"),
    ("softxent.torch:log_softmax", "default"),
    ("softxent.jax:cross_entropy", "default"),
]
# of Triton, which runs in an interpreter here, and of JAX, which compiles each shape; tools/field.py tries all laws of JAX
QUICK = {
    "any combination of options is its definition", "a loss near 0 keeps its digits", "a gradient near 0 keeps its digits",
    "an improbable label costs its gap", "a masked class has no part", "a masked class of probability 0 has no part",
    "a row of NaN is alone", "an ignored row may hold NaN", "all rows may be ignored", "there may be no rows", "one class costs nothing",
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_implementation_breaks_no_law(kind):
    """Nor does it refuse anything: there are no false alarms. A law that does not apply says what is missing."""
    subject = Subject(RIGHT[kind], kind)
    for law in LAWS.values():
        if law.name != COMPILE or kind == "torch":
            found = try_law(law, subject, quick=True)
            assert found.status == HOLDS or (found.status == LACKING and found.what.startswith("needs")), found
            assert (found.cases > 0) == (found.status == HOLDS)
    assert subject.dialect.name == kind.partition("-")[0]


def test_a_law_that_does_not_apply_is_known():
    """With all three, each law applies to one at least."""
    lacking = [{law.name for law in LAWS.values() if law.missing(Subject(f, kind))} for kind, f in RIGHT.items()]
    assert not set.intersection(*lacking)
    assert lacking[1] == set()


@pytest.mark.parametrize(("name", "backend"), SOFTXENT)
def test_softxent_breaks_no_law(name, backend):
    front = importlib.import_module(name.partition(":")[0])
    with nullcontext() if backend == "default" else front.use_backend(backend):
        subject = Subject(name)
        for law in LAWS.values():
            compiled = law.name != COMPILE or (name, backend) == ("softxent.torch:cross_entropy", "default")
            if not compiled or (law.name not in QUICK and ("jax" in name or backend == "triton")):
                continue
            found = try_law(law, subject, quick=True)
            refused = name == "softxent:linear_cross_entropy" and law.name == "reduced precision is rounded once"
            assert found.status in (HOLDS, LACKING) or (refused and found.status == REFUSED), found


@pytest.mark.parametrize("fault", implementations.MUTANTS)
def test_each_mutant_breaks_its_law(fault):
    mutant, name = implementations.MUTANTS[fault]
    found = try_law(LAWS[name], Subject(mutant), quick=True)
    assert found.status == BROKEN, found
    assert found.what and found.expected != found.got
    assert "f(" in found.script and "print(result)" in found.script
    implementations.KEPT.clear()


def test_an_argument_that_was_written_to_is_printed(capsys):
    found = try_law(LAWS["arguments are not written to"], Subject(implementations.MUTANTS["logits overwritten"][0]), quick=True)
    name = found.what.partition(" ")[0]
    assert found.status == BROKEN and found.script.endswith(f"\nprint({name})")


def test_every_law_has_a_mutant():
    assert {name for _, name in implementations.MUTANTS.values()} == set(LAWS)


def test_a_law_is_one_sentence_and_its_name_says_it():
    for law in LAWS.values():
        assert law.statement.endswith(".") and law.statement.count(". ") == 0, law
        assert 3 <= len(law.name.split()) <= 14


# ---- what the laws find in other libraries ----

FINDINGS = {  # of torch.nn.functional.cross_entropy, float32 unless said otherwise
    "a loss near 0 keeps its digits", "a gradient near 0 keeps its digits", "a masked class of probability 0 has no part",
    "an ignored row may hold NaN", "weights and probabilities have forward mode",
}  # fmt: skip
NUMBER = re.compile(r"nan|inf|-?\d+\.?\d*(?:e[-+]?\d+)?")


def run_script(script, capsys):
    """Run what a finding prints, and return the first number of its result."""
    import torch

    torch.set_printoptions(precision=10)
    try:
        exec(script, {})
    finally:
        torch.set_printoptions(profile="default")
    out = capsys.readouterr().out
    return [float(x) for x in NUMBER.findall(re.sub(r"dtype=\S+|grad_fn=\S+|float\d+", "", out))]


def test_the_findings_of_torch_are_reproduced_by_the_printed_input(capsys):
    subject = Subject("torch.nn.functional:cross_entropy")
    for name in FINDINGS:
        found = try_law(LAWS[name], subject, quick=True)
        assert found.status == BROKEN, found
        got, numbers = float(found.got), run_script(found.script, capsys)
        # the law reports a float, and the script prints a result of float32
        assert any(x == pytest.approx(got, rel=10 * FLOAT32) or (math.isnan(x) and math.isnan(got)) for x in numbers), (found, numbers)
        assert not any(x == pytest.approx(float(found.expected), rel=10 * FLOAT32, abs=0) for x in numbers[:1]), (found, numbers)


def test_the_findings_of_scikit_learn_and_scipy():
    """log_loss clips probabilities at the machine epsilon; log_softmax rounds small losses to 0."""
    found = try_law(LAWS["an improbable label costs its gap"], Subject("sklearn.metrics:log_loss"), quick=True)
    # the loss is 50 + e^-50; the law's input has rounded gaps
    assert (found.status, float(found.expected)) == (BROKEN, pytest.approx(50, abs=1e-3)) and float(found.got) < 17
    subject = Subject("scipy.special:log_softmax")
    status = {law.name: try_law(law, subject, quick=True).status for law in LAWS.values()}
    broken = {name for name, s in status.items() if s == BROKEN}
    assert broken == {"a loss near 0 keeps its digits", "reduced precision is rounded once"}
    assert status["the loss is the definition"] == status["a common offset changes nothing"] == HOLDS


@pytest.mark.skipif(not importlib.util.find_spec("optax"), reason="optax is not installed")
def test_the_findings_of_optax():
    subject = Subject("optax:softmax_cross_entropy_with_integer_labels")
    assert subject.dialect.name == "jax" and subject.reductions == ("none",) and subject.hard
    names = ["each row has its upstream gradient", "a common offset changes nothing"]
    assert [try_law(LAWS[name], subject, quick=True).status for name in names] == [HOLDS, BROKEN]
    jax = pytest.importorskip("jax")
    assert not jax.config.jax_enable_x64  # a setting of the laws, not of the process


# ---- finding out how a function is called ----


def test_a_function_may_say_which_dtypes_it_is_tried_in():
    """Cases in a wider dtype become cases of its widest, others are left out, and no law holds it to more digits than it has."""
    import torch

    seen = set()

    def single(input, target, *, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
        seen.add(input.dtype)
        return implementations.torch_right(
            input, target, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction
        )

    single.dtypes = ("float32", "float16")
    subject = Subject(single)
    for law in LAWS.values():
        if law.name != COMPILE:
            found = try_law(law, subject, quick=True)
            assert found.status in (HOLDS, LACKING), found
    assert seen == {torch.float32, torch.float16}
    single.dtypes = ("float16",)
    found = try_law(LAWS["a loss near 0 keeps its digits"], Subject(single), quick=True)
    assert (found.status, found.what) == (LACKING, "needs exact logits")


def test_an_ignore_index_is_compared_as_an_integer():
    """In bfloat16, 256 and 257 are the same number. Keras 3.15 compares labels in the dtype of the logits."""
    import torch

    def rounded(input, target, *, ignore_index=-100):
        ignored = target.to(input.dtype) == torch.tensor(ignore_index).to(input.dtype)
        loss = implementations.torch_right(input, torch.where(ignored, -100, target), ignore_index=-100, reduction="none")
        return torch.where(ignored, 0, loss)

    found = try_law(LAWS["an ignored row counts for nothing"], Subject(rounded), quick=True)
    assert (found.status, found.got) == (BROKEN, "0") and "ignore_index=257" in found.script


@pytest.mark.parametrize(
    ("name", "dialect", "linear", "options"),
    [
        ("torch.nn.functional:cross_entropy", "torch", False, {"class_weight", "ignore_index", "label_smoothing", "probabilities"}),
        ("sklearn.metrics:log_loss", "sklearn", False, {"sample_weight"}),
        ("scipy.special:log_softmax", "numpy", False, set()),
        ("torch.nn.functional:log_softmax", "torch", False, set()),
    ],
)
def test_a_signature_says_how_a_function_is_called(name, dialect, linear, options):
    subject = Subject(name)
    assert (subject.dialect.name, subject.linear, subject.options) == (dialect, linear, options)


@pytest.mark.parametrize(
    ("name", "as_", "words"),
    [
        ("softxent", None, "check: subject must be MODULE:FUNCTION"),
        ("softxent:no_such_function", None, "check: subject must be a function that can be imported"),
        ("no_such_module:f", None, "check: subject must be a function that can be imported"),
        ("softxent:__version__", None, "check: subject must be a function; got"),
        ("softxent:cross_entropy", "tensorflow", "check: as must be numpy, torch, jax or sklearn"),
    ],
)
def test_a_wrong_subject_is_refused(name, as_, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Subject(name, as_)


# ---- the process, the command and the reports ----

FAULTY = """
import os, signal, time
import numpy as np

def cross_entropy(logits, labels, *, class_weight=None, label_smoothing=0.0, z_loss=0.0, ignore_index=-100, reduction="mean"):
    if class_weight is not None:
        os.kill(os.getpid(), signal.SIGSEGV)
    while label_smoothing:
        time.sleep(1)
    print("what a subject prints is no event")
    z = logits.astype(float)
    rows = np.log(np.exp(z - z.max(1)[:, None]).sum(1)) + z.max(1) - z[np.arange(len(z)), labels]
    return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.mean()

def slow(logits, labels, *, label_smoothing=0.0, reduction="mean"):
    return cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)
"""


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    (tmp_path / "faulty_loss.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)


def test_a_crash_is_a_finding_and_the_next_laws_are_tried(faulty):
    names = ["the loss is the definition", "each option is its definition", "there may be no rows"]
    seen = []
    report = conformance.check("faulty_loss:cross_entropy", quick=True, laws=names, progress=lambda *a: seen.append(a))
    assert [f.law for f in report.findings] == names and seen == [(name, n, 3) for n, name in enumerate(names)]
    assert [f.status for f in report.findings][:2] == [HOLDS, CRASHED] and not report.passed
    assert report.findings[1].got == "signal SIGSEGV" and "class_weight=class_weight" in report.findings[1].script


def test_a_call_that_does_not_return_is_a_finding(faulty):
    report = conformance.check("faulty_loss:slow", quick=True, laws=["each option is its definition"], timeout=2)
    assert [(f.status, f.got) for f in report.findings] == [(CRASHED, "no result within 2 seconds")]


OF_RANKS = """
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import Replicate

def _whole(input, target, reduction):
    return F.cross_entropy(input.redistribute(placements=[Replicate()]).to_local(), target, reduction=reduction)

def of_its_rank(input, target, reduction="mean"):
    return _whole(input, target, reduction) + 1e-3 * dist.get_rank()

def refuses_on_one_rank(input, target, label_smoothing=0.0, reduction="mean"):
    if label_smoothing and dist.get_rank() == 1:
        raise ValueError("no smoothing")
    return _whole(input, target, reduction)
"""


def test_a_function_of_divided_classes_is_tried_on_all_ranks(tmp_path, monkeypatch):
    """What one rank alone gives or refuses is a finding; the next laws are tried with new processes."""
    (tmp_path / "of_ranks.py").write_text(OF_RANKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTXENT_RANKS_TIMEOUT", "25")
    names = ["the loss is the definition", "each option is its definition", "one class costs nothing"]

    def found(name):
        report = conformance.check(f"of_ranks:{name}", ranks=2, quick=True, laws=names)
        return [f.status for f in report.findings], report.findings

    statuses, (loss, *_) = found("of_its_rank")
    assert statuses[0] == BROKEN and "torchrun --nproc-per-node 2" in loss.script and "f = divided(f)" in loss.script
    assert loss.got == "rank 1 has another result 0 than rank 0", loss
    statuses, (_, option, _) = found("refuses_on_one_rank")
    assert statuses == [HOLDS, CRASHED, HOLDS] and option.got.endswith("rank 1: ValueError: no smoothing"), option
    with pytest.raises(ValueError, match="check: ranks must be 1 for a function that does not have the signature of torch's; got 2"):
        conformance.check("softxent:cross_entropy", ranks=2, laws=names)


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
def test_softxent_breaks_no_law_with_divided_classes(name):
    names = ["a loss near 0 keeps its digits", "an ignored row may hold NaN", "upstream gradients may be batched"]
    report = conformance.check(f"softxent.torch:{name}", ranks=2, quick=True, laws=names)
    assert [f.status for f in report.findings] == [HOLDS, HOLDS, REFUSED], report


def test_the_command_has_a_table_and_json_and_a_page(tmp_path, capsys):
    page = tmp_path / "report.html"
    code, out, _ = command(["check", "softxent:cross_entropy", "--quick", "--html", str(page)], capsys)
    assert code == 0, out
    assert re.search(rf"^{len(LAWS)} laws: \d+ holds, \d+ not applicable$", out, re.MULTILINE)
    assert "called like numpy" in out and "broken" not in out
    text = page.read_text()
    assert all(law.name in text for law in LAWS.values()) and not re.search(r"(src|href)=", text)
    name = "an improbable label costs its gap"
    code, out, _ = command(["check", "sklearn.metrics:log_loss", "--json", "--law", name, "--html", str(page)], capsys)
    told = json.loads(out)
    assert code == 1 and not told["passed"] and told["findings"][0]["status"] == BROKEN and told["findings"][0]["law"] == name
    assert "log_loss" in page.read_text() and 'class="broken"' in page.read_text()
    code, out, _ = command(["check", "sklearn.metrics:log_loss", "--law", name], capsys)
    assert code == 1 and "broken" in out and "from sklearn.metrics import log_loss" in out and "1 laws: 1 broken" in out


def test_wrong_arguments_are_one_line_and_2(capsys):
    for arguments, words in [
        (["softxent"], "check: subject must be MODULE:FUNCTION"),
        (["softxent:cross_entropy", "--law", "all swans are white"], "check: law must be the name of a law"),
        (["softxent:cross_entropy", "--html", "/no/such/folder/page.html"], "check: --html must name a file that can be written"),
    ]:
        code, out, err = command(["check", *arguments], capsys)
        assert (code, out) == (2, "") and err.splitlines()[-1].startswith(f"softxent {words}")


def test_the_laws_are_listed(capsys):
    code, out, _ = command(["check", "--list"], capsys)
    assert code == 0 and all(law.name in out and law.statement in " ".join(out.split()) for law in LAWS.values())


def test_laws_are_tests_for_pytest():
    """A law raises an AssertionError with the statement and the script; a refusal is one if strict."""
    chosen = laws("sklearn.metrics:log_loss", names=["an improbable label costs its gap", "one class costs nothing", "vmap maps the loss"])
    gap, one_class, vmap = chosen
    assert str(gap) == "an_improbable_label_costs_its_gap"
    with pytest.raises(AssertionError, match=r"the loss is that gap(.|\n)*expected 50(.|\n)*import log_loss"):
        gap()
    assert one_class().status == REFUSED and vmap().status == LACKING
    with pytest.raises(AssertionError, match="at least two labels"):
        laws("sklearn.metrics:log_loss", strict=True, names=["one class costs nothing"])[0]()


def test_importing_the_laws_loads_no_framework():
    code = "import sys, softxent.conformance; print(*{'torch', 'jax', 'rich', 'typer', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=600)
    assert done.stdout == "\n", done.stderr


def test_the_reference_is_the_definition():
    """definition.py, which evaluates formula.py, has the loss and the gradient of torch's operations, for all options together."""
    import definition_in_torch
    import torch

    from softxent.conformance import definition
    from softxent.conformance.case import option_values

    one = option_values(
        case(4, 5, reduction="mean"), ("class_weight", "ignore_index", "label_smoothing", "sample_weight", "softcap", "z_loss")
    )
    z = torch.tensor(one.inputs["z"], requires_grad=True)
    want = definition_in_torch.definition(z, one.labels, **one.options).loss
    assert float(definition.loss(one)) == pytest.approx(want.item(), rel=FEW64)
    (dz,), (by_z,) = definition.gradients(one), torch.autograd.grad(want, z, torch.tensor(one.upstream, dtype=z.dtype))
    np.testing.assert_allclose(dz.astype(float), by_z, rtol=FEW64, atol=FEW64)
    v = np.random.default_rng(0).standard_normal((4, 5))
    assert float(one.upstream * definition.along(one, {"z": v})) == pytest.approx(float((dz * v).sum()), rel=DIFFERENCES)


def test_memory_that_the_system_does_not_tell_of_is_not_applicable(monkeypatch):
    law, subject = LAWS["repeated calls keep no memory"], Subject("softxent:cross_entropy")
    assert law.missing(subject) == []
    monkeypatch.setattr("softxent.conformance.law.resident", lambda: 0)
    found = try_law(law, subject, quick=True)
    assert (found.status, found.what) == (LACKING, "needs the memory of the process")


# ---------------------------------------------------------------- what the comparisons let through


class Off:
    """A subject whose results are those of the definition, changed."""

    can = frozenset({"gradients"})
    dialect = SimpleNamespace(name="torch")

    def __init__(self, change):
        self.change = change

    def run(self, what, one):
        found = [definition.loss(one)] if what == "loss" else definition.gradients(one)
        return [self.change(np.asarray(a, np.float64)) for a in found]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("check", [comparisons.check_loss, comparisons.check_gradients])
def test_an_error_of_a_few_hundred_roundings_is_found(check, dtype):
    """The tolerance of flat logits is a bound of an error, 10 to 50 roundings of the largest entry, and not a guess."""
    one, size = case(5, 7, kind="flat", dtype=dtype, reduction="none"), 500 * UNIT[dtype]
    check(Off(lambda a: a), one)
    for change in (lambda a: a + size * np.abs(a).max(), lambda a: a * (1 + size)):
        with pytest.raises(Broken):
            check(Off(change), one)


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (3, 1, 1)], ids=str)
def test_as_many_entries_in_another_shape_are_found(shape):
    a = np.arange(3.0)
    comparisons.near("loss", a, a, 0)
    comparisons.same_bits("loss", [a], [a])
    with pytest.raises(Broken, match="the shape of the loss"):
        comparisons.near("loss", a.reshape(shape), a, 0)
    with pytest.raises(Broken, match="the shape of the loss"):
        comparisons.same_bits("loss", [a.reshape(shape)], [a])
    one = case(3, 4, reduction="none")
    with pytest.raises(Broken, match="the shape of the loss"):
        comparisons.check_loss(Off(lambda loss: loss.reshape(shape)), one)
