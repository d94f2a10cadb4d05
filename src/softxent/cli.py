"""The command `softxent`. It needs the extra `cli` (typer, rich, matplotlib). `import softxent` does not load this file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np

from . import __version__, backends, contract, kernels
from .demo import BATCH, BUDGET, CLASSES, HELD_OUT, STEPS

try:
    import typer
except ModuleNotFoundError as error:  # main() reports it; until then no annotation below is evaluated
    if not contract.extra(error):
        raise
    _typer = False
else:
    _typer = True


def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = STEPS,
    batch: Annotated[int, typer.Option(min=2, help="Tokens in a step.")] = BATCH,
    classes: Annotated[int, typer.Option(min=2000, help="Size of the vocabulary.")] = CLASSES,
    held_out: Annotated[int, typer.Option(min=1000, help="Held-out tokens over which the perplexities are computed.")] = HELD_OUT,
    budget: Annotated[float, typer.Option(min=0.01, help="MiB of logits that softxent holds at once.")] = BUDGET,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initialization and of the batches.")] = 0,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder of the plot, demo.png.")] = Path("demo-output"),
) -> None:
    """Train a language model with softxent and, for comparison, with NumPy.

    The model predicts the next token in the source of Python's standard library, so nothing is downloaded. It is trained twice on
    the same batches. Its head (last layer, loss and gradients) is computed once by softxent, and once by NumPy with all logits in memory.

    The demo shows the loss, perplexity, time and memory of both, code that the model completes, and yhat, y and yhat - y of one
    prediction. It takes about two minutes on two cores. The exit status is 1 if one of its claims does not hold.
    """
    from .demo.run import run

    try:
        good = run(
            steps=steps, batch=batch, classes=classes, held_out=held_out, seed=seed, budget=int(budget * 2**20), output=output
        )  # fmt: skip
    except ValueError as error:
        _stop(f"softxent {error}", 2)
    except (RuntimeError, OSError) as error:
        _stop(str(error), 1)
    if not good:
        _stop("softxent demo: a claim does not hold: see FAILED above", 1)


def bench(
    shapes: Annotated[
        str | None, typer.Option(help="Logits as rows x classes, such as 1024x32000,8192x1000.", show_default="those of the README")
    ] = None,
    dtypes: Annotated[str, typer.Option(help="f32, bf16 or both.")] = "f32,bf16",
    threads: Annotated[str, typer.Option(help="Numbers of threads, each measured in its own process.")] = "1,2",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which every contender is measured.")] = 30,
    quick: Annotated[bool, typer.Option("--quick", help="Use small shapes only, to try the benchmark.")] = False,
    linear: Annotated[
        bool, typer.Option("--linear", help="Measure linear cross-entropy, beside the matrix products alone and all logits at once.")
    ] = False,
    options: Annotated[
        bool, typer.Option("--options", help="Measure every option, output and derivative, in multiples of the plain loss.")
    ] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Measure classes that are divided among processes, beside one process and loss_parallel.")
    ] = False,
    training: Annotated[
        bool,
        typer.Option("--training", help="Measure steps of transformers' Trainer with a patched model, and GRPO and DPO beside trl."),
    ] = False,
    sklearn: Annotated[bool, typer.Option("--sklearn", help="Fit softxent.sklearn.SoftmaxRegression, beside LogisticRegression.")] = False,
    boosting: Annotated[
        bool, typer.Option("--boosting", help="Train XGBoost, LightGBM and CatBoost with softxent.boosting, beside their own objectives.")
    ] = False,
    jax: Annotated[bool, typer.Option("--jax", help="Measure softxent.jax beside optax, under jax.jit.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Measure on the GPU, beside PyTorch and Liger.")] = False,
    output: Annotated[Path | None, typer.Option(file_okay=False, help="Folder of tables and plot.", show_default="bench/results")] = None,
) -> None:
    """Measure the time and memory of softxent beside memcpy and other libraries.

    The libraries are NumPy, SciPy, scikit-learn and PyTorch, as far as they are installed. With all of them it takes a quarter of an hour.
    """
    try:
        wanted = {"linear": linear, "options": options, "distributed": distributed, "training": training}
        wanted |= {"sklearn": sklearn, "boosting": boosting, "jax": jax}
        if name := next((name for name, yes in wanted.items() if yes), None):
            from .bench.__main__ import FURTHER

            FURTHER[name][0](repeats, output or Path("bench/results"), quick)
        elif gpu:
            from .bench.gpu import run as on_gpu

            on_gpu(shapes, dtypes, repeats, output or Path("bench/results"), quick)
        else:
            from .bench import run

            run(shapes, dtypes, threads, repeats, output, quick)
    except ValueError as error:
        _stop(f"softxent {error}", 2)


def explain(
    derivations: Annotated[list[str] | None, typer.Argument(help="Only these (see --list).", show_default="the article's")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All parts, also those beyond the article.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the derivations and exit.")] = False,
    logits: Annotated[
        str | None, typer.Option(help="The scores, such as 2,1,0.1; -inf is a masked class.", show_default="the article's")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The true class: its index, from 0, or its name.")] = None,
    truth: Annotated[str | None, typer.Option(help="The truth instead, such as 0.7,0.2,0.1; any sum.")] = None,
    names: Annotated[str | None, typer.Option(help="The classes' names, such as cat,dog,owl.")] = None,
    names_file: Annotated[Path | None, typer.Option(help="A file of names, one a line.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file of logits: .npy, .npz or .csv.")] = None,
    row: Annotated[int | None, typer.Option(help="The row of the file, from 0.", show_default="0")] = None,
    labels: Annotated[Path | None, typer.Option(help="The labels [N] of the file's rows: .npy or .npz.")] = None,
    j: Annotated[str | None, typer.Option("--j", help="The class of j, as --label.", show_default="the most probable other")] = None,
    k: Annotated[str | None, typer.Option("--k", help="The class of k, as --label.", show_default="the label")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with live numbers there instead.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead.")] = False,
) -> None:
    """Show the derivation of the gradient, line by line, with your numbers.

    Each line is shown with the rule that leads to it, with your numbers in place of the symbols, and with its value. The values of
    the lines of a derivation are equal. At the end, yhat, y and yhat - y are compared with the slopes of the loss and with what
    softxent computes. The exit status is 1 if they disagree.

    If there are more than 12 classes, the most probable ones are shown, and the others are combined into one class. The numbers of
    the classes that are shown do not change by this.

    A class with the score -inf is masked. Its prediction and its gradient are 0, and the derivation is that of the other classes.

    A class is given by its index or its name. A whole number is always an index, even if a class has that number as its name.

    `--file` reads logits [C] or [N, C] from an .npy, .npz or .csv file. If an .npz holds several arrays, the logits are the one named
    logits, z or scores, and the labels [N] the one named labels, y or targets. Of two arrays with other names, the logits are the
    floating-point array [N, C], and the labels the integers [N]. `--file batch.npz:name` chooses an array by its name. A .csv has a row of
    numbers on each line. If its first line does not hold numbers only, it is the header, with the names of the classes, and a column named
    label or target holds the index or the name of each row's label. `--label` and `--truth` replace the labels in a file.

    With `--html`, the page shows the derivations that are named, or all of them; `--all` opens those beyond the article.
    """
    from .explanation.terminal import run

    try:
        good = run(
            derivations or [], everything=everything, listed=listed, html=html, as_json_=json, logits=logits, label=label, truth=truth,
            names=names, names_file=names_file, file=file, row=row, labels=labels, j=j, k=k,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        _stop(f"softxent {error}", 2)
    if not good:
        _stop("softxent explain: the derivation, the slopes of the loss and softxent do not all agree on this row", 1)


def prove(
    derivations: Annotated[list[str] | None, typer.Argument(help="Only these (softxent explain --list).", show_default="all")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead.")] = False,
) -> None:
    """Check every line of the derivation by its rule, by SymPy (an inequality as a sum of squares) and by Coq.

    For each line, its rule, its reason, what accepts it, and the time are shown. Without names, the theorems about rounding errors and
    about the derivative on R^n are checked too; they need the libraries Flocq and Coquelicot. The exit status is 0 if everything is proved,
    1 if something is refused, and 3 if Coq is not installed or a library is missing; without Coq the lines are checked by their rules and
    by SymPy, but not proved.
    """
    from .explanation.verdict import run

    try:
        code = run(derivations or [], json)
    except ValueError as error:
        _stop(f"softxent {error}", 2)
    raise typer.Exit(code)


def check(
    subject: Annotated[str, typer.Argument(help="MODULE:FUNCTION, such as torch.nn.functional:cross_entropy.")] = "",
    as_: Annotated[
        str | None,
        typer.Option("--as", help="numpy, torch, jax or sklearn, with -linear or -log_softmax.", show_default="by its parameters"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out large cases and most dtypes.")] = False,
    law: Annotated[list[str] | None, typer.Option(help="Only this law; may be repeated.", show_default="all")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the laws and exit.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds in which a call must return.")] = 300,
    ranks: Annotated[int, typer.Option(min=1, help="Divide the classes among so many processes (gloo); for DTensors.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page there too.")] = None,
) -> None:
    """Try the laws of cross-entropy on any implementation.

    The function is called like torch's, optax's, NumPy's or scikit-learn's, by the names of its parameters. Its values, gradients, second
    derivatives and edge cases are compared with the equations in extended precision, within bounds of the rounding errors.

    For each law that is broken, a small input is shown, with a script that prints what the function gives. The function runs in a process
    of its own, so that a crash is a finding. The exit status is 1 if a law is broken.
    """
    from .conformance.report import run

    try:
        good = run(subject, as_, quick=quick, as_json=json, html=html, laws=law or [], listed=listed, timeout=timeout, ranks=ranks)
    except ValueError as error:
        _stop(f"softxent {error}", 2)
    if not good:
        raise typer.Exit(1)


def info() -> None:
    """Show the version and the backends."""
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
    """Softmax cross-entropy: its demonstration, its benchmark, and the derivation of its gradient with its proof."""
    if version:
        print(f"softxent {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process if None.

    Raises:
        SystemExit: always; its code is 0 for success, 1 for a failure, and 2 for wrong arguments or a missing extra. `prove` has 3 too.
    """
    if not _typer:
        _need_extra("cli")
    try:
        kernels.isa()
    except ValueError as error:
        _stop(str(error), 2)
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(invoke_without_command=True)(_options)
    for command in (demo, bench, explain, prove, check, info):
        app.command()(command)
    try:
        app(arguments, prog_name="softxent")
    except ModuleNotFoundError as error:
        if not (extra := contract.extra(error)):
            raise
        _need_extra(extra)


def _need_extra(extra: str) -> NoReturn:
    _stop(f"softxent: {contract.needs_extra('this command', extra)}", 2)


def _stop(message: str, code: int) -> NoReturn:
    print(contract.printable(message), file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
