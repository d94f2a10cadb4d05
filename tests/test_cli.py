"""The command `softxent`: the demonstration as a whole, the help texts, and the message without the extra."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from cases import command, environment

import softxent

MISSING = "softxent: this command needs the extra \"cli\"; in a clone of softxent: pip install '.[cli]'\n"

# Runs the command as if a package were not installed.
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from softxent.cli import main
main({arguments!r})
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("typer", ["demo"]), ("typer", ["--help"]), ("rich", ["info"]), ("rich", ["demo"]), ("matplotlib", ["demo"])],
)
def test_without_the_extra_it_says_what_to_install(package, arguments):
    done = python(BLOCK.format(package=package, arguments=arguments))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", MISSING)


def test_without_torch_its_benchmarks_say_what_to_install():
    done = python(BLOCK.format(package="torch", arguments=["bench", "--gpu"]))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", MISSING.replace("cli", "torch"))


def test_another_missing_package_is_not_blamed_on_the_extra():
    done = python(BLOCK.format(package="email", arguments=["--version"]).replace("from softxent", "import email\nfrom softxent"))
    assert done.returncode == 1 and MISSING not in done.stderr and "email" in done.stderr


def test_import_loads_nothing_of_the_command():
    done = python(
        "import sys, softxent; print(*{'typer', 'click', 'rich', 'matplotlib', 'softxent.cli', 'softxent.demo'} & set(sys.modules))"
    )
    assert done.stdout == "\n"


def test_demo_from_end_to_end(tmp_path, capsys):
    arguments = "--steps 2 --batch 128 --classes 3000 --held-out 1000 --budget 1".split()
    code, out, _ = command(["demo", *arguments, "--output", str(tmp_path / "new")], capsys)
    assert code == 0, out
    png = (tmp_path / "new" / "demo.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000
    assert "yhat - y" in out and "central difference" in out
    truths = re.findall(r"^ +\S+ +(0\.\d{6}) +([01]) +([-+]0\.\d{9}) +([-+]0\.\d{9}) *$", out, re.MULTILINE)
    assert len(truths) == 6 and [y for _, y, _, _ in truths].count("1") == 1
    for yhat, y, gradient, slope in truths:
        # six and nine digits are printed
        assert abs(float(yhat) - float(y) - float(gradient)) < 2e-6
        # nine digits are printed
        assert abs(float(gradient) - float(slope)) < 3e-9
    assert "FAILED" not in out and "claimed from 150,000 trained tokens, here 256" in out
    assert out.count("\n    ok  ") == 6 and out.count("\n     -  ") == 2
    assert "step 2/2" in out and "tokens/s" in out and "for i in" in out


def test_demo_exits_with_1_where_a_claim_fails(monkeypatch, capsys):
    import softxent.demo.run

    monkeypatch.setattr(softxent.demo.run, "run", lambda **options: False)
    code, _, err = command(["demo"], capsys)
    assert code == 1 and "FAILED" in err


WRITERS = {  # a command that writes, and where its work begins
    "demo --output": "softxent.demo.corpus.load",
    "bench --output": "softxent.bench._work",
    "bench --linear --output": "subprocess.run",
    "explain --html": "softxent.explanation.terminal.work_out",
}


@pytest.mark.parametrize("arguments", WRITERS)
def test_where_nothing_can_be_written_is_said_before_the_work(arguments, monkeypatch, tmp_path, capsys):
    def begins(*_, **__):
        pytest.fail("the work began")

    monkeypatch.setattr(WRITERS[arguments], begins)
    (tmp_path / "file").write_text("")
    at = str(tmp_path / "file" / "below")
    code, out, err = command([*arguments.split(), at], capsys)
    html = "--html must name a file that can be written"
    expected = html if "--html" in arguments else "output must be a folder that files can be written to"
    assert (code, out) == (2, "") and err.endswith(f"softxent {arguments.split()[0]}: {expected}; got {at} (Not a directory)\n")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that takes no files, not even the superuser's")
def test_a_folder_that_takes_no_files_is_no_place_for_them(capsys):
    code, _, err = command(["demo", "--output", "/proc/self"], capsys)
    assert code == 2 and err.startswith("softxent demo: output must be a folder that files can be written to; got /proc/self (")


def test_a_wrong_instruction_set_is_one_line_and_2():
    done = subprocess.run(
        [sys.executable, "-m", "softxent", "info"], env=environment(SOFTXENT_ISA="sse9"), capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("softxent: SOFTXENT_ISA must be among ") and done.stderr.endswith("; got 'sse9'\n")


def test_bench_passes_its_options_on(monkeypatch, capsys, tmp_path):
    import softxent.bench

    seen = []
    monkeypatch.setattr(softxent.bench, "run", lambda *a: seen.append(a))
    assert command(["bench"], capsys)[0] == 0
    arguments = f"--shapes 8x9 --dtypes f32 --threads 2 --repeats 3 --quick --output {tmp_path}"
    assert command(["bench", *arguments.split()], capsys)[0] == 0
    assert seen == [(None, "f32,bf16", "1,2", 30, None, False), ("8x9", "f32", "2", 3, tmp_path, True)]


def test_a_wrong_bench_option_is_one_line_and_2(capsys):
    code, _, err = command(["bench", "--dtypes", "f8"], capsys)
    assert code == 2 and err.startswith("softxent bench: dtypes must ") and err.count("\n") == 1


def test_info_and_version(capsys):
    code, out, _ = command(["info"], capsys)
    assert code == 0 and all(b.name in out for b in softxent.backends()) and softxent.__version__ in out
    assert command(["--version"], capsys)[:2] == (0, f"softxent {softxent.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["demo", "bench", "explain", "prove", "check", "info", "--version"]),
        (["demo"], ["--steps", "--batch", "--classes", "--held-out", "--budget", "--seed", "--output", "two minutes", "default: 400"]),
        (["bench"], ["--shapes", "--dtypes", "--threads", "--repeats", "--quick", "--output", "memcpy"]),
        (["explain"], ["--logits", "--label", "--truth", "--names", "--file", "--row", "--html", "--json", "--all", "--list", "--j"]),
        (["prove"], ["--json", "SymPy", "Coq", "3 if Coq is not installed"]),
        (["check"], ["--as", "--quick", "--law", "--list", "--timeout", "--json", "--html", "1 if a law is broken"]),
        (["info"], ["the version and the backends"]),
    ],
)
def test_help_names_every_option(arguments, words, capsys):
    code, out, _ = command([*arguments, "--help"], capsys)
    assert code == 0 and not [w for w in words if w not in " ".join(out.split())]


@pytest.mark.parametrize("arguments", [["dem"], ["demo", "--steps", "0"], ["demo", "--steps", "x"], ["demo", "--nothing"]])
def test_a_wrong_call_is_2(arguments, capsys):
    code, _, err = command(arguments, capsys)
    assert code == 2 and "Usage: softxent" in err
