"""The locked requirements satisfy the ranges of pyproject.toml, and a warning fails a test only if it comes from softxent."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PYTHONS = pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
UNLOCKED = {"torch", "triton"}  # requirements/torch.txt says why


def ranges(extra=None):
    """The requirements of an extra and of the extras that it names, or those of the library."""
    for line in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                yield from ranges(other)
        else:
            yield requirement


def requirements(file):
    """The requirements of a file, without comments and hashes."""
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return [Requirement(line.rstrip(" \\")) for line in lines if re.match(r"\w", line)]


def holds(requirement, python):
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python, "python_full_version": f"{python}.9"})


def pins(file, python):
    """The version of each package that the file installs with this Python."""
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements(file) if holds(r, python)}


def outside(wanted, file, python):
    """The wanted requirements that the file's versions for this Python do not satisfy."""
    pinned = pins(file, python)
    wanted = [r for r in wanted if r.name not in UNLOCKED and holds(r, python)]
    return [str(r) for r in wanted if not r.specifier.contains(pinned.get(canonicalize_name(r.name), "0"), prereleases=True)]


@PYTHONS
@pytest.mark.parametrize(("file", "extras"), [("demo.txt", ["build", "cli"]), ("dev.txt", list(PROJECT["optional-dependencies"]))])
def test_the_lock_satisfies_the_ranges(file, extras, python):
    wanted = [*map(Requirement, PYPROJECT["build-system"]["requires"]), *ranges(), *(r for extra in extras for r in ranges(extra))]
    assert not outside(wanted, file, python), "run make lock"


def test_a_range_that_the_lock_does_not_satisfy_is_found():
    wanted = [Requirement(line) for line in ("numpy>=99", "not-locked>=1", "rich>=99; python_version < '3.12'", "numpy>=1.26", "torch>=99")]
    assert outside(wanted, "demo.txt", "3.13") == ["numpy>=99", "not-locked>=1"]


def test_what_is_not_locked_has_the_ranges_of_pyproject_with_an_upper_bound():
    bounded = {r.name: r for r in requirements("torch.txt")}
    wanted = {r.name: r for r in ranges("dev") if r.name in UNLOCKED}
    assert bounded.keys() == wanted.keys() == UNLOCKED
    for name, r in bounded.items():
        assert r.marker == wanted[name].marker
        assert {s.operator for s in set(r.specifier) - set(wanted[name].specifier)} == {"<"}


@PYTHONS
def test_the_demo_has_the_versions_of_development(python):
    assert pins("demo.txt", python).items() <= pins("dev.txt", python).items()


@pytest.mark.parametrize("file", ["demo.txt", "dev.txt"])
def test_every_locked_version_is_public_and_has_hashes(file):
    text = (ROOT / "requirements" / file).read_text()
    entries = re.findall(r"^\w.*(?:\n .*)+", text, re.M)
    assert len(entries) == len(requirements(file)) and all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|==\S*\+", text)
    assert not UNLOCKED & {r.name for r in requirements(file)}


def test_only_warnings_of_softxent_are_errors():
    with pytest.raises(RuntimeWarning):
        warnings.warn_explicit("divide by zero", RuntimeWarning, "loss.py", 1, module="softxent.loss")
    with pytest.raises(RuntimeWarning):
        warnings.warn("softxent: attributed to the caller", RuntimeWarning, stacklevel=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn_explicit("deprecated", DeprecationWarning, "_script.py", 1, module="torch.jit._script")
    assert len(seen) <= 1
