"""The rules of the test suite itself, which conftest.py applies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cases import environment

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("import pytest\ndef test(): pytest.skip('no tool')", "1 failed"),
        ("import pytest\npytest.importorskip('no_such_package')\ndef test(): pass", "1 error"),
        ("import unittest\nclass Test(unittest.TestCase):\n    def test(self): self.skipTest('no tool')", "1 failed"),
        ("import pytest\n@pytest.mark.skipif(True, reason='another platform')\ndef test(): pass", "1 skipped"),
        ("import pytest\n@pytest.mark.xfail\ndef test(): assert False", "1 xfailed"),
        ("def test(): pass", "1 passed"),
    ],
)
def test_a_skipped_test_fails_unless_the_platform_is_the_reason(test, outcome, tmp_path):
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(test)
    arguments = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", "/dev/null", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment(), capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines()[-1].startswith(outcome), done.stdout
