"""What training a model would save, tensor by tensor, and what each target would leave of it: one look, no training."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from common_core.memory import CudaPeakMeter, PeakMeter, PeakReading
from gact.affine import BITS, GROUP_SIZES
from gact.budget import Size, average_bytes
from gact.calibration import undisturbed
from gact.capture import Frame, Plan, Settled
from gact.ledger import affine_bytes
from gact.names import ModuleNames
from gact.nodes import HAS_CREATION_HOOK, watch
from gact.report import Report, Row, build_report, size_text
from gact.rules import Rule, Rules
from gact.target import Target, parse_target

_MOST = max(BITS)  # width of the pass that looks: its codes are never read
_ROWS = 20


@dataclass(frozen=True)
class Census:
    """What one forward pass saves, and what would be left of it.

    Args:
        report: The saved tensors, as they would be kept at 8 bits.
        targets: Bytes of saved activations under each target; an average is met or undercut.
        peak: Peak of a plain forward and backward pass, gradients included; None if it was not measured.
        smallest_bytes: What must stay exact and all the rest at 1 bit: no target can go below it.
    """

    report: Report
    targets: Mapping[str, int]
    peak: PeakReading | None
    smallest_bytes: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """One a saved tensor, in the order in which they were saved."""
        return self.report.rows

    @property
    def plain_bytes(self) -> int:
        """Bytes that plain training keeps for the backward pass, each storage once."""
        return self.report.plain_bytes

    @property
    def outside_bytes(self) -> int:
        """Bytes of saved storages that live without the graph: parameters, buffers, inputs."""
        return self.report.outside_bytes

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        peak = None if self.peak is None else {**asdict(self.peak), "peak_added": self.peak.peak_added}
        return {
            "plain_bytes": self.plain_bytes, "outside_bytes": self.outside_bytes, "targets": dict(self.targets),
            "smallest_bytes": self.smallest_bytes, "peak": peak, "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip

    def summary(self) -> str:
        """Sizes in one or two sentences."""
        line = (
            f"Plain training keeps {size_text(self.plain_bytes)} for the backward pass in {len(self.rows)} saved "
            f"tensors, beside {size_text(self.outside_bytes)} that live without it (parameters, inputs)."
        )
        if self.peak is not None:
            line += f" Its peak is {size_text(self.peak.peak_added)} above what was there before ({self.peak.source})."
        return line

    def text(self, *, most: int = _ROWS) -> str:
        """Return the tables as text.

        Args:
            most: Saved tensors shown, the largest first.
        """
        from common_core.console import as_text

        return as_text(self.tables(most=most))

    def tables(self, *, most: int = _ROWS) -> list[Any]:
        """Return the summary and the tables, for a rich console.

        Args:
            most: Saved tensors shown, the largest first.
        """
        from common_core.console import table

        large = [row for row in self.rows if row.plain_bytes]
        shown = sorted(large, key=lambda row: -row.plain_bytes)[:most]
        parts: list[Any] = [self.summary(), "", table(_HEAD, [_cells(row) for row in shown])]
        if len(shown) < len(large):
            rest = sum(row.plain_bytes for row in large) - sum(row.plain_bytes for row in shown)
            parts.append(f"and {len(large) - len(shown)} smaller ones of {size_text(rest)} together")
        return [*parts, "", table(_TARGET_HEAD, self._target_rows())]

    def html(self) -> str:
        """Return a self-contained page with the tables."""
        large = sorted((row for row in self.rows if row.plain_bytes), key=lambda row: -row.plain_bytes)
        tables = _html_table(_TARGET_HEAD, self._target_rows()) + _html_table(_HEAD, [_cells(row) for row in large])
        return _PAGE.format(summary=escape(self.summary()), tables=tables)

    def _target_rows(self) -> list[tuple[str, str, str]]:
        rows = [("plain", size_text(self.plain_bytes), "1.00x")]
        every = {**self.targets, "smallest possible": self.smallest_bytes}
        return rows + [(name, size_text(n), f"{self.plain_bytes / n:.2f}x" if n else "") for name, n in every.items()]


def estimate(
    model: torch.nn.Module,
    batch: Any = None,
    *,
    closure: Callable[[], Tensor] | None = None,
    targets: Sequence[int | str | Target] = (8, 4, 2, "auto:4", "auto:2"),
    group_size: int = 256,
    min_bytes: int = 16384,
    rules: Iterable[Rule] = (),
    peak: bool = True,
) -> Census:
    """Look at what one forward pass saves for the backward pass, without training.

    Parameters, their ``.grad``, buffers and random states are as before afterwards. The look itself needs less memory
    than plain training; measuring the peak is a plain forward and backward pass.

    Args:
        model: The model.
        batch: What it is called with: a tuple or list as arguments, a mapping as keywords, else one argument.
        closure: Returns the loss; in place of `batch`, and better: the loss function saves tensors too.
        targets: Fixed bits or averages, as for `ActivationCompressor`.
        group_size: Numbers that share one range.
        min_bytes: Tensors of fewer bytes stay exact.
        rules: Exceptions.
        peak: Whether to measure the peak of a plain pass.

    Returns:
        The census.

    Raises:
        TypeError: If `model` is no module.
        ValueError: If not just one of `batch` and `closure` is given, a target is in bytes, or nothing requires a
            gradient.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 1))
        >>> census = estimate(model, torch.randn(512, 64))
        >>> census.plain_bytes  # the GELU's input and the last layer's
        1048576
        >>> round(census.plain_bytes / census.targets["2"], 1)
        14.2
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give the torch.nn.Module that is trained")
    if (batch is None) == (closure is None):
        raise ValueError("give either a batch or a closure that returns the loss, and not both")
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size={group_size}; allowed are {', '.join(map(str, GROUP_SIZES))}")
    wanted = {_name(target): _per_number(target) for target in targets}
    forward = closure if closure is not None else lambda: _scalar(_call(model, batch))
    settled = _look(model, forward, Rules(rules), group_size, min_bytes)
    report = build_report(settled, {})
    stored = {s.item: s for s in reversed(settled) if s.form == "affine"}  # by their first users
    others = report.saved_bytes - sum(s.nbytes for s in stored.values())
    least = _bytes(stored.values(), Target("fixed", 1.0), group_size)
    return Census(
        report,
        {name: others + _bytes(stored.values(), target, group_size) for name, target in wanted.items()},
        _peak(model, forward) if peak else None,
        others + least,
    )


def _look(
    model: torch.nn.Module, forward: Callable[[], Tensor], rules: Rules, group_size: int, min_bytes: int
) -> list[Settled]:
    """One forward pass through the engine; nothing comes back from what it stores."""
    tensors = [*model.parameters(), *model.buffers()]
    exempt = frozenset(t.untyped_storage()._cdata for t in tensors if type(t.data) is Tensor and not t.is_meta)
    plan = Plan(
        rules=rules,
        bits=lambda key, least: _MOST,
        min_bytes=min_bytes,
        group_size=group_size,
        seed=0,
        exempt=exempt,
    )
    frame = Frame(plan, 0, HAS_CREATION_HOOK)
    names = ModuleNames(model, lambda: frame.modules)
    hooks = torch.autograd.graph.saved_tensors_hooks(frame.pack, frame.unpack)
    with undisturbed(model):
        try:
            with torch.enable_grad(), names.following(), hooks, watch(frame.observe):
                loss = forward()
        finally:
            frame.close()
        _check_loss(loss)
    return list(frame.settled)


def _peak(model: torch.nn.Module, forward: Callable[[], Tensor]) -> PeakReading:
    """Peak of a plain pass; the gradients go to nobody."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device if parameters else torch.device("cpu")
    meter = CudaPeakMeter(device) if device.type == "cuda" else PeakMeter(alive=model)
    with undisturbed(model), torch.enable_grad(), meter:
        gradients = torch.autograd.grad(forward(), parameters, allow_unused=True)
        del gradients
    return meter.reading()


def _bytes(stored: Iterable[Settled], target: Target, group_size: int) -> int:
    """Bytes of all codes under a target."""
    sizes = [(_size(s, group_size), s.treatment.least_bits) for s in stored]
    if target.kind == "average":
        return average_bytes((size for size, _ in sizes), target.value, group_size)
    bits = int(target.value)
    return sum(size.nbytes(max(bits, least) if least > 2 else bits, group_size) for size, least in sizes)


def _size(settled: Settled, group_size: int) -> Size:
    """Numbers of a stored tensor in whole groups, from the bytes of its codes."""
    groups = settled.nbytes // affine_bytes(1, _MOST, group_size, settled.dtype)
    return Size(groups * group_size, settled.dtype)


def _name(target: int | str | Target) -> str:
    if isinstance(target, Target):
        return f"auto:{target.value:g}" if target.kind == "average" else f"{target.value:g}"
    return str(target)


def _per_number(target: int | str | Target) -> Target:
    parsed = parse_target(target)
    if parsed.kind not in ("fixed", "average"):
        raise ValueError(f"target {target!r} is in bytes already; give bits, such as 4, or averages, such as 'auto:4'")
    return parsed


def _call(model: torch.nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _scalar(output: Any) -> Tensor:
    """Something with a backward pass through all of an output."""
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    found = [t.float().mean() for t in _tensors(output) if t.requires_grad and t.is_floating_point()]
    return torch.stack(found).sum() if found else torch.zeros(())


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from _tensors(value)


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.grad_fn is None or loss.numel() != 1:
        raise ValueError("the forward pass gives no loss with a graph: does any parameter require a gradient?")


_HEAD = ("module", "operation", "saved", "shape", "dtype", "form", "plain bytes", "kept because")
_TARGET_HEAD = ("target", "saved activations", "smaller")


def _cells(row: Row) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape)) or "scalar"
    form = "quantised" if row.form == "affine" else row.form
    module = row.module or "(no module)"
    return module, row.operation, row.saved, shape, row.dtype, form, f"{row.plain_bytes:,}", row.reason


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Census of saved activations</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2rem; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }}
</style></head><body><h1>Census of saved activations</h1><p>{summary}</p>
{tables}
</body></html>
"""
