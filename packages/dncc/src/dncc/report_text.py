"""Reports as tables and sentences."""

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import Any

from rich.table import Table

from common_core.console import table
from dncc.report_scores import MemberScores, Scores

__all__ = ["members_table", "scores_table", "sentences"]

_HEAD = ("prediction", "accuracy", "NLL (nats)", "ECE", "adaptive ECE", "classwise ECE", "Brier", "AURC", "AUGRC")


def scores_table(
    members: Sequence[MemberScores], ensemble: Mapping[Any, Scores], aggregate: str, tempered: Any = None
) -> Table:
    """Figures of the mean member, of the averages, and of the tempered one.

    Args:
        members: Figures of each member.
        ensemble: Figures of the average, by how it is averaged.
        aggregate: The average that the ensemble was trained for; it is marked.
        tempered: A temperature and the figures with it, or None.

    Returns:
        A rich table; empty cells are figures that members on their own do not have.
    """
    mean = [fmean(getattr(member, name) for member in members) for name in ("accuracy", "nll", "ece", "brier")]
    row = [_number(value) for value in mean]
    rows = [[f"mean of {len(members)} members", *row[:3], "", "", row[3], "", ""]]
    for name, found in ensemble.items():
        rows.append([f"ensemble, {name}{' (chosen)' if name == aggregate else ''}", *_cells(found)])
    if tempered is not None:
        name = f"ensemble, {aggregate}, temperature {tempered.temperature:.3g} fitted on validation"
        rows.append([name, *_cells(tempered.scores)])
    return table(_HEAD, rows)


def members_table(members: Sequence[MemberScores]) -> Table:
    """Figures of each member.

    Args:
        members: The members.

    Returns:
        A rich table.
    """
    rows = [[str(m), *map(_number, (row.accuracy, row.nll, row.ece, row.brier))] for m, row in enumerate(members)]
    return table(("member", "accuracy", "NLL (nats)", "ECE", "Brier"), rows)


def sentences(report: Any) -> list[str]:
    """What the figures say of diversity, of the gap between training and test data, and of unknown samples.

    Args:
        report: An `EnsembleReport`.

    Returns:
        Lines.
    """
    lines = [f"{report.samples} test samples, {report.classes} classes; 95 % bootstrap intervals over the samples."]
    figures = f"NLL {report.nll:.4f} nats, accuracy {report.accuracy:.4f}, ambiguity {report.ambiguity:.4f} nats"
    lines.append(f"{figures} ({report.aggregate}).")
    if len(report.members) > 1:
        mean = {name.replace("_", " "): _number(value) for name, value in report.pair_means().items()}
        lines.append("Mean over pairs: " + ", ".join(f"{name} {value}" for name, value in mean.items()) + ".")
    votes = f"entropy {_number(report.vote_entropy)} nats, Kohavi-Wolpert variance {_number(report.kohavi_wolpert)}"
    lines.append(f"Votes: {votes}; mutual information {_number(report.mutual_information)} nats.")
    if report.gap is not None:
        train, test = (_number(part[report.aggregate].ambiguity) for part in (report.train, report.test))
        meaning = _meaning(report.gap.nats)
        lines.append(f"Ambiguity {train} nats on training data and {test} on test data: {meaning}.")
    for name, found in (report.ood or {}).items():
        lines.append(f"Unknown samples by {name}: AUROC {_number(found.auroc)}, AUPR {_number(found.aupr)}, "
                     f"FPR at 95 % detection {_number(found.fpr95)}.")  # fmt: skip
    return lines


def _meaning(nats: float) -> str:
    if isnan(nats):
        return "a member gives a label probability 0, so that there is nothing to compare"
    if nats > 0:
        return f"{_number(nats)} nats of diversity do not carry over (collusion, if much of the generalisation gap)"
    return "all of the diversity carries over"


def _cells(found: Scores) -> list[str]:
    names = ("accuracy", "nll", "ece", "adaptive_ece", "classwise_ece", "brier", "aurc", "augrc")
    return [_number(getattr(found, name)) for name in names]


def _number(value: float) -> str:
    return f"{value:.4f}"
