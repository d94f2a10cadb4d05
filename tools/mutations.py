"""Changes of one place of a source file: of Python by its syntax tree, of C++ by its tokens. tools/mutate.py tests each of them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

Edit = tuple[int, int, str, str]  # begin and end in the text, what is put there, and the kind of change


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

    @property
    def key(self) -> str:
        return f"{self.file}: {self.line}: {self.old} -> {self.new}" + f" ({self.count})" * (self.count > 0)

    def applied(self, text: str) -> str:
        return text[: self.begin] + self.new + text[self.end :]


def mutations(file: str, text: str) -> list[Mutation]:
    """Return all changes of a file, in the order of its lines."""
    found, seen = [], Counter[tuple[str, str, str]]()
    lines = text.split("\n")
    for begin, end, new, kind in sorted(set(_of_python(text) if file.endswith(".py") else _of_cpp(text))):
        number = text.count("\n", 0, begin) + 1
        line, old = lines[number - 1].strip(), text[begin:end]
        same = line, old, new
        found.append(Mutation(file, number, line, kind, old, new, seen[same], begin, end))
        seen[same] += 1
    return [m for m in found if m.old != m.new]


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
            if plain and ast.unparse(func).rpartition(".")[2] not in SYMMETRIC:
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

    def edit(node: ast.AST, new: str, kind: str) -> Edit:
        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset), new, kind

    def walk(node: ast.AST) -> Iterator[Edit]:
        if _skipped(node):
            return
        for other, kind in _expressions(node):
            yield edit(node, f"({ast.unparse(other)})", kind)
        if isinstance(node, ast.If | ast.While):
            yield edit(node.test, f"(not ({ast.unparse(node.test)}))", "negated condition")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield edit(node, "pass", "dropped statement")
        if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple)):
            yield edit(node, "pass", "dropped statement")
        for name, field in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in field if isinstance(field, list) else [field]:
                documented = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                if isinstance(child, ast.AST) and not documented:
                    yield from walk(child)

    yield from walk(ast.parse(text))


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
NO_CODE = re.compile(r"^\s*(//|#|template|typedef|static_assert|struct|enum|constexpr|ALWAYS [^{;]*\($)|prefetch|OPS_OF|SHAPE|madvise")


def _of_cpp(text: str) -> Iterator[Edit]:
    place = 0
    for line in text.split("\n"):
        code = line.split("//")[0]
        if not NO_CODE.search(code):
            body = code.rstrip()
            if found := STATEMENT.match(body):
                yield place + found.start(1), place + found.end(1), ";", "dropped statement"
            for pattern, new, kind in TOKENS:
                for match in re.finditer(pattern, body):
                    yield place + match.start(), place + match.end(), new, kind
            for match in NUMBER.finditer(body):
                yield place + match.start(), place + match.end(), str(int(match[0]) + 1) if match[0] != "1" else "0", "another constant"
        place += len(line) + 1
