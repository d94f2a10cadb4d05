"""The rules of the test suite itself, which conftest.py applies."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cases import environment

HERE = Path(__file__).parent


OUTCOMES = {
    "import pytest\ndef test(): pytest.skip('no tool')": "FAILED",
    "import pytest\npytest.importorskip('no_such_package')\ndef test(): pass": "ERROR",
    "import unittest\nclass Test(unittest.TestCase):\n    def test(self): self.skipTest('no tool')": "FAILED",
    "import pytest\n@pytest.mark.skipif(True, reason='another platform')\ndef test(): pass": "SKIPPED",
    "import pytest\n@pytest.mark.xfail\ndef test(): assert False": "XFAIL",
    "def test(): pass": "PASSED",
}


def test_a_skipped_test_fails_unless_the_platform_is_the_reason(tmp_path):
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text())
    for n, test in enumerate(OUTCOMES):
        (tmp_path / f"test_{n}.py").write_text(test)
    arguments = ["-vrA", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-c", "/dev/null"]
    places = ["--rootdir", str(tmp_path), str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *arguments, *places]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    for n, outcome in enumerate(OUTCOMES.values()):
        assert re.search(rf"^{outcome}\b.*\btest_{n}\.py", done.stdout, re.MULTILINE), (outcome, done.stdout)
    assert re.search(r"2 failed, 1 passed, 1 skipped, 1 xfailed, 1 error", done.stdout), done.stdout
