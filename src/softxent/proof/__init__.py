"""The derivation of the gradient as data, its checkers, and bounds for rounding errors. The library itself does not import this package.

derivation.py has the lines and expr.py their expressions. rules.py, symbolic.py and coq.py check or state each line, and prove.py runs the
checks. reading.py prints a line, replay.py evaluates it, and bounds.py bounds the rounding errors of the kernels.
"""
