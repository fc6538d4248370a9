"""Terminal output: a live board of tasks, tables, and their plain form where there is no terminal.

Progress goes to standard error and answers to standard output, so that a pipe receives only the answer.
"""

import time
from collections.abc import Callable, Sequence
from io import StringIO
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from common_core.engine import Event, TaskResult

STYLES = {"holds": "green", "falls short": "yellow", "could not run": "red"}


def answers() -> Console:
    """Where answers go: standard output; without a terminal it is wide enough never to cut a line of a table."""
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def progress() -> Console:
    """Where progress and errors go: standard error."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, width=200)


def table(columns: Sequence[str], rows: Sequence[Sequence[RenderableType]], title: str | None = None) -> Table:
    """A table in the house style; cells are taken literally, not as markup.

    Args:
        columns: Headings.
        rows: Cells, as many a row as there are headings.
        title: A line above.

    Returns:
        A rich table.
    """
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(columns):
        made.add_column(name, no_wrap=k == 0, overflow="fold")  # the first names the row: it can be copied whole
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def as_text(parts: Sequence[RenderableType], width: int = 200) -> str:
    """Tables and sentences as plain text.

    Args:
        parts: What a console could print; text is taken literally.
        width: Columns at most.

    Returns:
        Lines, each ended.

    Example:
        >>> print(as_text([table(["name", "bytes"], [["x", "16"]]), "one [row]"]), end="")
        name  bytes
        x     16
        one [row]
    """
    out = StringIO()
    console = Console(file=out, width=width, highlight=False, color_system=None)
    for part in parts:
        console.print(Text(part) if isinstance(part, str) else part)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def duration(seconds: float | None) -> str:
    """Seconds as a short text, such as ``0.4 s``, ``12 s`` or ``3 min 20 s``."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class Board:
    """A live table of tasks: waiting, running with progress, ended with a verdict; lines of text without a terminal.

    Args:
        keys: The tasks, in the order shown.
        verdict: From a result to the word shown for it and its style.
        console: Where to draw; standard error by default.
    """

    def __init__(
        self,
        keys: Sequence[str],
        verdict: Callable[[TaskResult], tuple[str, str]],
        console: Console | None = None,
    ) -> None:
        self._console = console or progress()
        self._verdict = verdict
        self._results: dict[str, TaskResult | None] = dict.fromkeys(keys)
        self._started: dict[str, float] = {}
        self._progress: dict[str, tuple[float, str]] = {}
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note of an event of the engine."""
        if event.kind == "started":
            self._started[event.key] = time.monotonic()
            self._plain(f"{event.key}: started")
        elif event.kind == "progress":
            self._progress[event.key] = (event.fraction or 0.0, event.note)
        elif event.result is not None:
            self._results[event.key] = event.result
            word, _ = self._verdict(event.result)
            again = " (kept from before)" if event.result.resumed else f" after {duration(event.result.wall_s)}"
            self._plain(f"{event.key}: {word}{again}")

    def _plain(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(Text(line))

    def _row(self, key: str) -> tuple[RenderableType, ...]:
        result = self._results[key]
        if result is not None:
            word, style = self._verdict(result)
            return Text(key), Text(word, style), "", Text(duration(result.wall_s), "dim")
        if key not in self._started:
            return Text(key, "dim"), Text("waiting", "dim"), "", ""
        share, note = self._progress.get(key, (None, ""))
        bar = self._spinner if share is None else ProgressBar(total=1.0, completed=share, width=20)
        return Text(key), Text(note or "running", "cyan"), bar, duration(time.monotonic() - self._started[key])

    def _draw(self) -> Table:
        """The table, no taller than the terminal: ended tasks give way to those that run."""
        keys = list(self._results)
        room = max(self._console.height - 4, 3)
        if len(keys) > room:
            running = [key for key in keys if key in self._started and self._results[key] is None]
            waiting = [key for key in keys if key not in self._started and self._results[key] is None]
            ended = [key for key in keys if self._results[key] is not None]
            shown = {*running, *(ended[::-1] + waiting)[: max(room - len(running), 0)]}
            keys = [key for key in keys if key in shown]
        done = sum(result is not None for result in self._results.values())
        return table(
            ["claim", "state", "", "time"], [self._row(key) for key in keys], f"{done} of {len(self._results)} done"
        )
