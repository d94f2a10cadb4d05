"""The derivation of one row's gradient, for Python and notebooks. Nothing of it is loaded before `explain` is called."""

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

HEIGHT = 640  # of the page in a notebook, in CSS pixels: about what a screen shows of a notebook; the page scrolls inside


class Explanation:
    """What `explain` returns. A notebook shows it as a page with live numbers, and a terminal as text.

    Attributes:
        agrees: whether every line agrees with the line before it, and the last with the slopes of the loss and with softxent's gradient.
    """

    def __init__(self, account: Account, *, derivations: Sequence[str], everything: bool) -> None:
        self._account, self._derivations, self._everything = account, derivations, everything
        self.agrees = account.agrees

    def to_dict(self) -> dict[str, Any]:
        """Everything that is shown, as numbers, strings, lists and dicts: what `softxent explain --json` prints."""
        from .explanation import as_json

        return as_json(self._account)

    def to_html(self) -> str:
        """The page, a whole HTML document that needs no other file. It needs a label, not probabilities, and the extra "proof"."""
        from .explanation import as_html

        try:
            return as_html(self._account.row, self._derivations, self._everything)
        except ModuleNotFoundError as error:
            _need_extra("the page of softxent.explain", error)

    def save(self, path: str | Path) -> None:
        """Write the page into a file."""
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def __repr__(self) -> str:
        """The text, in the width of the terminal."""
        from rich.console import Console

        from .explanation.terminal import show

        file = io.StringIO()
        show(Console(file=file, highlight=False, color_system=None, force_jupyter=False), self._account, ending=not self._derivations)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def _repr_html_(self) -> str:
        """The page in a frame of its own. Where there can be no page, the text, and the reason."""
        try:
            return _frame(self.to_html())
        except (ImportError, ValueError) as error:
            return f"<p>{_escaped(str(error))}</p><pre>{_escaped(repr(self))}</pre>"


def _frame(page: str) -> str:
    """An element that shows a whole document, as text in ASCII, so that the encoding of the document around it does not matter.

    The frame is sandboxed: the scripts of the page cannot reach the notebook. Its own address is the base of its links, because a link to
    a place in the page would otherwise lead to the notebook.
    """
    page = page.replace("<head>", '<head><base href="about:srcdoc">', 1)
    style = f"width: 100%; height: {HEIGHT}px; border: 1px solid #8888; box-sizing: border-box; resize: vertical"
    return f"<iframe title='softxent.explain' sandbox='allow-scripts' style='{style}' srcdoc='{_escaped(page)}'></iframe>"


def _escaped(text: str) -> str:
    """HTML as the value of an attribute in single quotes; the double quotes, of which a page has many, stay as they are."""
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
    """The derivation of one row's gradient, `dz_k = mass * softmax(z)_k - y_k`, line by line, with the row's numbers.

    Each line stands with the rule that leads to it and with its value, and the last beside the slopes of the loss and the gradient of
    `cross_entropy_and_grad`. In a notebook the result is shown as a page whose scores can be moved, in a terminal as text.

    Args:
        logits: [C], one row: an array, a list or a tensor on the CPU; float32, float64, float16 or bfloat16, integers as float64. Of
            more than 12 classes the likeliest are shown, and the others are put together as one. -inf is a masked class.
        label: the true class: its index, or its name. A str is always a name, an int always an index.
        truth: [C], probabilities of any mass in place of the label. They are taken as the decimals that they are printed as, so
            that [0.7, 0.2, 0.1] sums to exactly 1.
        names: [C], the names of the classes; "class 0", "class 1", ... if None.
        j, k: the classes that play j and k in the derivation, by index or by name. If None, k is the label, and j the likeliest class
            that is not k.
        derivations: names of the only derivations to show, such as "result1"; `softxent explain --list` lists them.
        everything: whether the parts beyond the article are shown too.

    Returns:
        An `Explanation`.

    Raises:
        ValueError, TypeError: a shape, class, name or score that does not fit.
        ImportError: the extra "cli" is not installed. The page needs the extra "proof" too; without it a notebook shows the text.

    Cost: a tenth of a second for the article's derivations, and a second with `everything`, at 50 digits; O(C) beyond 12 classes.

    Mathematics: the derivation is `softxent.proof.derivation`; the values are computed by `softxent.proof.replay`.
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
    if isinstance(names, str):
        contract.fail("explain", "names", "be a sequence of names, one for each class", repr(names), TypeError)
    row = arrange(
        np.array(z), label=_class("label", label), truth=None if truth is None else _decimals(truth),
        names=None if names is None else [str(name) for name in names], j=_class("j", j), k=_class("k", k),
    )  # fmt: skip
    wanted = (derivations,) if isinstance(derivations, str) else tuple(derivations)
    if wanted and everything:
        contract.fail("explain", "derivations", "not come with everything=True", ", ".join(wanted))
    return Explanation(account(row, chosen("explain", wanted, everything)), derivations=wanted, everything=everything)


def _class(argument: str, value: Any) -> int | str | None:
    """A class by its name or its index, which may be an int of NumPy or a tensor with one element."""
    if value is None or isinstance(value, str):
        return value
    try:
        if not isinstance(value, (bool, np.bool_)):
            return index(value)
    except TypeError:
        pass
    contract.fail("explain", argument, "be the index of a class (an int) or its name", repr(value), TypeError)


def _decimals(truth: Any) -> list[Decimal]:
    y = contract.floats("explain", "truth", truth)
    if y.ndim != 1:
        contract.fail("explain", "truth", "be probabilities of shape (classes,)", f"shape {y.shape}")
    return [Decimal(str(t)) for t in y]


def _need_extra(what: str, error: ModuleNotFoundError) -> NoReturn:
    """Say which extra holds the package that is missing, if one does."""
    if extra := contract.extra(error):
        raise ImportError(contract.needs_extra(what, extra)) from error
    raise error
