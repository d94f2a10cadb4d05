"""Numbers on which Python and the compiled kernel agree: cpp/kernel.h, run.h and xla.h say them, and bind.cpp exports them.

Where the kernel is missing, nothing has to agree with it, and the numbers below are those of the formula backend.
"""

from __future__ import annotations

try:
    from ._kernel import BLOCK as BLOCK
    from ._kernel import DTYPES as DTYPES
    from ._kernel import GIVEN as GIVEN
    from ._kernel import IGNORED as IGNORED
    from ._kernel import LARGEST as LARGEST
    from ._kernel import LARGEST_LOGIT as LARGEST_LOGIT
    from ._kernel import OPS as OPS
    from ._kernel import OUTSIDE as OUTSIDE
    from ._kernel import SHORT_ROW as SHORT_ROW
    from ._kernel import SMALL_CALL as SMALL_CALL
except ImportError:  # kernels/__init__.py says why
    IGNORED, LARGEST, OUTSIDE, LARGEST_LOGIT = range(-(2**63), -(2**63) + 4)
    BLOCK, SHORT_ROW, SMALL_CALL = 4096, 0, 0
    DTYPES, GIVEN, OPS = {}, {}, {}

NO_LABEL = -1  # a label that matches no class
