"""The results of a run of claims: in memory and as ``results.json`` with its figures beside it."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common_core.claims._claim import Check, Claim, is_figure
from common_core.engine import TaskResult
from common_core.records import RecordError, read_json, write_bytes_atomic, write_json_atomic
from common_core.stats import Estimate

SCHEMA = "repertory.results/1"
Verdict = Literal["holds", "falls short", "could not run"]
VERDICTS: tuple[Verdict, ...] = ("holds", "falls short", "could not run")
_WORDS = ("id", "statement", "source", "paper", "differs", "verdict", "reason", "headline", "log")
_NUMBERS = ("wall_s", "cpu_s", "peak_rss_bytes")


@dataclass(frozen=True)
class ClaimResult:
    """A claim's verdict and the figures behind it.

    Attributes:
        id: The claim's id.
        statement: The claim.
        source: Where it is from.
        paper: The paper's figure.
        differs: What differs from the paper's setting.
        verdict: ``holds``, ``falls short`` or ``could not run``.
        reason: Why it could not run.
        headline: Our figure in words.
        metrics: Name to estimate.
        checks: The inequalities it was held against.
        figures: Title to SVG text.
        log: The last lines of its output, when it could not run.
        wall_s: Wall time in seconds.
        cpu_s: CPU time in seconds.
        peak_rss_bytes: Largest resident set in bytes.
    """

    id: str
    statement: str
    source: str
    paper: str
    differs: str
    verdict: Verdict
    reason: str = ""
    headline: str = ""
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    log: str = ""
    wall_s: float | None = None
    cpu_s: float | None = None
    peak_rss_bytes: int | None = None

    @property
    def package(self) -> str:
        """The package of the claim."""
        return self.id.split(".", 1)[0]

    @property
    def tightest(self) -> Check | None:
        """The check that decides: the missed one or, of those satisfied, the nearest to its bound."""
        scaled = lambda check: check.margin / max(abs(check.bound), abs(check.value), 1e-300)  # noqa: E731
        return min(self.checks, key=scaled, default=None)

    @property
    def explanation(self) -> str:
        """Why the verdict is what it is, in one line."""
        return str(self.tightest) if self.checks else self.reason


def result_of(claim: Claim, task: TaskResult) -> ClaimResult:
    """The verdict on a claim from how its task ended."""
    base = ClaimResult(
        claim.id, claim.statement, claim.source, claim.paper, claim.differs, "could not run",
        wall_s=task.wall_s, cpu_s=task.cpu_s, peak_rss_bytes=task.peak_rss_bytes,
    )  # fmt: skip
    if task.status != "done":
        reason = re.sub(r"^(Unavailable|ClaimError): ", "", task.reason)
        return replace(base, reason=reason, log=task.log)
    value = task.value
    checks = _checks(value["checks"])
    return replace(
        base,
        verdict="holds" if all(check.holds for check in checks) else "falls short",
        headline=value["headline"],
        metrics=_metrics(value["metrics"]),
        checks=checks,
        figures=value["figures"],
    )


def _metrics(data: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate.from_json(item) for name, item in data.items()}


def _checks(data: Sequence[Mapping[str, Any]]) -> tuple[Check, ...]:
    return tuple(Check.from_json(item) for item in data)


@dataclass(frozen=True)
class Results:
    """All verdicts of one run.

    Attributes:
        settings: Scale, seed, device and the rest of what was asked.
        environment: As :func:`common_core.records.environment` gives it.
        claims: One result a claim, sorted by id.
        started: UTC time of the start, ISO 8601.
        interrupted: Whether the run was stopped before its end.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    claims: tuple[ClaimResult, ...]
    started: str
    interrupted: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Verdict to number of claims, every verdict named."""
        counter = Counter(result.verdict for result in self.claims)
        return {verdict: counter[verdict] for verdict in VERDICTS}

    @property
    def ok(self) -> bool:
        """Whether every claim was run and holds."""
        return self.counts["holds"] == len(self.claims)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``results.json`` and ``figures/*.svg`` into ``folder``; return the JSON file's path."""
        folder = Path(folder)
        path = folder / "results.json"
        for result in self.claims:
            for (name, _), svg in zip(_figure_files(result), result.figures.values(), strict=True):
                write_bytes_atomic(folder / name, svg.encode())
        write_json_atomic(path, {"schema": SCHEMA, **self.to_json()})
        return path

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``; figures are named, not held."""
        return {
            "started": self.started,
            "interrupted": self.interrupted,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "counts": self.counts,
            "claims": [
                {
                    **{name: getattr(result, name) for name in (*_WORDS, *_NUMBERS)},
                    "metrics": {name: estimate.to_json() for name, estimate in result.metrics.items()},
                    "checks": [check.to_json() for check in result.checks],
                    "figures": [{"file": name, "title": title} for name, title in _figure_files(result)],
                }
                for result in self.claims
            ],
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Results":
        """Read a run from its folder or its ``results.json``.

        Raises:
            RecordError: Missing, unreadable, foreign, newer or incomplete.
        """
        path = Path(path)
        file = path / "results.json" if path.is_dir() else path
        data = read_json(file, SCHEMA)
        try:
            claims = tuple(_read_claim(item, file.parent) for item in data["claims"])
            return cls(data["settings"], data["environment"], claims, data["started"], data["interrupted"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise RecordError(f"{file}: incomplete results ({type(error).__name__}: {error})") from None


def _figure_files(result: ClaimResult) -> list[tuple[str, str]]:
    """File (relative) and title of every figure of a claim."""
    slug = lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50]  # noqa: E731
    return [(f"figures/{slug(result.id)}-{k}-{slug(title)}.svg", title) for k, title in enumerate(result.figures, 1)]


def _read_claim(data: Mapping[str, Any], folder: Path) -> ClaimResult:
    if data["verdict"] not in VERDICTS:
        raise ValueError(f"unknown verdict {data['verdict']!r}")
    figures = {}
    for item in data["figures"]:
        file = (folder / item["file"]).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise ValueError(f"figure {item['file']!r} lies outside the folder")
        # results.json may have been copied alone (into a repository, say): its figures are then just absent
        if file.exists():
            figures[item["title"]] = file.read_text(encoding="utf-8")
            if not is_figure(figures[item["title"]]):
                raise ValueError(f"figure {item['file']!r} is not plain SVG")
    plain: dict[str, Any] = {name: data[name] for name in (*_WORDS, *_NUMBERS)}
    return ClaimResult(
        **plain,
        metrics=_metrics(data["metrics"]),
        checks=_checks(data["checks"]),
        figures=figures,
    )
