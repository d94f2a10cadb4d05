"""Changes of one place of a source file: of Python by its syntax tree, of C++ by its tokens. tools/mutate.py tests each of them."""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

Edit = tuple[int, int, str, str, int, int, str]  # begin, end, new, kind, first, last and where of a Mutation


class Mutation(NamedTuple):
    """One change. `line`, `old` and `new` identify it for as long as the line stays as it is; `count` tells equal ones apart."""

    file: str
    number: int  # of the line, from 1
    line: str  # its text
    kind: str
    old: str
    new: str
    count: int  # how many changes before it have the same line, old and new
    begin: int
    end: int
    first: int  # the lines of its statement; of C++, of everything
    last: int
    where: str  # "code" of a function, the "default" of an argument, or "module": what runs at import

    @property
    def key(self) -> str:
        return f"{self.file}: {self.line}: {self.old} -> {self.new}" + f" ({self.count})" * (self.count > 0)

    def applied(self, text: str) -> str:
        """Return the text with the change, and each line after it where it was."""
        lost = text.count("\n", self.begin, self.end)
        new = self.new[:-1] + "\n" * lost + self.new[-1:] if self.new.endswith(")") else self.new + "\n" * lost
        return text[: self.begin] + new + text[self.end :]


def mutations(file: str, text: str) -> list[Mutation]:
    """Return all changes of a file, in the order of its lines."""
    found, seen = [], Counter[tuple[str, str, str]]()
    lines = text.split("\n")
    for begin, end, new, kind, first, last, where in sorted(set(_of_python(text) if file.endswith(".py") else _of_cpp(text))):
        number = text.count("\n", 0, begin) + 1
        line, old = lines[number - 1].strip(), text[begin:end]
        same = line, old, new
        found.append(Mutation(file, number, line, kind, old, new, seen[same], begin, end, first, last, where))
        seen[same] += 1
    return [m for m in found if m.old != m.new]


LATE = ["negated condition", "another constant"]  # tests notice them more easily than the other kinds


def chosen(every: list[Mutation], per_line: int) -> list[Mutation]:
    """Return one change of each place, of so many places of each line at most. The choice depends on the line alone."""

    def rank(m: Mutation) -> tuple[int, float]:
        easy = LATE.index(m.kind) + 1 if m.kind in LATE else 0
        return easy, random.Random(m.key).random()

    places: dict[tuple[int, int], Mutation] = {}
    for m in sorted(every, key=rank):
        places.setdefault((m.begin, m.end), m)
    lines = Counter[int]()
    found = []
    for m in sorted(places.values(), key=rank):
        lines[m.number] += 1
        if lines[m.number] <= per_line:
            found.append(m)
    return sorted(found, key=lambda m: m.begin)


# ---- Python ----

COMPARED = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt], ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}  # fmt: skip
SYMMETRIC = {"min", "max", "minimum", "maximum", "logaddexp"}
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult}


def _expressions(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Yield the expressions that an expression is replaced by, and the kind of each change."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=right):
            for other in COMPARED[type(op)]:
                yield ast.Compare(left, [other()], right), "another comparison"
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) in OTHER and not isinstance(left, ast.Constant | ast.JoinedStr):
                yield ast.BinOp(left, OTHER[type(op)](), right), "another operation"
            if not isinstance(op, ast.BitOr):  # of types
                yield left, "dropped term"
            if isinstance(op, ast.Add | ast.Mult):
                yield right, "dropped term"
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand) if not isinstance(operand, ast.Constant):
            yield operand, "dropped sign" if isinstance(node.op, ast.USub) else "negated condition"
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values), "and, or"
            for k in range(len(values)):
                rest = values[:k] + values[k + 1 :]
                yield (rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)), "dropped condition"
        case ast.IfExp(body=body, orelse=orelse):
            yield body, "one branch"
            yield orelse, "one branch"
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value), "another constant"
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1 if value != 1 else 0), "another constant"
        case ast.Call(func=func, args=args, keywords=keywords):
            plain = len(args) > 1 and not any(isinstance(a, ast.Starred) for a in args[:2]) and ast.dump(args[0]) != ast.dump(args[1])
            names = all(isinstance(a, ast.Constant) and isinstance(a.value, str) for a in args[:2])  # of a function and its argument
            if plain and not names and ast.unparse(func).rpartition(".")[2] not in SYMMETRIC:
                yield ast.Call(func, [args[1], args[0], *args[2:]], keywords), "swapped arguments"
            for k in range(len(keywords)):
                if keywords[k].arg != "strict":  # an assertion
                    yield ast.Call(func, args, keywords[:k] + keywords[k + 1 :]), "dropped argument"


def _skipped(node: ast.AST) -> bool:
    """Whether nothing in this part of the tree is changed: it is a type, a message, or is run by a type checker alone."""
    match node:
        case ast.keyword(arg="strict" | "stacklevel") | ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.Call(func=ast.Attribute(attr="fail" | "renamed" | "warn")) | ast.Call(func=ast.Name(id="cast" | "TypeVar")):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]) if name in ("Array", "Optional", "Five", "Function"):
            return True
    return False


def _of_python(text: str) -> Iterator[Edit]:
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    raw = text.split("\n")

    def place(line: int, column: int) -> int:  # columns of the tree are bytes
        return starts[line - 1] + len(raw[line - 1].encode()[:column].decode())

    def walk(node: ast.AST, first: int, last: int, where: str) -> Iterator[Edit]:
        def edit(node: ast.AST, new: str, kind: str) -> Edit:
            return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset), new, kind, first, last, where

        if _skipped(node):
            return
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            first, last = node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
        for other, kind in _expressions(node):
            yield edit(node, f"({ast.unparse(other)})", kind)
        if isinstance(node, ast.If | ast.While):
            yield edit(node.test, f"(not ({ast.unparse(node.test)}))", "negated condition")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield edit(node, "pass", "dropped statement")
        if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple)):
            yield edit(node, "pass", "dropped statement")
        function = isinstance(node, ast.FunctionDef | ast.Lambda)
        for name, field in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            inside = where
            if where == "module" and function:
                plain = isinstance(node, ast.FunctionDef) and not node.decorator_list and not node.col_offset
                inside = "code" if name == "body" else "default" if plain else "module"
            for child in field if isinstance(field, list) else [field]:
                documented = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                if isinstance(child, ast.AST) and not documented:
                    yield from walk(child, first, node.end_lineno if function and inside == "default" else last, inside)

    yield from walk(ast.parse(text), 0, 0, "module")


# ---- C++ ----

TOKENS = [  # pattern, what it is replaced by, kind
    (r" \+ ", " - ", "another operation"), (r"(?<=[\w\])]) - ", " + ", "another operation"), (r" \* (?=[\w(])", " / ", "another operation"),
    (r" / ", " * ", "another operation"), (r" (\+=|-=|\*=) ", " = ", "another operation"),
    (r" < ", " <= ", "another comparison"), (r" < ", " >= ", "another comparison"), (r" <= ", " < ", "another comparison"),
    (r" > ", " >= ", "another comparison"), (r" > ", " <= ", "another comparison"), (r" >= ", " > ", "another comparison"),
    (r" == ", " != ", "another comparison"), (r" != ", " == ", "another comparison"),
    (r" && ", " || ", "and, or"), (r" \|\| ", " && ", "and, or"), (r"(?<=[(&| ])!(?=[\w(])", "", "negated condition"),
    (r"(?<=[(,=?:] )-(?=[a-z(A-Z])|(?<=\()-(?=[a-zA-Z])", "", "dropped sign"), (r"\btrue\b", "false", "another constant"),
    (r"\bfalse\b", "true", "another constant"), (r" \+ [\w.\[\]]+(?=[;,)])", "", "dropped term"),
    (r" \* [\w.\[\]]+(?=[;,)])", "", "dropped term"),
]  # fmt: skip
NUMBER = re.compile(r"(?<![\w.<\[])\d+(?![\w.])")
STATEMENT = re.compile(r"^ +((?:[\w.>-]+(?:\[[^;={]*\])*) [-+*|]?= [^{]*;|(?!return|typedef|using)[\w:]+(?:<[\w, <>:]*>)?\([^{]*\);)$")
# what is compiled to nothing or to hints, is a template's argument, or is not run by the tests of changes (16-bit types)
NO_CODE = re.compile(r"^\s*(//|#|template|typedef|static_assert|struct|enum|constexpr|ALWAYS [^{;]*\($)|prefetch|OPS_OF|madvise")


def _of_cpp(text: str) -> Iterator[Edit]:
    place = 0
    for line in text.split("\n"):
        code = line.split("//")[0]
        if not NO_CODE.search(code):
            body = code.rstrip()
            found = [(m.start(1), m.end(1), ";", "dropped statement") for m in [STATEMENT.match(body)] if m]
            found += [(m.start(), m.end(), new, kind) for pattern, new, kind in TOKENS for m in re.finditer(pattern, body)]
            larger = [(m, str(int(m[0]) + 1) if m[0] != "1" else "0") for m in NUMBER.finditer(body)]
            found += [(m.start(), m.end(), new, "another constant") for m, new in larger]
            for begin, end, new, kind in found:
                yield place + begin, place + end, new, kind, 0, len(text), "code"
        place += len(line) + 1
