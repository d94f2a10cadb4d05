"""The architecture: which file may import which, what an import loads, that a missing kernel is reported, that tolerances have reasons."""

from __future__ import annotations

import ast
import json
import pathlib
import re
import tomllib

import numpy as np
import pytest
from cases import BACKENDS, SRC, python

import softxent

PACKAGE = pathlib.Path(softxent.__file__).parent
ROOT = pathlib.Path(__file__).parent.parent
CPP = ROOT / "cpp"
FRAMEWORKS = {
    "torch",
    "jax",
    "jaxlib",
    "optax",
    "sklearn",
    "scipy",
    "matplotlib",
    "typer",
    "rich",
    "mpmath",
    "sympy",
    "latex2mathml",
    "playwright",
    "pandas",
    "numba",
    "ml_dtypes",
    "hypothesis",
    "transformers",
    "triton",
    "peft",
    "accelerate",
    "trl",
    "xgboost",
    "lightgbm",
    "catboost",
}
OPTIONS = (
    "label_smoothing",
    "smoothing",
    "class_weight",
    "sample_weight",
    "ignore_index",
    "reduction",
    "z_loss",
    "softcap",
    "temperature",
    "upstream",
    "empty_value",
)


def imports(path: pathlib.Path) -> set[str]:
    """Return the names of the modules of softxent that a file imports when it is loaded, and the first part of the names of others."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    tree = ast.parse(path.read_text())
    late = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if id(node) in late:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level + 1])
            module = ".".join(x for x in (base, node.module) if x)
            found |= {".".join(x for x in (module, a.name) if x) for a in node.names} | {module}
    return found


MAY = {  # the modules of softxent that each file of the core may import
    "messages.py": set(),
    "partials.py": set(),
    "shared.py": set(),
    "shards.py": {"shared"},
    "formula.py": {"partials"},
    "functional.py": {"formula", "partials", "shared"},
    "call.py": set(),
    "contract.py": {"messages", "partials"},
    "derivatives.py": {"call"},
    "truth.py": {"partials", "contract", "kernels"},
    "sweep.py": {"contract", "partials", "kernels", "truth"},
    "loss.py": {"partials", "contract", "kernels", "truth", "sweep"},
    "probabilities.py": {"partials", "contract", "sweep", "truth"},
    "filtering.py": {"partials"},
    "chunks.py": {"contract"},
    "linear.py": {"partials", "contract", "kernels", "truth", "sweep", "filtering", "chunks"},
    "kernels/__init__.py": {"messages", "partials", "shared", "kernels"},
    "kernels/reference.py": {"partials", "functional", "formula", "shared", "kernels"},
    "kernels/cpu.py": {"partials", "kernels"},
    "kernels/triton.py": {"shared", "kernels"},
}


@pytest.mark.parametrize("file", MAY)
def test_the_arrows_point_down(file):
    if not (PACKAGE / file).exists():
        assert file == "kernels/cpu.py", f"{file} is gone"
        return
    mine = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    own = {name.split(".")[0] for name in imports(PACKAGE / file)} & mine
    assert own <= MAY[file], f"{file} may not import {own - MAY[file]}"


def test_every_file_of_the_core_has_its_place():
    files = {p.name for p in PACKAGE.glob("*.py")} | {f"kernels/{p.name}" for p in (PACKAGE / "kernels").glob("*.py")}
    ends = {
        "__init__.py",
        "__main__.py",
        "_explain.py",
        "cli.py",
        "torch.py",
        "jax.py",
        "sklearn.py",
        "boosting.py",
        "distributed.py",
    }  # no file of the core imports these
    assert files - ends <= set(MAY), f"say what {files - ends - set(MAY)} may import"
    imported = {name.split(".")[0] for file in MAY if (PACKAGE / file).exists() for name in imports(PACKAGE / file)}
    assert not imported & {"cli", "jax", "sklearn", "boosting", "distributed", "proof", "demo", "bench"}


def test_every_kernel_is_under_the_waist():
    """No backend, including new ones, imports truth.py, contract.py or a front end."""
    for path in (PACKAGE / "kernels").glob("*.py"):
        names = {n.split(".")[0] for n in imports(path)}
        assert not names & {"truth", "contract", "loss", "linear"}, f"{path.name} looks up"


def mentions(path: pathlib.Path, words) -> dict[str, int]:
    text = path.read_text()
    return {w: text[: m.start()].count("\n") + 1 for w in words if (m := re.search(rf"\b{w}\b", text))}


BELOW = sorted(
    [*(PACKAGE / "kernels").glob("*.py"), PACKAGE / "formula.py", PACKAGE / "partials.py", PACKAGE / "functional.py", *CPP.glob("*.[ch]*")]
)


@pytest.mark.parametrize("path", BELOW, ids=lambda p: p.name)
def test_options_die_at_the_door(path):
    """No file below truth.py contains the name of an option; there the options are y, r, off, q and g.

    Exceptions: `upstream` and `reduction` occur in the description of g, and `temperature` and `softcap` are the transform of the logits,
    which the kernels compute.
    """
    allowed = {"upstream", "reduction", "temperature", "softcap"}
    found = {w: line for w, line in mentions(path, OPTIONS).items() if w not in allowed}
    assert not found, f"{path.name}: {found}"


def test_what_an_option_means_is_in_truth_alone():
    """The front ends only pass the options on. None of them computes with one."""
    for file in ("loss.py", "linear.py", "sweep.py", "probabilities.py"):
        tree = ast.parse((PACKAGE / file).read_text())
        names = {"label_smoothing", "class_weight", "sample_weight", "z_loss", "temperature", "softcap", "upstream"}
        computed = [
            f"{file}:{n.lineno}: {ast.unparse(n)}"
            for n in ast.walk(tree)
            if isinstance(n, (ast.BinOp, ast.AugAssign)) and names & {x.id for x in ast.walk(n) if isinstance(x, ast.Name)}
        ]
        assert not computed, computed


# ---- the floors of softxent.torch ----

FLOORS = {  # the lowest first; a file may import files of lower floors, and on its own floor those that are named before it
    "compute": ("private", "modes", "processes", "arrays", "cpu", "compute"),
    "operators": ("operators", "sharding", "by_chunks", "linear_operators"),
    "arguments": ("arguments",),
    "doors": ("distributed", "loss_and_gradient", "loss", "linear", "lazy_logits", "huggingface", "__init__"),
}
FLOORS_OF_JAX = {
    "compute": ("private", "arrays", "call", "reference", "native", "steps", "devices"),
    "operators": ("operators", "linear_operators"),
    "arguments": ("arguments",),
    "doors": ("loss", "linear", "__init__"),
}
FRONT_ENDS = {"torch": FLOORS, "jax": FLOORS_OF_JAX}
NO_OPTION = ("label_smoothing", "smoothing", "class_weight", "weight", "ignore_index", "reduction", "sample_weight", "z_loss", "softcap")


def late_imports(path: pathlib.Path) -> set[str]:
    """Return the modules of the same folder that a file imports, within functions too."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level == 1]
    return {name for n in nodes for name in ([n.module] if n.module else [a.name for a in n.names])}


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_every_file_of_a_front_end_is_on_a_floor_and_imports_downwards(front_end):
    folder, in_order = PACKAGE / front_end, [file for floor in FRONT_ENDS[front_end].values() for file in floor]
    assert sorted(p.stem for p in folder.glob("*.py")) == sorted(in_order)
    for place, file in enumerate(in_order):
        upwards = late_imports(folder / f"{file}.py") & set(in_order[place:])
        assert not upwards, f"{file}.py imports {upwards}"


@pytest.mark.parametrize(
    "file", [f"{name}/{file}" for name, floors in FRONT_ENDS.items() for file in (*floors["compute"], *floors["operators"])]
)
def test_the_operators_know_no_option(file):
    """Below arguments.py, the code names no option. Comments and texts may say what a number is for."""
    tree = ast.parse((PACKAGE / f"{file}.py").read_text())
    names = {getattr(n, field, None) for n in ast.walk(tree) for field in ("id", "arg", "attr", "name")}
    assert not names & set(NO_OPTION), f"{file}.py: {names & set(NO_OPTION)}"


def test_no_modules_import_each_other_in_a_circle():
    modules = {".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")}
    graph = {name: (imports(p) & set(modules)) - {name} for name, p in modules.items()}
    for name in graph:  # a package imports its own files, and a file of it does not import the package
        graph[name] -= {package for package in modules if name.startswith(f"{package}.")}
    while leaves := [name for name, others in graph.items() if not others]:
        graph = {name: others - set(leaves) for name, others in graph.items() if name not in leaves}
    assert not graph, f"a circle among {sorted(graph)}"


# ---- what an import loads ----


def test_import_loads_numpy_and_no_framework():
    loaded = set(json.loads(python("import softxent, sys, json; print(json.dumps([m.split('.')[0] for m in sys.modules]))")))
    assert not loaded & FRAMEWORKS
    assert "numpy" in loaded
    modules = json.loads(python("import softxent, sys, json; print(json.dumps([m for m in sys.modules if m.startswith('softxent.')]))"))
    assert not [
        m
        for m in modules
        if m.split(".")[1] in ("proof", "demo", "bench", "torch", "jax", "sklearn", "boosting", "cli", "explanation", "conformance")
    ]


LAZY = ("boosting", "conformance", "jax", "proof", "sklearn", "torch")
FRAMEWORK_OF = {"jax": "JAX: pip install jax", "sklearn": 'the extra "sklearn"', "torch": "PyTorch: pip install torch"}


@pytest.mark.parametrize("name", LAZY)
def test_a_submodule_is_loaded_when_it_is_used(name):
    """`import softxent` alone gives softxent.torch and the others, and neither it nor dir() loads one."""
    code = f"""
import sys, softxent
print({name!r} in dir(softxent), any(m.split('.')[:2] == ['softxent', {name!r}] for m in sys.modules))
print(softxent.{name} is sys.modules['softxent.{name}'])
from softxent import {name}
"""
    assert python(code) == "True False\nTrue\n"


@pytest.mark.parametrize("name", FRAMEWORK_OF)
def test_a_submodule_without_its_framework_says_what_to_install(name):
    code = f"""
import inspect, sys
class Absent:
    def find_spec(self, module, path=None, target=None):
        if module.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{module!r}}", name=module)
sys.meta_path.insert(0, Absent())
import importlib.util
importlib.util.find_spec = lambda module, find=importlib.util.find_spec: None if module == {name!r} else find(module)
import softxent
print({name!r} in dir(softxent), {name!r} in [n for n, _ in inspect.getmembers(softxent)])
try:
    softxent.{name}
except ImportError as error:
    print(error)
"""
    lines = python(code).splitlines()
    assert lines[0] == "False False" and FRAMEWORK_OF[name] in lines[1] and "pip install '.[" in lines[1]


def test_an_unknown_attribute_is_an_attribute_error():
    for name in ("tensorflow", "torhc", "_torch", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'softxent' has no attribute '{name}'"):
            getattr(softxent, name)


def test_every_public_submodule_is_reached_by_its_name():
    """Those that the package does not load and that docs/ name in code."""
    named = {m for p in (ROOT / "docs").glob("*.md") for m in re.findall(r"softxent\.([a-z_]+)", p.read_text())}
    files = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    for name in sorted(named & files - {"bench", "cli", "demo"}):  # those are commands
        assert getattr(softxent, name), name


def test_import_is_small():
    """After NumPy, the import calls fewer than 40,000 functions. To import SymPy takes ten times as many."""
    code = """
import numpy, sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
import softxent
sys.setprofile(None)
print(calls)
"""
    assert int(python(code)) < 40_000


def test_import_patches_nothing():
    code = """
import numpy as np, json
import signal
before = {k: id(v) for k, v in vars(np).items()}, np.geterr(), dict(np.get_printoptions())
interrupt = signal.getsignal(signal.SIGINT)
import softxent, warnings
after = {k: id(v) for k, v in vars(np).items()}, np.geterr(), dict(np.get_printoptions())
print(all(after[0][k] == v for k, v in before[0].items()), before[1:] == after[1:])
print(signal.getsignal(signal.SIGINT) is interrupt)
"""
    assert python(code) == "True True\nTrue\n"


# ---- a missing kernel is reported ----


def test_the_compiled_kernel_is_there():
    """The other tests run on the backends that are available. Without the kernel they would test the formula only, and pass."""
    assert BACKENDS == ["cpu", "formula"], softxent.backends()


def test_without_the_kernel_numpy_computes_and_says_so_once():
    code = """
import sys, warnings
sys.modules["softxent._kernel"] = None
import softxent
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    first = softxent.cross_entropy([[1.0, 2.0]], [0])
    softxent.cross_entropy_and_grad([[1.0, 2.0]], [0])
    print([(w.category.__name__, str(w.message)[:46]) for w in seen])
print([tuple(b)[:3] for b in softxent.backends()], round(float(first), 6))
try:
    softxent.use_backend("cpu").__enter__()
except ValueError as e:
    print(e)
"""
    lines = python(code).splitlines()
    assert lines[0] == "[('RuntimeWarning', 'softxent runs on plain NumPy, slowly: the comp')]"
    assert lines[1] == "[('cpu', False, False), ('formula', True, True)] 1.313262"
    assert lines[2].startswith("use_backend: name must be one of formula; got 'cpu' (the compiled kernel is missing (")


def test_a_wrong_instruction_set_is_refused_by_the_first_call():
    code = """
import softxent
for call in (softxent.backends, lambda: softxent.cross_entropy([[1.0, 2.0]], [0])):
    try:
        call()
    except ValueError as e:
        print(e)
"""
    lines = python(code, SOFTXENT_ISA="sse9").splitlines()
    message = r"softxent: SOFTXENT_ISA must be among (\w+, )*(generic|neon), which this machine has; got 'sse9'"
    assert len(lines) == 2 and all(re.fullmatch(message, line) for line in lines), lines


def test_all_names_what_is_public():
    public = {n for n, v in vars(softxent).items() if not n.startswith("_") and not isinstance(v, type(np))}
    assert set(softxent.__all__) == public
    assert all(getattr(softxent, n).__doc__ for n in softxent.__all__)


def test_the_tests_run_on_this_checkout_or_an_installed_package():
    assert (PACKAGE / "py.typed").exists() and pathlib.Path(SRC) == PACKAGE.parent


TOLERANCES = {"rtol", "atol", "rel", "abs", "tol", "tolerance", "relative"}
HAVE_A_DEFAULT = {"assert_allclose", "allclose", "assert_close"}  # a relative tolerance that is not seen
COMPARED_BY = {"near", "close", "same", "within", "agrees"}  # the tests' own functions, which take a tolerance


def is_small(node: ast.AST) -> bool:
    """Whether an expression has a literal below 0.1, or a power of two below 1."""
    numbers = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, float)]
    powers = [n for n in ast.walk(node) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow) and isinstance(n.right, ast.UnaryOp)]
    return bool(powers) or any(0 < number < 0.1 for number in numbers)


def literal_tolerances(source: str) -> list[int]:
    """Return the lines with a tolerance that is written as a number, without a comment there or on the line before."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            options = name[:1].isupper()  # of a class, such as a solver's
            found += [node] if name in HAVE_A_DEFAULT and "rtol" not in {word.arg for word in node.keywords} else []
            found += [] if options else [word.value for word in node.keywords if word.arg in TOLERANCES and is_small(word.value)]
            found += [x for x in node.args if name in COMPARED_BY and isinstance(x, ast.Constant | ast.BinOp) and is_small(x)]
        if isinstance(node, ast.FunctionDef):
            named = zip(reversed(node.args.args), reversed(node.args.defaults), strict=False)
            named = [*named, *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
            found += [value for of, value in named if of.arg in TOLERANCES and value and is_small(value)]
        if isinstance(node, ast.Compare) and (isinstance(node.ops[-1], ast.Lt | ast.LtE) or isinstance(node.comparators[-1], ast.UnaryOp)):
            found += [x for x in node.comparators[-1:] if is_small(x)]
    lines = source.splitlines()
    reason = re.compile(r"# (?!noqa|fmt|type|---)")
    return sorted({x.lineno for x in found if not any(map(reason.search, lines[max(0, x.lineno - 2) : x.end_lineno]))})


SUITES = sorted({*pathlib.Path(__file__).parent.glob("*.py"), *(PACKAGE / "conformance").glob("*.py")})


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.name)
def test_a_tolerance_has_a_name_or_a_reason(path):
    assert literal_tolerances(path.read_text("utf-8")) == []


def test_a_tolerance_without_a_reason_is_found():
    for line in (
        "near(a, b, 1e-6)",
        "close(a, b, rtol=4 * 2.0**-53)",
        "assert abs(a - b) < 1e-12",
        "def f(a, tol=1e-9): pass",
        "allclose(a, b)",
    ):
        assert literal_tolerances(line) == [1] and literal_tolerances(f"{line}  # because") == []
    assert literal_tolerances("near(a, b, CLOSE)\nassert a < 3 * UNIT\nclose(a, b, atol=0)\nSolver(tol=1e-9)") == []


def test_a_change_goes_where_the_documentation_says():
    """Rows of the table in docs/development.md: a word of the library's code, and the files in which it stands."""
    page = (ROOT / "docs/development.md").read_text().split("## Where a change goes")[1]
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (.+) \|$", page, re.M)
    assert len(rows) == 3
    others = ("conformance", "bench", "demo", "proof", "explanation")
    sources = {str(p.relative_to(PACKAGE)): p for p in PACKAGE.rglob("*.py")} | {f"cpp/{p.name}": p for p in CPP.iterdir()}
    sources = {name: p for name, p in sources.items() if not name.startswith(others)}
    for word, files in rows:
        named = set(re.findall(r"`([\w/]+\.\w+)`", files))
        assert {name for name, p in sources.items() if re.search(rf"\b{word}\b", p.read_text())} == named, word


def test_explained_mutations_name_lines_that_exist():
    """tools/mutation.toml says why a change of a line is not noticed. An entry whose line is gone explains nothing."""
    explained = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text())["unnoticed"]
    sources = {path: path.read_text() for path in (*PACKAGE.rglob("*.py"), *CPP.glob("*.[ch]*"))}
    for entry in explained:
        kernel = entry["file"].startswith("cpp/")
        texts = [text for path, text in sources.items() if (path.parent == CPP if kernel else path.as_posix().endswith(entry["file"]))]
        assert any(entry["line"].strip() in text for text in texts), entry
