"""Ctrl-C that waits until the work at hand is consistent."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["held_interrupt"]


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C: the block asks whether one came, and KeyboardInterrupt is raised at its end.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python delivers no signals, nothing changes.

    Yields:
        A function that tells whether Ctrl-C was pressed.

    Raises:
        KeyboardInterrupt: At the end of the block, if it was.
    """
    came = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def hold(number: int, frame: object) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
