"""What was saved, in which form, at how many bytes, and what it does to the gradient: as text and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, SupportsFloat

from gact.capture import INPUT_FORM, Settled
from gact.collector import Sensitivity

_COLUMNS = (
    "module", "operation", "saved", "shape", "dtype", "storage", "form", "bits", "plain bytes", "bytes", "sensitivity",
    "variance share", "expectation",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One saved tensor.

    Args:
        key: Its name.
        module: Path of the module.
        operation: Operation that saved it.
        saved: Name within the operation.
        shape: Shape.
        dtype: Data type of the plain tensor.
        storage: Number of the plain tensor's storage in the pass; the same number is the same memory.
        form: Form that is kept.
        bits: Nominal bits a number.
        plain_bytes: Bytes of the plain storage; 0 where an earlier row has it, or it lives without the graph.
        nbytes: Bytes of the form; 0 where an earlier row has it, or it lives without the graph.
        sensitivity: c, or None if not known.
        sensitivity_source: Where c comes from.
        variance: Predicted variance of the gradient due to it.
        share: Share of the predicted variance of all.
        guarantee: What is known of the gradient's expectation.
        reason: Why it is exact although it could have been otherwise.
    """

    key: str
    module: str
    operation: str
    saved: str
    shape: tuple[int, ...]
    dtype: str
    storage: int
    form: str
    bits: float
    plain_bytes: int
    nbytes: int
    sensitivity: float | None
    sensitivity_source: str
    variance: float | None
    share: float | None
    guarantee: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The saved tensors of one forward pass.

    Args:
        rows: One a saved tensor, in the order in which they were saved.
        outside_bytes: Bytes of saved storages that live without the graph: parameters, buffers, constants.
        predicted_variance: Variance that the stored tensors put into the gradient; None if not known.
        notes: Sentences worth reading.
    """

    rows: tuple[Row, ...]
    outside_bytes: int
    predicted_variance: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def plain_bytes(self) -> int:
        """Bytes that plain training would keep, each storage once, without parameters and constants."""
        return sum(row.plain_bytes for row in self.rows)

    @property
    def saved_bytes(self) -> int:
        """Bytes that are kept, each form once, without parameters and constants."""
        return sum(row.nbytes for row in self.rows)

    @property
    def ratio(self) -> float:
        """How many times smaller."""
        return self.plain_bytes / self.saved_bytes if self.saved_bytes else float("inf" if self.plain_bytes else 1)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self) | {"plain_bytes": self.plain_bytes, "saved_bytes": self.saved_bytes}

    def text(self, *, all_rows: bool = True) -> str:
        """Return the table as text.

        Args:
            all_rows: False leaves out what is outside or small.
        """
        from common_core.console import as_text, table

        shown = [r for r in self.rows if all_rows or r.plain_bytes or r.nbytes]
        return as_text([table(_COLUMNS, [_cells(row) for row in shown]), self.summary(), *self.notes], width=220)

    def summary(self) -> str:
        """One line: bytes before and after."""
        before, after = size_text(self.plain_bytes), size_text(self.saved_bytes)
        line = f"{before} of activations kept in {after}: {self.ratio:.2f}x smaller"
        if self.predicted_variance is not None:
            line += f"; predicted variance of the gradient {self.predicted_variance:.3g}"
        return line

    def html(self) -> str:
        """Return a self-contained page with the table."""
        head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
        body = "\n".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in self.rows
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return _PAGE.format(summary=escape(self.summary()), notes=notes, head=head, body=body)


def build_report(
    settled: Sequence[Settled], sensitivities: Mapping[str, Sensitivity], notes: Sequence[str] = ()
) -> Report:
    """Make the report of one pass.

    Args:
        settled: What the frame settled.
        sensitivities: What is known, by item.
        notes: Sentences to add.
    """
    numbers: dict[int, int] = {}
    plain_seen: set[int] = set()
    kept_seen: set[Any] = set()
    rows, outside = [], 0
    known = {s.item: sensitivities[s.item] for s in settled if s.form == "affine" and s.item in sensitivities}
    widths = {s.item: int(s.bits) for s in settled if s.form == "affine"}
    total = sum(known[item].variance(widths[item]) for item in known)
    elsewhere = {s.storage for s in settled if s.outside}
    for s in settled:
        number = numbers.setdefault(s.storage, len(numbers))
        plain = kept = 0
        if s.storage not in plain_seen:
            plain_seen.add(s.storage)
            if s.storage in elsewhere:
                outside += s.storage_bytes
            else:
                plain = s.storage_bytes
        unit = ("storage", s.storage) if s.form == "exact" else (s.item or s.key, s.form)
        if unit not in kept_seen and not (s.form == "exact" and s.storage in elsewhere):
            kept_seen.add(unit)
            kept = s.nbytes
        found = known.get(s.item) if s.form == "affine" and s.item == s.key else None
        variance = None if found is None else found.variance(int(s.bits))
        rows.append(
            Row(
                s.key,
                s.module,
                s.operation,
                s.saved,
                s.shape,
                str(s.dtype).removeprefix("torch."),
                number,
                s.form,
                s.bits,
                plain,
                kept,
                None if found is None else found.c,
                "" if found is None else found.source,
                variance,
                variance / total if variance is not None and total > 0 else None,
                s.treatment.guarantee if s.form in ("affine", INPUT_FORM) else "exact",
                s.reason,
            )
        )
    complete = bool(known) and len(known) == len(widths)
    return Report(tuple(rows), outside, total if complete else None, tuple(notes))


def size_text(nbytes: SupportsFloat) -> str:
    """A size in words: ``1.50 MiB``."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _cells(row: Row) -> tuple[str, ...]:
    form = row.form if not row.reason else f"{row.form} ({row.reason})"
    return (
        row.module, row.operation, row.saved, "x".join(map(str, row.shape)) or "scalar", row.dtype, str(row.storage),
        form, f"{row.bits:g}", f"{row.plain_bytes:,}", f"{row.nbytes:,}",
        "" if row.sensitivity is None else f"{row.sensitivity:.3g} ({row.sensitivity_source})",
        "" if row.share is None else f"{row.share:.1%}", row.guarantee,
    )  # fmt: skip


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Saved activations</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }}
th {{ position: sticky; top: 0; background: Canvas; }}
td:nth-child(8), td:nth-child(9), td:nth-child(10), td:nth-child(12) {{ text-align: right; }}
</style></head><body><h1>Saved activations</h1><p>{summary}</p>{notes}
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div></body></html>
"""
