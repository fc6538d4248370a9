"""What the command line shows: searches as they run, memory as characters, rows of numbers."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

from common_core.console import progress
from poet.device import Device
from poet.search import OnProgress, Progress
from poet.units import show_bytes

_BLOCKS = " ▁▂▃▄▅▆▇█"
_EVERY = 5.0  # seconds between lines where there is no terminal


def progress_line(now: Progress) -> str:
    """Where a search stands, in one line.

    Example:
        >>> progress_line(Progress(1.24, 1.05, 1.01, 1.0, "grid of depth 2"))
        '1.2 s: 5.000 % above the plain step, proved 1.000 %, grid of depth 2'
    """
    above = [f"{100 * (value / now.baseline - 1):.3f} %" for value in (now.objective, now.lower_bound) if now.baseline]
    if not above:
        return f"{now.seconds:.1f} s: {now.doing}"
    first = f"{above[0]} above the plain step" if isfinite(now.objective) else "no schedule yet"
    return f"{now.seconds:.1f} s: {first}, proved {above[1]}, {now.doing}"


@contextmanager
def watched(what: str) -> Iterator[OnProgress]:
    """Show a search while it runs: live on a terminal, else a line now and then."""
    console = progress()
    if console.is_terminal:
        with console.status(what) as status:
            yield lambda now: status.update(f"{what}: {progress_line(now)}")
        return
    last = [time.monotonic()]

    def tell(now: Progress) -> None:
        if time.monotonic() - last[0] >= _EVERY:
            last[0] = time.monotonic()
            console.print(f"{what}: {progress_line(now)}")

    yield tell


def memory_text(memory: Sequence[int], limit: int, *, top: int | None = None, columns: int = 72, rows: int = 8) -> str:
    """Bytes over events as a chart of characters, with the limit as a line.

    Args:
        memory: Bytes at each event.
        limit: Bytes.
        top: Bytes at the upper edge; the larger of limit and peak unless given.
        columns: Most columns.
        rows: Lines.

    Raises:
        ValueError: If there is nothing to draw.

    Example:
        >>> print(memory_text([1, 2, 4, 2], 3, rows=2))
          █   4 B
        ▄███
    """
    if not len(memory) or rows < 1:
        raise ValueError("give memory at one event at least, and one row")
    top = top or max(limit, *memory)
    step = max(1, -(-len(memory) // columns))
    heights = [max(memory[k : k + step]) / top * rows for k in range(0, len(memory), step)]
    line = min(int(limit / top * rows), rows - 1) if limit < top else -1
    shown = []
    for row in reversed(range(rows)):
        cells = [_BLOCKS[round(8 * min(max(height - row, 0.0), 1.0))] for height in heights]
        if row == line and rows > 2:
            cells = ["─" if cell == " " else cell for cell in cells]
        label = show_bytes(top) if row == rows - 1 else ""
        label = f"limit {show_bytes(limit)}" if row == line and rows > 2 else label
        shown.append(f"{''.join(cells)}  {label}".rstrip())
    return "\n".join(shown)


def device_row(device: Device) -> tuple[str, ...]:
    """A device as a row: name, title, RAM, speed, energy, tiers, what is missing."""
    tiers = [
        f"{tier.name}: read {tier.read_throughput / 1e6:.3g}, write {tier.write_throughput / 1e6:.3g} MB/s"
        for tier in device.tiers
    ]
    return (
        device.name,
        device.title,
        "–" if device.ram is None else show_bytes(device.ram),
        "–" if device.flops_per_second is None else f"{device.flops_per_second / 1e6:.4g}",
        "–" if device.flops_per_joule is None else f"{1e9 / device.flops_per_joule:.3g}",
        "; ".join(tiers) or "–",
        ", ".join(device.missing) or "nothing",
    )


DEVICE_HEAD = ("device", "", "RAM", "MFLOP/s", "nJ/FLOP", "tiers", "missing")
