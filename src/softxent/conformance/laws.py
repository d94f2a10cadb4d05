"""All laws, by name."""

from . import laws_of_values, laws_of_edges, laws_of_calls, laws_of_derivatives  # isort: skip  (the order of the report)
from .law import LAWS, Broken, Law

__all__ = ["LAWS", "Broken", "Law", "laws_of_calls", "laws_of_derivatives", "laws_of_edges", "laws_of_values"]
