"""Every Python block of the pages and READMEs runs; what a console block shows is what comes out.

The blocks of a page are one program, in order. A block is left out when its first line is a comment that begins with
`# not run:` and gives the reason.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("packages/*/README.md"),
        *ROOT.glob("packages/*/docs/**/*.md"),
    }
)
NOT_RUN = re.compile(r"# not run:(?P<reason>.*)")
CONSOLE = re.compile(r"^```pycon[^\n]*\n(?P<source>.*?)^```", re.MULTILINE | re.DOTALL)


def left_out(source: str) -> bool:
    """Return whether a block is not to be run; the reason must be given."""
    match = NOT_RUN.match(source.lstrip())
    if match and len(match["reason"].split()) < 2:
        pytest.fail(f"a block is not run and does not say why: {match.group()!r}")
    return match is not None


def blocks(page: Path) -> list[CodeExample]:
    """Return the Python blocks of a page, in order."""
    return [example for example in find_examples(page) if example.prefix_tags() & {"python", "py"}]


def identifier(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=identifier)
def test_the_blocks_of_a_page_run(
    page: Path, eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in blocks(page):
        if not left_out(example.source):
            names.update(eval_example.run(example, module_globals=names))


@pytest.mark.parametrize("page", [page for page in PAGES if CONSOLE.search(page.read_text("utf-8"))], ids=identifier)
def test_the_console_blocks_of_a_page_show_what_comes_out(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = page.read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for match in CONSOLE.finditer(text):
        if left_out(match["source"]):
            continue
        line = text.count("\n", 0, match.start("source"))
        test = doctest.DocTestParser().get_doctest(match["source"], names, identifier(page), str(page), line)
        shown: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, out=shown.append, clear_globs=False)
        names = test.globs
        assert not runner.failures, "".join(shown)


def test_there_are_pages() -> None:
    assert PAGES, f"no pages under {ROOT.name}"
