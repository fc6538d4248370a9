from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from xml.etree import ElementTree

import pytest

HOOK = Path(__file__).resolve().parents[2] / "docs" / "hooks" / "mathml.py"
SPACE = "{http://www.w3.org/1998/Math/MathML}"


@pytest.fixture(scope="module")
def mathml():
    spec = importlib.util.spec_from_file_location("mathml", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(mathml, tex: str, block: bool = True) -> ElementTree.Element:
    return ElementTree.fromstring(mathml.render(tex, block))


def tags(root: ElementTree.Element) -> list[str]:
    return [element.tag.removeprefix(SPACE) for element in root.iter()]


@pytest.mark.parametrize("environment", ["aligned", "align*", "split"])
def test_alignments_have_two_cells_a_row(mathml, environment: str) -> None:
    root = parsed(mathml, rf"\begin{{{environment}}} a &= b \\ c &= d + e \end{{{environment}}}")
    rows = list(root.iter(f"{SPACE}mtr"))
    assert [len(row) for row in rows] == [2, 2]
    assert [cell.get("columnalign") for cell in rows[0]] == ["right", "left"]


def test_cases_inside_an_alignment(mathml) -> None:
    tex = r"\begin{aligned} f(x) &= \begin{cases} 1 & x \ge 0 \\ 0 & \text{otherwise} \end{cases} \end{aligned}"
    assert tags(parsed(mathml, tex)).count("mtable") == 2


@pytest.mark.parametrize("tex", [r"\arg\max_x f", r"\argmax_x f", r"\operatorname*{arg\,max}_x f", r"\max_x f"])
def test_limits_stand_below_in_a_block_only(mathml, tex: str) -> None:
    assert "munder" in tags(parsed(mathml, tex, block=True))
    assert "munder" not in tags(parsed(mathml, tex, block=False))


def test_words_are_set_apart_from_their_operand(mathml) -> None:
    (row,) = parsed(mathml, r"d \log x")
    assert [element.tag.removeprefix(SPACE) for element in row] == ["mi", "mspace", "mi", "mspace", "mi"]
    assert [element.text for element in row if element.text] == ["d", "log", "x"]


def test_the_script_of_a_large_delimiter_belongs_to_the_group(mathml) -> None:
    (row,) = parsed(mathml, r"y \Bigl( a + b \Bigr)^{-1}")
    power = row[-1]
    assert power.tag == f"{SPACE}msup"
    assert power[0].tag == f"{SPACE}mrow"
    assert [power[0][0].text, power[0][-1].text] == ["(", ")"]


@pytest.mark.parametrize(
    ("tex", "sign"), [(r"\sim", "∼"), (r"\succeq", "⪰"), (r"\pm", "±"), (r"\le", "≤"), (":=", "≔")]
)
def test_relations_have_space_around_them(mathml, tex: str, sign: str) -> None:
    (row,) = parsed(mathml, f"x {tex} p")
    assert [(element.tag.removeprefix(SPACE), element.text) for element in row] == [
        ("mi", "x"),
        ("mo", sign),
        ("mi", "p"),
    ]


def test_an_accent_is_no_relation(mathml) -> None:
    assert mathml.OPERATORS["~"] not in mathml.render(r"\tilde{O}", True)


def test_escaped_characters_stay_escaped(mathml) -> None:
    html = '<p><span class="arithmatex">\\(a &lt; b \\&amp; c\\)</span></p>'
    replaced = mathml.replace(html, "page.md")
    assert "&lt;" in replaced
    assert "arithmatex" not in replaced
    ElementTree.fromstring(replaced)


@pytest.mark.parametrize(
    ("tex", "reason"),
    [
        (r"\foo", "unknown command"),
        (r"\frac{a}", "lacks an argument"),
        (r"{a", "braces do not pair"),
        (r"\begin{cases} a", "do not pair"),
        (r"\left( a", "do not pair"),
        ("a & b", "& outside an alignment"),
        (" ", "empty"),
    ],
)
def test_a_formula_that_cannot_be_rendered_fails_a_strict_build(mathml, caplog, tex: str, reason: str) -> None:
    with pytest.raises(mathml.FormulaError, match=reason):
        mathml.render(tex, True)
    html = f'<div class="arithmatex">\\[{tex.replace("&", "&amp;")}\\]</div>'
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        assert mathml.replace(html, "page.md") == html
    # A warning of a logger under `mkdocs` is what a strict build counts.
    assert [record.name for record in caplog.records] == ["mkdocs.hooks.mathml"]
    assert "page.md: cannot render the formula" in caplog.text
