"""Render the formulas of a page to MathML while the site is built, so that pages need neither script nor network.

The Markdown extension pymdownx.arithmatex (generic) marks `$...$` and `$$...$$`; this hook replaces what it marked. A
formula that cannot be rendered is reported as a warning, which fails a strict build.
"""

from __future__ import annotations

import html
import logging
import re
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.mathml")

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]\s*</(?P=tag)>', re.DOTALL
)

# What the converter does not know, in terms of what it knows.
REWRITES = [
    (re.compile(r"\\(begin|end)\{(?:aligned|split|align)\}"), r"\\\1{align*}"),
    (re.compile(r"\\(begin|end)\{gathered\}"), r"\\\1{matrix}"),
    (re.compile(r"\\arg\s*\\(max|min)(?![A-Za-z])"), r"\\arg\1 "),
    (re.compile(r"\\operatorname\*?\{arg\s*(?:\\,)?\s*(max|min)\}"), r"\\arg\1 "),
    (re.compile(r"\\arg(?![A-Za-z])"), r"\\operatorname{arg}"),
    (re.compile(r"\\operatorname\*"), r"\\operatorname"),
    (re.compile(r"\\mathbb\{1\}"), "𝟙"),
    (re.compile(r":="), r"\\coloneqq "),
]
# Delimiters that come through as text after \big, \Big and the like.
DELIMITERS = {r"\{": "{", r"\}": "}", r"\lbrace": "{", r"\rbrace": "}", r"\|": "‖", r"\lVert": "‖", r"\rVert": "‖"}
# Relations and delimiters that come as identifiers, which have no space around them; the tilde comes as an accent.
OPERATORS = {"~": "∼"} | {sign: sign for sign in "⟂⪰⪯⧵±∓:;‖⟨⟩⌊⌋⌈⌉"}
# In a formula of its own line these carry their subscript below.
UNDER = {"max", "min", "sup", "inf", "lim", "arg\u2009max", "arg\u2009min"}
CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "mover": 2, "munder": 2, "mroot": 2, "msubsup": 3, "munderover": 3}
# Operators written as words: "log", "tr", "arg max".
WORD = re.compile(r"[A-Za-z]{2,}(?:\u2009[a-z]+)?")
FENCES = set("()[]{}|‖⟨⟩⌊⌋⌈⌉")
CLOSING = {")": "(", "]": "[", "}": "{", "|": "|", "‖": "‖", "⟩": "⟨", "⌋": "⌊", "⌉": "⌈"}
PAIRS = [
    (r"(?<!\\)\{", r"(?<!\\)\}", "braces"),
    (r"\\begin\{", r"\\end\{", r"\begin and \end"),
    (r"\\left(?![A-Za-z])", r"\\right(?![A-Za-z])", r"\left and \right"),
]

ElementTree.register_namespace("", NAMESPACE)


class FormulaError(ValueError):
    """A formula that cannot be rendered."""


def prepare(tex: str) -> str:
    """Return a formula in the commands that the converter knows.

    Raises:
        FormulaError: Braces, environments or delimiters do not pair.
    """
    tex = tex.strip()
    if not tex:
        raise FormulaError("the formula is empty")
    for opening, closing, what in PAIRS:
        if len(re.findall(opening, tex)) != len(re.findall(closing, tex)):
            raise FormulaError(f"{what} do not pair")
    for pattern, replacement in REWRITES:
        tex = pattern.sub(replacement, tex)
    return tex


def finish(root: ElementTree.Element, block: bool) -> None:
    """Mend, in place, what the converter leaves undone.

    Raises:
        FormulaError: An unknown command came through as text, or a command lacks an argument.
    """
    for element in root.iter():
        tag, text = element.tag.rpartition("}")[2], element.text or ""
        element.text = DELIMITERS.get(text, element.text)
        if "\\" in (element.text or "") and tag != "mtext":
            raise FormulaError(f"unknown command {text}")
        if tag in CHILDREN and len(element) != CHILDREN[tag]:
            raise FormulaError(f"a command lacks an argument ({tag} has {len(element)} of {CHILDREN[tag]})")
        if tag == "mi" and text in OPERATORS:
            tag, element.tag, element.text = "mo", f"{{{NAMESPACE}}}mo", OPERATORS[text]
        if block and tag == "msub" and element[0].text in UNDER:
            element.tag = f"{{{NAMESPACE}}}munder"
        if tag == "mo" and (element.text in FENCES or element.text == "/"):
            element.attrib |= {"lspace": "0", "rspace": "0"}
            if text in OPERATORS or element.text in {"|", "‖", "/"}:
                element.attrib.setdefault("stretchy", "false")
    for element in list(root.iter()):
        space_words(element)
        group_fences(element)


def space_words(parent: ElementTree.Element) -> None:
    """Set the operators among an element's children that are words as words, apart from their neighbours."""
    operator = f"{{{NAMESPACE}}}mo"
    children = list(parent)
    for position, child in enumerate(children):
        word = child if len(child) == 0 else child[0]
        if word.tag not in {f"{{{NAMESPACE}}}mi", operator} or not WORD.fullmatch(word.text or ""):
            continue
        word.tag = f"{{{NAMESPACE}}}mi"
        if parent.tag.rpartition("}")[2] in CHILDREN:
            continue
        for neighbour, offset in ((position + 1, 1), (position - 1, 0)):
            if 0 <= neighbour < len(children) and children[neighbour].tag != operator:
                at = list(parent).index(child) + offset
                parent.insert(at, ElementTree.Element(f"{{{NAMESPACE}}}mspace", width="0.167em"))


def group_fences(row: ElementTree.Element) -> None:
    r"""Attach the script of a large closing delimiter (`\Bigr)^2`) to the whole group, as alone it would not grow."""
    for child in list(row):
        if child.tag.rpartition("}")[2] not in {"msup", "msub", "msubsup"} or child[0].get("stretchy") != "true":
            continue
        children = list(row)
        end = children.index(child)
        opening = CLOSING.get(child[0].text or "")
        starts = [at for at in range(end) if children[at].text == opening and children[at].get("stretchy") == "true"]
        if starts:
            group = ElementTree.Element(f"{{{NAMESPACE}}}mrow")
            group.extend([*children[starts[-1] : end], child[0]])
            child[0] = group
            for member in children[starts[-1] : end]:
                row.remove(member)


@lru_cache(maxsize=4096)
def render(tex: str, block: bool) -> str:
    r"""Return a LaTeX formula as a MathML element.

    Args:
        tex: The formula, without delimiters.
        block: Whether it stands on a line of its own.

    Raises:
        FormulaError: The formula is malformed or uses a command that the converter does not know.

    Example:
        >>> render("x^2", False)[:5]
        '<math'
    """
    prepared = prepare(tex)
    try:
        root = ElementTree.fromstring(convert(prepared, display="block" if block else "inline"))
    except ElementTree.ParseError as error:
        raise FormulaError("an & outside an alignment, or text that is not XML") from error
    except Exception as error:  # the converter raises many unrelated types, most without a message
        raise FormulaError(f"{type(error).__name__} {error}".strip()) from error
    finish(root, block)
    return ElementTree.tostring(root, encoding="unicode")


def replace(content: str, page: str) -> str:
    """Return the HTML of a page with its formulas rendered; what cannot be rendered is logged and left."""

    def substitute(match: re.Match[str]) -> str:
        tex, block = html.unescape(match["tex"]), match["open"] == "["
        try:
            element = render(tex, block)
        except FormulaError as error:
            log.warning("%s: cannot render the formula %r: %s", page, tex.strip(), error)
            return match.group()
        return f'<div class="formula">{element}</div>' if block else element

    return FORMULA.sub(substitute, content)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Render the formulas of one page (called by mkdocs)."""
    return replace(content, page.file.src_uri)
