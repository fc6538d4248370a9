"""Reports of several ensembles on the same samples, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, SupportsIndex, final

import numpy as np
import torch
from rich.table import Table

from common_core.console import as_text, table
from common_core.stats import Estimate, bootstrap_mean
from dncc.report import EnsembleReport

__all__ = ["Comparison", "compare"]


@final
@dataclass(frozen=True, eq=False)
class Comparison:
    """Reports of the same test samples, and by how much they differ from the first one.

    Attributes:
        reports: The reports by name; the first is what the others are compared with.
        nll_difference: NLL minus that of the first, in nats; the samples are paired in the bootstrap.
    """

    reports: Mapping[str, EnsembleReport]
    nll_difference: Mapping[str, Estimate]

    def table(self) -> Table:
        """A row a report.

        Returns:
            A rich table.
        """
        first = next(iter(self.reports))
        head = ("ensemble", "members", "accuracy", "NLL (nats)", f"NLL - {first}", "member NLL", "ECE", "Brier", "AURC",
                "disagreement", "ambiguity")  # fmt: skip
        rows = []
        for name, report in self.reports.items():
            found = report.ensemble[report.aggregate]
            difference = "" if name == first else f"{self.nll_difference[name]:+.4f}"
            mean = fmean(member.nll for member in report.members)
            rest = (mean, found.ece, found.brier, found.aurc, report.pair_means()["disagreement"])
            numbers = [f"{value:.4f}" for value in (*rest, report.ambiguity.value)]
            start = (name, str(len(report.members)), f"{found.accuracy:.4f}", f"{found.nll:.4f}", difference)
            rows.append([*start, *numbers])
        return table(head, rows)

    def text(self) -> str:
        """The table as plain text.

        Returns:
            Lines.
        """
        return as_text([self.table()])

    def to_dict(self) -> dict[str, Any]:
        """Reports and differences as JSON can hold them.

        Returns:
            Plain data.
        """
        return {
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
            "nll_difference": {name: difference.to_json() for name, difference in self.nll_difference.items()},
        }


def compare(
    reports: Mapping[str, EnsembleReport], *, rng: np.random.Generator | int = 0, resamples: SupportsIndex = 2000
) -> Comparison:
    """Ensembles on the same test samples: each against the first, sample by sample.

    Args:
        reports: Reports by name, at least one, made from the same labels in the same order.
        rng: Source of the bootstrap's resamples, or its seed.
        resamples: Bootstrap resamples.

    Returns:
        The comparison.

    Raises:
        ValueError: If there is no report, or the labels are not the same.

    Example:
        >>> import torch
        >>> target = torch.arange(60) % 3
        >>> noise = torch.randn(4, 60, 3, generator=torch.Generator().manual_seed(0))
        >>> logits = torch.nn.functional.one_hot(target, 3) + noise
        >>> one, four = (EnsembleReport.from_logits(part, target, resamples=200) for part in (logits[:1], logits))
        >>> compare({"one": one, "four": four}).nll_difference["four"].value < 0
        True
    """
    if not reports:
        raise ValueError("there is no report to compare; give at least one by name")
    rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
    (first, base), *_ = reports.items()
    differences: dict[str, Estimate] = {}
    for name, report in reports.items():
        if not torch.equal(report.target, base.target):
            raise ValueError(f"{name!r} has {report.samples} test samples and {first!r} has {base.samples}, or their "
                             "labels differ: reports are compared on the same samples in the same order")  # fmt: skip
        values = report.sample_nll - base.sample_nll
        finite = bool(torch.isfinite(values).all())
        differences[name] = (
            bootstrap_mean(values.numpy(), rng=rng, resamples=int(resamples))
            if finite
            else Estimate(float(report.sample_nll.mean() - base.sample_nll.mean()), n=report.samples)
        )
    return Comparison(dict(reports), differences)
