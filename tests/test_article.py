"""The article whose derivation the library is: every heading and every displayed formula of it has its line here, in its order.

The list is in the notation of the terminal. The derivation is read from what a user sees: the terminal, the JSON, the page
and the documentation.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
from pathlib import Path

import pytest
from test_cli import command

from softxent.explanation import terminal
from softxent.explanation.page import page
from softxent.proof.derivation import ARTICLE, QUOTIENT_RULE, RESULT_1, z
from softxent.proof.expr import D, E, Sum, exp, rebuild, same

PART_1 = [
    "Part 1: Detailed proof of the Softmax Derivative",
    "∂ŷ_j/∂z_k",
    "ŷ_j = e^z_j / (Σ_i e^z_i)",
    "f' = (u' v − u v') / v²",
    "u = e^z_j",
    "v = Σ_i e^z_i",
    "Case 1: j = k (derivative of an output with respect to its corresponding input)",
    "∂ŷ_j/∂z_j",
    "The derivative of the numerator, u'",
    "∂e^z_j/∂z_j",
    "e^z_j",
    "The derivative of the denominator, v'",
    "∂/∂z_j (Σ_i e^z_i)",
    "∂e^z_j/∂z_j + Σ_i≠j ∂e^z_i/∂z_j",
    "e^z_j",
    "((e^z_j) · (Σ_i e^z_i) − (e^z_j) · (e^z_j)) / (Σ_i e^z_i)²",
    "e^z_j / (Σ_i e^z_i) · ((Σ_i e^z_i) / (Σ_i e^z_i)) − e^z_j / (Σ_i e^z_i) · (e^z_j / (Σ_i e^z_i))",
    "ŷ_j · 1 − ŷ_j · ŷ_j",
    "ŷ_j (1 − ŷ_j)",
    "Result 1",
    "∂ŷ_j/∂z_j = ŷ_j (1 − ŷ_j)",
    "Case 2: j ≠ k (derivative of an output with respect to a different input)",
    "∂ŷ_j/∂z_k",
    "The derivative of the numerator, u'",
    "∂e^z_j/∂z_k",
    "0",
    "The derivative of the denominator, v'",
    "∂/∂z_k (Σ_i e^z_i)",
    "e^z_k",
    "((0) · (Σ_i e^z_i) − (e^z_j) · (e^z_k)) / (Σ_i e^z_i)²",
    "−e^z_j · e^z_k / (Σ_i e^z_i)²",
    "−(e^z_j / (Σ_i e^z_i)) · (e^z_k / (Σ_i e^z_i))",
    "−ŷ_j · ŷ_k",
    "Result 2",
    "∂ŷ_j/∂z_k = −ŷ_j · ŷ_k",
]
PART_2 = [
    "Part 2: Detailed proof of the Cross-Entropy Loss Derivative",
    "∂L/∂ŷ_k",
    "L = −Σ_j y_j · log(ŷ_j)",
    "∂/∂ŷ_k (−Σ_j y_j · log(ŷ_j))",
    "−Σ_j y_j · ∂/∂ŷ_k (log(ŷ_j))",
    "The inner derivative where j = k",
    "∂/∂ŷ_k (log(ŷ_k))",
    "1/ŷ_k",
    "The inner derivative where j ≠ k",
    "∂/∂ŷ_k (log(ŷ_j))",
    "0",
    "−y_k · (1/ŷ_k)",
    "−y_k/ŷ_k",
    "Result 3",
    "∂L/∂ŷ_k = −y_k/ŷ_k",
]
PART_3 = [
    "Part 3: Combining with the Chain Rule (the Convergence Point)",
    "∂L/∂z_k",
    "Σ_j ∂L/∂ŷ_j · ∂ŷ_j/∂z_k",
    "(∂L/∂ŷ_k · ∂ŷ_k/∂z_k) + Σ_j≠k (∂L/∂ŷ_j · ∂ŷ_j/∂z_k)",
    "The term j = k",
    "(−y_k/ŷ_k) · (ŷ_k (1 − ŷ_k))",
    "−y_k (1 − ŷ_k)",
    "−y_k + y_k ŷ_k",
    "The sum of the terms j ≠ k",
    "Σ_j≠k (−y_j/ŷ_j) · (−ŷ_j ŷ_k)",
    "Σ_j≠k (y_j ŷ_k)",
    "(−y_k + y_k ŷ_k) + Σ_j≠k (y_j ŷ_k)",
    "−y_k + (y_k ŷ_k + Σ_j≠k y_j ŷ_k)",
    "−y_k + ŷ_k (y_k + Σ_j≠k y_j)",
    "The sum of a one-hot vector",
    "Σ_j y_j",
    "1",
    "−y_k + ŷ_k · (1)",
    "ŷ_k − y_k",
    "Prediction − Truth",
    "∂L/∂z_k = ŷ_k − y_k",
]
WHOLE = [*PART_1, *PART_2, *PART_3]


def missing(read: list[str], wanted: list[str]) -> str | None:
    """The first of `wanted` that does not stand in `read` after those before it."""
    rest = iter(read)
    return next((one for one in wanted if one not in rest), None)


def packed(words: str) -> str:
    return "".join(words.split())


def from_json(capsys) -> list[str]:
    code, out, _ = command(["explain", "--json"], capsys)
    assert code == 0
    read: list[str] = []

    def derivation(one):
        read.append(one["title"])
        for line in one["lines"]:
            for lemma in line["lemmas"]:
                derivation(lemma)
            read.append(line["text"])
        if one["result"]:
            read.extend([one["result"], f"{one['lines'][0]['text']} = {one['lines'][-1]['text']}"])

    for part in json.loads(out)["parts"]:
        read.append(part["title"])
        read.extend(formula["text"] for remark in part["remarks"] for formula in remark["formulas"])
        for one in part["derivations"]:
            derivation(one)
    return read


def of_page(written: str) -> list[str]:
    """Headings, results and formulas of the page in the order of the document; a definition is two formulas."""
    article = written[written.index('<section class="part"') : written.index('<details id="beyond"')]
    found = re.findall(r'<h[234] [^>]*>(.*?)</h[234]>|<p class="result"><b>(.*?):</b>|role="math" aria-label="(.*?)"', article)
    return [html.unescape(re.sub(r"<sub>(\w+)</sub>", r"_\1", "".join(one))) for one in found]


def test_json_is_in_the_order_of_the_article(capsys):
    assert missing(from_json(capsys), WHOLE) is None


def test_the_page_is_in_the_order_of_the_article():
    pairs = [side for one in WHOLE for side in (one.split(" = ") if " = " in one and one[0] in "∂ŷfuvL" else [one])]
    assert missing(of_page(page([2, 1, 0.1], 0, ["cat", "dog", "owl"])), pairs) is None


@pytest.mark.parametrize("width", (80, 120))
def test_the_terminal_is_in_the_order_of_the_article(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = command(["explain"], capsys)
    left = width if width < terminal.WIDE else width * 3 // 5
    shown, at = packed("".join(line[:left] for line in out.splitlines())), 0
    for one in WHOLE:
        at = shown.find(packed(one)[: left // 2 if one.startswith(("Part", "Case")) else None], at)
        assert at >= 0, one


def test_the_documentation_is_in_the_order_of_the_article():
    path = Path(__file__).parent.parent / "tools/docs_hooks.py"
    spec = importlib.util.spec_from_file_location("docs_hooks", path)
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    written = "\n".join(hooks.part(n) for n in range(len(ARTICLE)))
    found = re.findall(r"^##+ (.*?)(?: {#.*)?$|<strong[^>]*>(.+?)</strong>", written, re.M)
    titles = [html.unescape("".join(one)).removesuffix(": ") for one in found]
    assert missing(titles, [x for x in WHOLE if re.match(r"(Part|Case|The|Result|Prediction)\b", x)]) is None


def test_an_article_in_another_order_is_seen(capsys):
    read = from_json(capsys)
    assert missing(read, ["Result 2", "Result 1"]) == "Result 1"
    assert missing(read, [*PART_1[:8], "The derivative of a numerator"]) == "The derivative of a numerator"


def test_the_quotient_rule_that_is_shown_is_the_rule_that_is_used():
    """With the article's u and v written for its letters, the formula is the first line of Result 1."""
    over, under, by = exp(z["j"]), Sum("i", exp(z["i"])), z["j"]
    meaning = {"u": over, "v": under, "u'": D(over, by), "v'": D(under, by)}

    def written(e: E) -> E:
        return meaning[e.args[0]] if e.op == "at" else rebuild(e, written)

    assert same(written(QUOTIENT_RULE.body), RESULT_1.lines[1])
