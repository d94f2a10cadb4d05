"""The command `softxent`. It needs the extra `cli` (typer, rich, matplotlib); `import softxent` never loads this file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np

from . import __version__, backends
from .demo import BATCH, BUDGET, CLASSES, HELD_OUT, STEPS

_EXTRA = {"typer", "click", "shellingham", "rich", "matplotlib"}


def _is_extra(error: ModuleNotFoundError) -> bool:
    return (error.name or "").partition(".")[0] in _EXTRA


try:
    import typer
except ModuleNotFoundError as error:  # main() says so; nothing below evaluates an annotation before it
    if not _is_extra(error):
        raise
    _typer = False
else:
    _typer = True


def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = STEPS,
    batch: Annotated[int, typer.Option(min=2, help="Tokens in a step.")] = BATCH,
    classes: Annotated[int, typer.Option(min=2000, help="Size of the vocabulary.")] = CLASSES,
    held_out: Annotated[int, typer.Option(min=1000, help="Held-out tokens that the perplexities are taken over.")] = HELD_OUT,
    budget: Annotated[float, typer.Option(min=0.01, help="MiB of logits that softxent holds at once.")] = BUDGET,
    seed: Annotated[int, typer.Option(min=0, help="Of the model's start and of the batches.")] = 0,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder of the plot, demo.png.")] = Path("demo-output"),
) -> None:
    """Train a language model with softxent, beside plain NumPy.

    The model predicts the next token in the source of Python's standard library, so nothing is downloaded. It is trained twice on
    the same batches: its head (last layer, loss and gradients) once by softxent, and once by NumPy with all logits in memory.

    Shown are loss, perplexity, time and memory of both, lines of code as the model completes them, and one prediction taken apart
    into yhat, y and yhat - y. About two minutes on two cores. Exits with 1 if anything that it claims does not hold.
    """
    from .demo.run import run

    try:
        good = run(
            steps=steps, batch=batch, classes=classes, held_out=held_out, seed=seed, budget=int(budget * 2**20), output=output
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        _stop(str(error), 1)
    if not good:
        _stop("softxent demo: a claim does not hold: see FAILED above", 1)


def bench(
    shapes: Annotated[
        str | None, typer.Option(help="Logits as rows x classes, such as 1024x32000,8192x1000.", show_default="those of the README")
    ] = None,
    dtypes: Annotated[str, typer.Option(help="f32, bf16 or both.")] = "f32,bf16",
    threads: Annotated[str, typer.Option(help="Numbers of threads, each in a process of its own.")] = "1,2",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which every contender has its turn.")] = 30,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes only, to see it work.")] = False,
    output: Annotated[Path | None, typer.Option(file_okay=False, help="Folder of tables and plot.", show_default="bench/results")] = None,
) -> None:
    """Time the layer beside memcpy and its peers.

    The peers are NumPy, SciPy, scikit-learn and PyTorch, as far as they are installed. A quarter of an hour with all of them.
    """
    from .bench import run

    try:
        run(shapes, dtypes, threads, repeats, output, quick)
    except ValueError as error:
        _stop(f"softxent {error}", 2)


def info() -> None:
    """Show the version, and what computes the layer here."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("backend", "available", "active", "detail", box=box.SIMPLE_HEAD)
    for b in backends():
        table.add_row(b.name, "yes" if b.available else "no", "yes" if b.active else "no", b.detail)
    console = Console()
    console.print(f"softxent {__version__}, NumPy {np.__version__}, Python {sys.version.split()[0]}", highlight=False)
    console.print(table)


def _options(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """The softmax cross-entropy layer: its demo, its benchmark, and what runs here."""
    if version:
        print(f"softxent {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command on `arguments` (None: the process's own). Ends in SystemExit: 0; 1 a failure; 2 a wrong call, a missing extra."""
    if not _typer:
        _need_extra()
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(invoke_without_command=True)(_options)
    for command in (demo, bench, info):
        app.command()(command)
    try:
        app(arguments, prog_name="softxent")
    except ModuleNotFoundError as error:
        if not _is_extra(error):
            raise
        _need_extra()


def _need_extra() -> NoReturn:
    _stop('softxent: this command needs the extra "cli": pip install "softxent[cli]"', 2)


def _stop(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
