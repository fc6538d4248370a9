"""A progress bar on standard error, or nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["bar"]


@contextmanager
def bar(shown: bool, what: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A bar while the block runs.

    Args:
        shown: Whether to show one.
        what: What is done.
        total: How much there is to do.
        done: How much is done already.

    Yields:
        A function to call with how much is done now, and a note.
    """
    if not shown:
        yield lambda now, note: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from common_core.console import progress as standard_error

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=standard_error(), transient=True) as shown_bar:
        task = shown_bar.add_task(what, total=total, completed=done)
        yield lambda now, note: shown_bar.update(task, completed=now, description=f"{what}: {note}" if note else what)
