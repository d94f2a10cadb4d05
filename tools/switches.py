"""Many changes in one source of C++, each of which a number switches on, so that the compiler runs once for all of them."""

from __future__ import annotations

import ctypes
import re

from mutations import Mutation

MOST = 4096  # changes
Seen = ctypes.c_ubyte * MOST
EXPORT = 'extern "C" __attribute__((visibility("default")))'
HEAD = (
    "#include <cstdlib>\n#line 1\n"
    f'{EXPORT} int softxent_change = std::getenv("SOFTXENT_CHANGE") ? std::atoi(std::getenv("SOFTXENT_CHANGE")) : -1; '
    f"{EXPORT} unsigned char softxent_seen[{MOST}] = {{}}; "
    "static inline bool softxent_is(int n) { softxent_seen[n] = 1; return n == softxent_change; } "
)
LEFT = re.compile(r"(?:[,;{]|\breturn\b|(?<![=!<>+\-*/|&]) [-+*/|&]?= |\? | : )\s*")  # begin an expression
RIGHT = re.compile(r"[,;}]| \? | : ")  # end one


def switched(text: str, changes: list[Mutation]) -> tuple[str, list[int]]:
    """Return the source with switches, and which changes it has: those within an expression or a statement of one line."""
    edits, found = [], []
    for k, m in enumerate(changes):
        start = text.rfind("\n", 0, m.begin) + 1
        line = text[start : text.find("\n", start)]
        begin, end = m.begin - start, m.end - start
        if m.kind == "dropped statement":
            new = f"{{ if (!softxent_is({k})) {{ {line[begin:end]} }} }}"
        else:
            begin, end = expression(line, begin, end)
            old = line[begin:end]
            changed = line[begin : m.begin - start] + m.new + line[m.end - start : end]
            new = f"(softxent_is({k}) ? ({changed}) : ({old}))"
        edits.append((start + begin, start + end, new))
        found.append(k)
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    return HEAD + text, found


def expression(line: str, begin: int, end: int) -> tuple[int, int]:
    """Return where the expression of a line that contains this part begins and ends."""
    depth, left = 0, 0
    for k in range(begin - 1, -1, -1):
        if line[k] in ")]":
            depth += 1
        elif line[k] in "([":
            if depth == 0:
                left = k + 1
                break
            depth -= 1
        elif depth == 0 and (m := LEFT.match(line, k)) and m.end() <= begin and not _in_template(line, k):
            left = m.end()
            break
    else:
        left = len(line) - len(line.lstrip())
    depth = 0
    for k in range(end, len(line)):
        if line[k] in "([":
            depth += 1
        elif line[k] in ")]":
            if depth == 0:
                return left, k
            depth -= 1
        elif depth == 0 and RIGHT.match(line, k) and not _in_template(line, k):
            return left, k
    return left, len(line)


def _in_template(line: str, k: int) -> bool:
    """Whether a comma separates the arguments of a template."""
    if line[k] != ",":
        return False
    opened = [m.start() for m in re.finditer(r"(?<=\w)<(?! )", line[:k])]
    closed = [m.start() for m in re.finditer(r">", line[:k]) if line[m.start() - 1] not in " -"]
    return len(opened) > len(closed)
