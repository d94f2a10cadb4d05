"""Why the results are right: bounds on what rounding may do (bounds.py). The library itself imports nothing from here."""
