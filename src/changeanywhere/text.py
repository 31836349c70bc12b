"""Text of others (names, classes, credits, licences) made safe for the text that it goes into.

Each function takes any string and gives one that means itself where it stands, and nothing else: no markup, no command,
no formula. Ordinary names come out as they went in.
"""

from __future__ import annotations

import html
import re
import unicodedata

INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Kinds of characters that move the cursor, turn the direction of writing, or show nothing."""
JOINERS = "\u200c\u200d"
"""Two of them that scripts need within words."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A name that is a file's name everywhere, and no path."""
NUMBERS = re.compile(r"[+-]?\d[\d.]*( ± [\d.]+)?( \(.*\))?|-")
MARKDOWN = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that begin something in Markdown; an underscore within a word does not."""
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$",
}  # fmt: skip


def is_plain_name(name: str) -> bool:
    """Whether ``name`` may be part of a file's name."""
    return bool(PLAIN_NAME.fullmatch(name))


def visible(text: str) -> str:
    """Control characters (those that a terminal obeys among them) as the codes they have; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c in JOINERS or _is_visible(c) else _code(c) for c in text)


def in_a_line(text: str) -> str:
    """:func:`visible`, with line breaks as codes, too: a name cannot forge a line of a log."""
    return visible(text).replace("\n", "\\n")


def one_line(text: str) -> str:
    """:func:`visible`, without line breaks."""
    return " ".join(visible(text).split())


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in INVISIBLE


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode()


def markdown(text: str) -> str:
    """For a line, a list's entry or a table's cell of Markdown."""
    return MARKDOWN.sub(r"\\\g<0>", html.escape(one_line(text), quote=False))


def code_span(text: str) -> str:
    """For Markdown, as code: between more backticks than it holds."""
    line = one_line(text).replace("|", "\\|") or " "
    runs = [len(run) for run in re.findall("`+", line)]
    fence = "`" * (max(runs, default=0) + 1)
    space = " " if runs else ""
    return f"{fence}{space}{line}{space}{fence}"


def xml(text: str) -> str:
    """For HTML and SVG, between tags or within quotes."""
    return html.escape(one_line(text))


def latex(text: str) -> str:
    """For LaTeX."""
    return "".join(LATEX.get(character, character) for character in one_line(text))


def csv_cell(value: object) -> object:
    """For CSV that a spreadsheet opens: what it would take for a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    formula = line.startswith(("=", "@", "+", "-", "|")) and not NUMBERS.fullmatch(line)
    return f"'{line}" if formula else line
