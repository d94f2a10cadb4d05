"""`softxent.explain`: the derivation of the gradient of a row, for Python and notebooks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from decimal import Decimal
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from . import contract

if TYPE_CHECKING:
    from .explanation import Account

HEIGHT = 640  # the height of the page in a notebook, in CSS pixels; the page scrolls


class Explanation:
    """The result of `explain`. A notebook shows it as a page whose scores can be changed, and a terminal as text.

    Attributes:
        agrees: whether every line has the value of the line before it, and the last line that of the slopes of the loss and of the gradient
            that `cross_entropy_and_grad` computes, up to the bounds on their errors.
    """

    def __init__(self, account: Account, *, derivations: Sequence[str], everything: bool) -> None:
        self._account, self._derivations, self._everything = account, derivations, everything
        self.agrees = account.agrees

    def to_dict(self) -> dict[str, Any]:
        """Return everything that is shown as numbers, strings, lists and dicts, as `softxent explain --json` prints it."""
        from .explanation import as_json

        return as_json(self._account)

    def to_html(self) -> str:
        """Return the page, an HTML document that needs no other file.

        Raises:
            ValueError: if the truth was given as probabilities: on the page, the label can be changed.
            ImportError: if the extra "proof" is not installed.
        """
        from .explanation import as_html

        try:
            return as_html(self._account.row, self._derivations, self._everything)
        except ModuleNotFoundError as error:
            _need_extra("the page of softxent.explain", error)

    def save(self, path: str | Path) -> None:
        """Write the page into a file. Errors are those of `to_html`."""
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def __repr__(self) -> str:
        """Return the text, in the width of the terminal."""
        from rich.console import Console

        from .explanation.terminal import show

        file = io.StringIO()
        show(Console(file=file, highlight=False, color_system=None, force_jupyter=False), self._account, ending=not self._derivations)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def _repr_html_(self) -> str:
        """Return the page in a frame or, if there can be no page, the reason and the text."""
        try:
            return _frame(self.to_html())
        except (ImportError, ValueError) as error:
            return f"<p>{_escaped(str(error))}</p><pre>{_escaped(repr(self))}</pre>"


def _frame(page: str) -> str:
    """Return an <iframe> element that contains the page, in ASCII, so that the encoding of the surrounding document does not matter.

    The frame is sandboxed, so that the scripts of the page cannot access the notebook. The base of its links is its own address, because
    links inside the page would otherwise lead to the notebook.
    """
    page = page.replace("<head>", '<head><base href="about:srcdoc">', 1)
    style = f"width: 100%; height: {HEIGHT}px; border: 1px solid #8888; box-sizing: border-box; resize: vertical"
    return f"<iframe title='softxent.explain' sandbox='allow-scripts' style='{style}' srcdoc='{_escaped(page)}'></iframe>"


def _escaped(text: str) -> str:
    """Escape HTML as the value of an attribute in single quotes. Double quotes stay as they are, because a page has many."""
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), ("'", "&#39;")):
        text = text.replace(sign, name)
    return text.encode("ascii", "xmlcharrefreplace").decode()


def explain(
    logits: npt.ArrayLike,
    label: int | str | None = None,
    *,
    truth: npt.ArrayLike | None = None,
    names: Sequence[str] | None = None,
    j: int | str | None = None,
    k: int | str | None = None,
    derivations: str | Sequence[str] = (),
    everything: bool = False,
) -> Explanation:
    """Explain the gradient of the loss of a row, `dz_k = mass * softmax(z)_k - y_k`: derive it line by line, with the numbers of the row.

    Each line has the reason for it, and its value. The last line is compared with central differences of the loss and with the gradient of
    `cross_entropy_and_grad`. A notebook shows the result as a page whose scores can be changed, and a terminal shows it as text.

    Args:
        logits: [C], the scores of one row: an array, a list or a tensor on the CPU, in float32, float64, float16 or bfloat16; integers
            become float64. If there are more than 12 classes, the most probable ones are shown, and the others are merged into one. A score
            of -inf masks its class.
        label: the true class, as an index (int) or as a name (str).
        truth: [C], probabilities instead of a label. They need not sum to 1. Each is taken as the decimal number that it is printed as, so
            that [0.7, 0.2, 0.1] sums to exactly 1.
        names: [C], the names of the classes. The default is "class 0", "class 1" and so on.
        j, k: the classes of the indices j and k, given by index or name. The default of k is the label, that of j the most probable other
            class.
        derivations: the name of a derivation, such as "result1", or a list of names, to show only these. `softxent explain --list` lists
            all names.
        everything: whether to show the parts beyond the article as well.

    Returns:
        An `Explanation`.

    Raises:
        ValueError, TypeError: if a shape, class, name or score does not fit.
        ImportError: if the extra "cli" is not installed. The page needs the extra "proof" too; without it a notebook shows the text.

    Cost: about a tenth of a second for the derivations of the article, and a second with `everything`, plus O(C).

    Source: the derivation is `softxent.proof.derivation`, and its values are computed with 50 digits by `softxent.proof.replay`.
    """
    try:
        import rich  # noqa: F401

        from .explanation import account, chosen
        from .explanation.row import arrange
    except ModuleNotFoundError as error:
        _need_extra("softxent.explain", error)
    z = contract.floats("explain", "logits", logits)
    if z.ndim != 1:
        contract.fail("explain", "logits", "be one row, of shape (classes,)", f"shape {z.shape}")
    if names is not None and (isinstance(names, (str, bytes)) or not np.iterable(names)):
        contract.fail("explain", "names", "be a sequence of names, one for each class", contract.shown(names), TypeError)
    row = arrange(
        np.array(z), label=_class("label", label), truth=None if truth is None else _decimals(truth),
        names=None if names is None else [str(name) for name in names], j=_class("j", j), k=_class("k", k),
    )  # fmt: skip
    wanted = (derivations,) if isinstance(derivations, str) or not np.iterable(derivations) else tuple(derivations)
    if not all(isinstance(name, str) for name in wanted):
        contract.fail("explain", "derivations", "be the name of a derivation or a list of names", contract.shown(derivations), TypeError)
    if wanted and everything:
        contract.fail("explain", "derivations", "not come with everything=True", ", ".join(wanted))
    return Explanation(account(row, chosen("explain", wanted, everything)), derivations=wanted, everything=everything)


def _class(argument: str, value: Any) -> int | str | None:
    """Check a class: a name, or an index, which may be an integer of NumPy or a tensor with one element."""
    if value is None or isinstance(value, str):
        return value
    try:
        if not isinstance(value, (bool, np.bool_)):
            return index(value)
    except TypeError:
        pass
    contract.fail("explain", argument, "be the index of a class (an int) or its name", contract.shown(value), TypeError)


def _decimals(truth: Any) -> list[Decimal]:
    y = contract.floats("explain", "truth", truth)
    if y.ndim != 1:
        contract.fail("explain", "truth", "be probabilities of shape (classes,)", f"shape {y.shape}")
    return [Decimal(str(t)) for t in y]


def _need_extra(what: str, error: ModuleNotFoundError) -> NoReturn:
    """Raise ImportError with the name of the extra that contains the missing package."""
    if extra := contract.extra(error):
        raise ImportError(contract.needs_extra(what, extra)) from error
    raise error
