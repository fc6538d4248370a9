"""The verbs of the ``repertory`` command."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import RenderableType
from rich.text import Text

from common_core._command import FELL_SHORT, INTERRUPTED, OK, Answer, option
from common_core.claims._claim import ClaimError
from common_core.claims._compare import Comparison, compare
from common_core.claims._discovery import Found, discover, select
from common_core.claims._report import write_report
from common_core.claims._results import Results, result_of
from common_core.claims._runner import Settings, run_claims
from common_core.console import STYLES, Board, duration, progress, table
from common_core.engine import TaskResult
from common_core.records import environment, to_jsonable

Scale = Literal["quick", "full", "gpu"]
Selectors = Annotated[tuple[str, ...], tyro.conf.Positional, option("[SELECTOR ...]", "all")]
Folder = Annotated[str, tyro.conf.Positional, option("DIR")]


Jobs = Annotated[int | None, option("INT", "the number of cores")]
Timeout = Annotated[float | None, option("SECONDS", "300 for quick, 3600 for full, 1800 for gpu")]
Out = Annotated[str | None, option("DIR", "a new folder in repertory-results")]
Resume = Annotated[str | None, option("DIR", "a new run")]
Address = Annotated[str | None, option("ADDRESS", "a Ray of its own on this machine")]


def list_verb(selectors: Selectors = (), /) -> Answer:
    """List the claims that are installed.

    Args:
        selectors: Packages, claim ids or patterns; all by default.
    """
    chosen = select(discover(), selectors)
    rows = [(key, ", ".join(item.claim.scales), item.claim.statement) for key, item in chosen.items()]
    data = [
        {"id": key, "statement": i.claim.statement, "source": i.claim.source, "scales": list(i.claim.scales)}
        for key, i in chosen.items()
    ]
    return Answer({"claims": data}, table(["claim", "scales", "statement"], rows))


def run_command(
    selectors: Selectors = (),
    /,
    scale: Scale = "quick",
    seed: int = 0,
    device: str = "auto",
    engine: Literal["local", "ray"] = "local",
    address: Address = None,
    jobs: Jobs = None,
    timeout: Timeout = None,
    out: Out = None,
    resume: Resume = None,
) -> Answer:
    """Run claims; show the verdicts; write results.json and report.html.

    Ends with status 1 when a claim falls short or could not run. Ctrl-C keeps what is done; go on with --resume.

    Args:
        selectors: Packages, claim ids or patterns; all by default.
        scale: How large: seconds, minutes, or what needs a GPU.
        seed: The claims' seed.
        device: Device string, such as cpu or cuda; auto is cuda for the scale gpu and else cpu.
        engine: Local processes, or Ray.
        address: An existing Ray cluster, as ray.init takes it; needs --engine ray.
        jobs: Processes at a time.
        timeout: How long a claim may take.
        out: Folder for results and report.
        resume: Folder of an interrupted run to go on with, with the settings it was started with.
    """
    return run_verb(
        selectors, scale=scale, seed=seed, device=device, engine=engine, address=address, jobs=jobs, timeout=timeout,
        out=out, resume=resume,
    )  # fmt: skip


def run_verb(
    selectors: Sequence[str],
    *,
    scale: str = "quick",
    seed: int = 0,
    device: str = "auto",
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    jobs: int | None = None,
    timeout: float | None = None,
    out: str | None = None,
    resume: str | None = None,
) -> Answer:
    """Run the selected claims as :func:`run_command` documents."""
    if resume is not None:
        if selectors or (scale, seed, device, out) != ("quick", 0, "auto", None):
            raise ClaimError(
                "--resume goes on with the settings of that run: give no selector, scale, seed, device or out"
            )
        settings, folder = Settings.load(resume), Path(resume)
    else:
        if device == "auto":
            device = "cuda" if scale == "gpu" else "cpu"
        settings = Settings(tuple(selectors), scale, seed, device)
        folder = _new_folder() if out is None else Path(out)
        if folder.exists() and not folder.is_dir():
            raise ClaimError(f"--out {folder} is a file; give a folder")
        if (folder / "run.json").exists():
            raise ClaimError(f"{folder} holds a run already: go on with it by --resume {folder}, or give another --out")
    chosen = _at_scale(select(discover(), settings.selectors), settings)

    def verdict(result: TaskResult) -> tuple[str, str]:
        word = result_of(chosen[result.key].claim, result).verdict
        return word, STYLES[word]

    with Board(list(chosen), verdict) as board:
        results = run_claims(
            chosen, settings, folder, jobs=jobs, engine=engine, address=address, timeout=timeout, watch=board
        )  # fmt: skip
    report = write_report(results, folder)
    if results.interrupted:
        progress().print(Text(f"interrupted; go on with: repertory run --resume {folder}"), soft_wrap=True)
    status = INTERRUPTED if results.interrupted else OK if results.ok else FELL_SHORT
    return Answer({"folder": str(folder), **results.to_json()}, _summary(results, report), status)


def _at_scale(chosen: dict[str, Found], settings: Settings) -> dict[str, Found]:
    """The claims that the run's scale is offered for, and those named one by one; all if there is none."""
    fit = {key: i for key, i in chosen.items() if settings.scale in i.claim.scales or key in settings.selectors}
    if fit and len(fit) < len(chosen):
        left = ", ".join(key for key in chosen if key not in fit)
        progress().print(Text(f"not at the {settings.scale} scale, so left out: {left}"), soft_wrap=True)
    return fit or chosen


def _new_folder() -> Path:
    base = Path("repertory-results") / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _summary(results: Results, report: Path) -> list[RenderableType]:
    rows = []
    for result in results.claims:
        ours = result.headline or result.reason
        rows.append(
            [result.id, Text(result.verdict, STYLES[result.verdict]), ours, result.paper, duration(result.wall_s)]
        )
    shown: list[RenderableType] = [table(["claim", "verdict", "our figure", "the paper", "time"], rows), ""]
    shown += [
        Text(f"{result.id} falls short: {result.explanation}", STYLES[result.verdict])
        for result in results.claims
        if result.verdict == "falls short"
    ]
    counts = ", ".join(f"{number} {verdict}" for verdict, number in results.counts.items() if number)
    return [*shown, f"{counts}. Report: {report}"]


def report_verb(folder: Folder, /) -> Answer:
    """Write report.html again from a run's results.json.

    Args:
        folder: The run's folder.
    """
    if (Path(folder) / "run.json").exists() and not (Path(folder) / "results.json").exists():
        raise ClaimError(f"the run in {folder} has no results yet: go on with it by repertory run --resume {folder}")
    path = write_report(Results.load(folder), folder)
    return Answer({"report": str(path)}, f"Report: {path}")


def compare_verb(before: Folder, after: Folder, /) -> Answer:
    """Show which verdicts and figures moved between two runs.

    Ends with status 1 when a claim of both runs held and no longer does.

    Args:
        before: Folder or results.json of the earlier run.
        after: Folder or results.json of the later run.
    """
    found = compare(Results.load(before), Results.load(after))
    data = {
        "settings": list(found.settings),
        "verdicts": {key: {"before": a, "after": b} for key, (a, b) in found.verdicts.items()},
        "moves": [
            {"claim": m.claim, "metric": m.metric, "before": m.before, "after": m.after, "moved": m.moved}
            for m in found.moves
        ],
        "worse": list(found.worse),
        "alone": list(found.alone),
    }
    return Answer(data, _moves(found), FELL_SHORT if found.worse else OK)


def _moves(found: Comparison) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if found.settings:
        shown.append(Text(f"The runs differ in {', '.join(found.settings)}: figures are not like for like.", "yellow"))
    both = {key: pair for key, pair in found.verdicts.items() if key not in found.alone}
    changed = [(key, str(a), str(b)) for key, (a, b) in both.items() if a != b]
    if changed:
        shown += [table(["claim", "verdict before", "verdict after"], changed), ""]
    moved = [
        (
            m.claim,
            m.metric,
            "absent" if m.before is None else str(m.before),
            "absent" if m.after is None else str(m.after),
        )
        for m in found.moves
        if m.moved
    ]
    if moved:
        shown += [table(["claim", "figure", "before", "after"], moved), ""]
    if found.alone:
        shown += [f"In one of the runs only: {', '.join(found.alone)}.", ""]
    same = len(found.moves) - len(moved)
    shown.append(
        f"{len(changed)} of {len(both)} verdicts changed; {len(moved)} figures moved, {same} did not "
        "(figures with intervals move when the intervals are disjoint)."
    )
    return shown


def env_verb(device: str = "cpu") -> Answer:
    """Show what figures measured here depend on: versions, device, commit.

    Args:
        device: Device string, such as cpu or cuda.
    """
    data = to_jsonable(environment(device))
    versions = data.pop("versions")
    rows = [(name, "–" if value is None else str(value)) for name, value in {**data, **versions}.items()]
    return Answer({**data, "versions": versions}, table(["what", "value"], rows))
