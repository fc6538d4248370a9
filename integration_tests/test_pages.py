"""Every Python block of the pages and READMEs runs, and shows what comes out.

What is shown stands in a console session (`pycon`) or, in a program, in comments that begin with `#>`. The blocks of a
page are one program, in order. A block is left out when its first line is a comment that begins with `# not run:` and
gives the reason.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("*.md", "docs/**/*.md", "packages/*/README.md", "packages/*/docs/**/*.md")
PAGES = sorted({page for pattern in PATTERNS for page in ROOT.glob(pattern)})
FENCE = re.compile(
    r"^(?P<indent> *)```[{.]*(?P<kind>python|py|pycon)\b[^\n]*\n(?P<source>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = re.compile(r"# not run:(?P<reason>.*)")


@dataclass(frozen=True)
class Block:
    """A block of code: its page as a title, the number of lines before it, its text."""

    page: str
    line: int
    source: str
    console: bool

    @property
    def left_out(self) -> bool:
        """Whether it is not to be run; the reason must be given."""
        match = NOT_RUN.match(self.source.lstrip())
        if match and len(match["reason"].split()) < 2:
            pytest.fail(f"{self.page}:{self.line}: a block is not run and does not say why")
        return match is not None

    def run(self, names: dict[str, Any]) -> None:
        """Run it with and into `names`; a session must show what comes out."""
        if not self.console:
            # The empty lines in front make tracebacks name the lines of the page.
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("\n" * self.line + self.source, self.page, "exec"), names)
            shown_lines = re.findall(r"^#>[^\S\n]?(.*)$", self.source, re.MULTILINE)
            if shown_lines:
                assert printed.getvalue().splitlines() == shown_lines, f"{self.page}:{self.line}: prints something else"
            return
        shown: list[str] = []
        session = doctest.DocTestParser().get_doctest(self.source, {}, self.page, self.page, self.line)
        session.globs = names
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        runner.run(session, out=shown.append, clear_globs=False)
        assert not runner.failures, "".join(shown)


def blocks(text: str, page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    return [
        Block(
            page,
            text.count("\n", 0, match.start("source")),
            textwrap.dedent(match["source"]),
            match["kind"] == "pycon",
        )
        for match in FENCE.finditer(text)
    ]


def read(page: Path) -> list[Block]:
    return blocks(page.read_text("utf-8"), page.relative_to(ROOT).as_posix())


def run_all(found: list[Block]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        if not block.left_out:
            block.run(names)


@pytest.mark.parametrize("page", [page for page in PAGES if read(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run_all(read(page))


def test_blocks_share_their_names_in_order() -> None:
    session = "- a\n\n  ```pycon\n  >>> x\n  3\n  >>> y = x + 1\n  ```\n\n"
    text = f"```python\nx = 3\n```\n{session}```python\nassert y == {{}}\n```\n"
    run_all(blocks(text.format(4), "page.md"))
    with pytest.raises(AssertionError) as failed:
        run_all(blocks(text.format(5), "page.md"))
    assert failed.traceback[-1].lineno + 1 == 13
    with pytest.raises(AssertionError, match="Expected:"):
        run_all(blocks(text.replace("= 3", "= 2"), "page.md"))


def test_what_a_program_shows_is_what_it_prints() -> None:
    text = "```python\nfor number in range(2):\n    print(number)\n#> 0\n#> {}\n```\n"
    run_all(blocks(text.format(1), "page.md"))
    with pytest.raises(AssertionError, match=r"page\.md:1: prints something else"):
        run_all(blocks(text.format(2), "page.md"))


def test_a_block_that_is_not_run_says_why() -> None:
    (good,) = blocks("```python\n# not run: needs a device\nraise ValueError\n```\n", "page.md")
    assert good.left_out
    (bad,) = blocks("```python\n# not run: later\n```\n", "page.md")
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:1: a block is not run and does not say why"):
        run_all([bad])
