"""What `dncc report` shows: trained runs and files of predictions, alone or side by side."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from rich.console import RenderableType
from torch import Tensor

from common_core.records import write_bytes_atomic
from dncc.aggregation import Aggregate, aggregate_log_proba, log_softmax
from dncc.cli_data import judged_part, unknown
from dncc.cli_runs import CONFIG, HISTORY, PREDICTED, Run, load_logits
from dncc.evaluating import predict_logits
from dncc.history import History
from dncc.io import FormatError
from dncc.report import EnsembleReport
from dncc.report_comparison import Comparison, compare
from dncc.report_text import sentences

__all__ = ["Judged", "compared", "figures", "judge", "page", "shown", "titled", "write"]


@final
@dataclass(frozen=True, eq=False)
class Judged:
    """An ensemble and what is known of it.

    Attributes:
        report: The report.
        logits: Member-first logits of what was judged.
        part: What was judged, in words.
        run: Its training, if a folder of one was given.
        history: Of the training.
    """

    report: EnsembleReport
    logits: Tensor
    part: str
    run: Run | None = None
    history: History | None = None


def judge(path: Path, data: Path | None, ood: Path | None, aggregate: Aggregate | None) -> Judged:
    """The report of a folder that `dncc train` wrote, or of a file of predictions.

    Args:
        path: The folder or the npz file.
        data: Other data to judge a trained ensemble on; its own held-out part if None.
        ood: Samples of no class.
        aggregate: How members are averaged; as in training if None.

    Returns:
        The report and what it was made of.

    Raises:
        ValueError: If files are missing, damaged or do not fit.
    """
    if path.is_dir():
        return _judged_run(path, data, ood, aggregate)
    if data is not None or ood is not None:
        raise ValueError(f"{path} is a file of predictions: --data and --ood need a folder that dncc train wrote")
    arguments, part = load_logits(path)
    return Judged(_report(path, arguments, aggregate or "arithmetic"), arguments["logits"], part)


def _judged_run(path: Path, data: Path | None, ood: Path | None, aggregate: Aggregate | None) -> Judged:
    run = Run.load(path)
    if not run.complete:
        raise FormatError(f"{path} holds a training that was interrupted; go on with dncc train --resume")
    arguments, part = load_logits(path / PREDICTED)
    shape = run.architecture.shape
    model = run.model() if data is not None or ood is not None else None
    if model is not None and data is not None:
        x, y = judged_part(data, run.reading, run.classes, shape)
        arguments |= {"logits": predict_logits(model, x), "target": torch.as_tensor(y)}
        part = str(data)
    if model is not None and ood is not None:
        arguments["ood_logits"] = predict_logits(model, unknown(ood, run.reading, shape))
    chosen: Any = aggregate or run.settings.aggregate
    history = History.from_json(_history(path))
    return Judged(_report(path, arguments, chosen), arguments["logits"], part, run, history)


def _history(path: Path) -> dict[str, Any]:
    import json

    try:
        return json.loads((path / HISTORY).read_text("utf-8"))
    except ValueError as error:
        raise FormatError(f"{path / HISTORY} is damaged ({error}); {path / CONFIG} says how to train again") from None


def _report(path: Path, arguments: Mapping[str, Tensor], aggregate: Aggregate) -> EnsembleReport:
    given: dict[str, Any] = dict(arguments)
    for part in ("train", "val"):  # one without the other tells nothing
        if not {f"{part}_logits", f"{part}_target"} <= given.keys():
            given = {key: value for key, value in given.items() if not key.startswith(f"{part}_")}
    given.pop("ood_target", None)
    try:
        return EnsembleReport.from_logits(given.pop("logits"), given.pop("target"), **given, aggregate=aggregate)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from None


def titled(paths: Sequence[Path]) -> list[str]:
    """Short names that differ.

    Args:
        paths: Of runs and files.

    Returns:
        Names of folders or files where they differ, else whole paths.

    Example:
        >>> titled([Path("runs/a"), Path("runs/b.npz")])
        ['a', 'b']
    """
    short = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def shown(found: Mapping[str, Judged]) -> tuple[dict[str, Any], list[RenderableType]]:
    """Reports for a program and for a person.

    Args:
        found: By name; several are compared with the first.

    Returns:
        JSON values, and tables.

    Raises:
        ValueError: If several were judged on different samples.
    """
    if len(found) == 1:
        [(name, one)] = found.items()
        parts: list[Any] = [f"{name}, judged on {one.part}:\n", one.report.table(), "", one.report.members_table(), ""]
        return {"reports": {name: one.report.to_dict()}}, [*parts, *sentences(one.report)]
    both = compared(found)
    parts = [both.table()]
    for name, judged in found.items():
        parts += [f"\n{name}, judged on {judged.part}:\n", *sentences(judged.report)]
    return both.to_dict(), parts


def compared(found: Mapping[str, Judged]) -> Comparison:
    """Side by side, each against the first.

    Args:
        found: By name.

    Returns:
        The comparison.

    Raises:
        ValueError: If they were judged on different samples.
    """
    return compare({name: one.report for name, one in found.items()})


def figures(found: Mapping[str, Judged]) -> dict[str, str]:
    """Pictures as SVG, by file name without ending.

    Args:
        found: By name.

    Returns:
        For each ensemble calibration, disagreement and, for a run, ambiguity while training; for all together the
        diversity of pairs and selective risk, and for runs of three lambdas or more the frontier.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from common_core.plotting import svg
    from dncc import plots
    from dncc.selective import risk_coverage

    made: dict[str, Any] = {}
    curves, pairs = {}, {}
    for name, one in found.items():
        start = "" if len(found) == 1 else f"{name.replace('/', '-')}-"
        report, log_p = one.report, log_softmax(one.logits.double())
        made[f"{start}reliability"] = plots.reliability_figure(log_p, report.target, report.aggregate, report.bins)
        curves[name] = risk_coverage(aggregate_log_proba(log_p, report.aggregate), report.target)
        if len(report.members) > 1:
            made[f"{start}disagreement"] = plots.matrix_figure(report.pairwise.disagreement.numpy(), "disagreement")
            pairs[name] = (report.pairwise.kappa.numpy(), [1 - member.accuracy for member in report.members])
        if one.history is not None and one.history.epochs and one.history.epochs[-1].validation is not None:
            column = one.history.column
            made[f"{start}ambiguity"] = plots.ambiguity_figure(
                column("epoch"), column("ambiguity", "train"), column("ambiguity", "validation"), column("lam")
            )
    together: dict[str, Any] = {}
    if (frontier := _frontier(found)) is not None:
        together["frontier"] = plots.frontier_figure(frontier.pop("lams"), **frontier)
    if pairs:
        together["pairs"] = plots.kappa_error_figure(pairs)
    together["risk-coverage"] = plots.risk_coverage_figure(curves)
    return {name: svg(figure) for name, figure in (together | made).items()}


def _frontier(found: Mapping[str, Judged]) -> dict[str, Any] | None:
    """Columns over lambda, if there are runs of three fixed lambdas or more that differ in nothing else."""
    runs = [one for one in found.values() if one.run is not None and _fixed(one.run.settings.lam) is not None]
    lams = [float(one.run.settings.lam) for one in runs if one.run is not None]
    if len(runs) < len(found) or len(set(lams)) < max(3, len(runs)):
        return None
    reports = [one.report for one in runs]
    return {
        "lams": lams,
        "members": [sum(member.nll for member in report.members) / len(report.members) for report in reports],
        "ensemble": [report.nll for report in reports],
        "disagreement": [report.pair_means()["disagreement"] for report in reports],
    }


def _fixed(lam: str) -> float | None:
    try:
        return float(lam)
    except ValueError:
        return None


def page(title: str, text: str, pictures: Mapping[str, str]) -> str:
    """One HTML page with everything inside, readable without network, light or dark.

    Args:
        title: Heading.
        text: Tables and sentences as plain text.
        pictures: SVG by name.

    Returns:
        The page.
    """
    captions = {name: f"<figcaption>{html.escape(name)}</figcaption>" for name in pictures}
    drawn = "".join(f"<figure>{svg}{captions[name]}</figure>" for name, svg in pictures.items())
    style = (
        ":root{color-scheme:light dark;font-family:system-ui,sans-serif}body{margin:2rem auto;max-width:75rem;"
        "padding:0 1rem}pre{overflow-x:auto;line-height:1.4}figure{display:inline-block;margin:1rem 2rem 1rem 0;"
        "vertical-align:top}figure svg{max-width:100%;height:auto}figcaption{text-align:center;font-size:.9rem}"
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{html.escape(title)}</title><style>{style}</style></head>\n'
        f"<body>\n<h1>{html.escape(title)}</h1>\n<pre>{html.escape(text)}</pre>\n{drawn}\n</body>\n</html>\n"
    )


def write(pictures: Mapping[str, str], folder: Path) -> list[Path]:
    """Pictures as files.

    Args:
        pictures: SVG by name.
        folder: Where; made when missing.

    Returns:
        The files.
    """
    files = [folder / f"{name}.svg" for name in pictures]
    for file, text in zip(files, pictures.values(), strict=True):
        write_bytes_atomic(file, text.encode())
    return files
