"""What a claim is, what running it gives, and what it is held against."""

import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from common_core.stats import Estimate

SCALES = ("quick", "full", "gpu")
_ID = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9][a-z0-9-]*")


class ClaimError(ValueError):
    """A claim, an outcome or a selection that is not well formed."""


class Unavailable(RuntimeError):  # noqa: N818 - not an error of the claim: it could not be tried
    """Raised by a claim that cannot run here, with the sentence a user needs."""


@dataclass(frozen=True)
class Check:
    """One inequality that must be satisfied for a claim to hold.

    Attributes:
        name: What is compared, in words.
        value: Our figure.
        relation: ``">="`` or ``"<="``.
        bound: What it is held against.
    """

    name: str
    value: float
    relation: Literal[">=", "<="]
    bound: float

    @property
    def margin(self) -> float:
        """Distance to the bound; negative when it is missed."""
        return self.value - self.bound if self.relation == ">=" else self.bound - self.value

    @property
    def holds(self) -> bool:
        """Whether the inequality is satisfied; never with NaN."""
        return self.value >= self.bound if self.relation == ">=" else self.value <= self.bound

    def to_json(self) -> dict[str, Any]:
        """The check as a JSON object, with its verdict."""
        return {**asdict(self), "holds": self.holds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Check":
        """Inverse of :meth:`to_json`; the verdict is found again."""
        return cls(data["name"], float(data["value"]), data["relation"], float(data["bound"]))

    def __str__(self) -> str:
        sign = {">=": "≥", "<=": "≤"}[self.relation]
        return f"{self.name}: {self.value:.4g} {sign} {self.bound:.4g} (margin {self.margin:+.3g})"


def at_least(name: str, value: float | Estimate, bound: float | Estimate) -> Check:
    """The check ``value >= bound``."""
    return Check(name, float(value), ">=", float(bound))


def at_most(name: str, value: float | Estimate, bound: float | Estimate) -> Check:
    """The check ``value <= bound``."""
    return Check(name, float(value), "<=", float(bound))


def is_figure(text: object) -> bool:
    """Whether a text is SVG that may stand in a page: no scripts."""
    return isinstance(text, str) and "<svg" in text and "<script" not in text.lower()


@dataclass(frozen=True)
class Outcome:
    """What one run of a claim measured.

    Attributes:
        metrics: Name to number, or to an estimate with an interval. At least one.
        figures: Title to SVG text.
    """

    metrics: Mapping[str, float | Estimate]
    figures: Mapping[str, str] = field(default_factory=dict)

    def estimates(self) -> dict[str, Estimate]:
        """The metrics, every one as an estimate.

        Raises:
            ClaimError: No metrics, a metric that is no number, or NaN.
        """
        if not self.metrics:
            raise ClaimError("the claim returned no metrics, so there is nothing to judge")
        try:
            estimates = {name: Estimate.from_any(value) for name, value in self.metrics.items()}
        except (TypeError, ValueError) as error:
            raise ClaimError(f"the claim returned a metric that is not a number: {error}") from None
        lost = sorted(name for name, estimate in estimates.items() if math.isnan(float(estimate)))
        if lost:
            raise ClaimError(f"the claim returned NaN for {', '.join(lost)}, so there is nothing to judge")
        for title, svg in self.figures.items():
            if not is_figure(svg):
                raise ClaimError(f"figure {title!r} is not plain SVG text; make it with common_core.plotting.svg")
        return estimates


@dataclass(frozen=True)
class Claim:
    """A sentence that a machine can check.

    Attributes:
        id: ``package.slug``, lower case, such as ``hieropo.hierarchy-helps``.
        statement: The claim as one sentence.
        source: Where it is from: section, equation, figure of the paper, or "ours".
        paper: The paper's own figure, in words; "none" where it gives none.
        run: ``run(scale, seed, device)`` measures. It must find all it needs by itself: it runs in a new process.
        holds: From the metrics to the inequalities that must all be satisfied.
        headline: Our figure in words: a ``str.format`` template over the metrics, such as ``"{hier:.3f}"``.
        differs: What differs from the paper's setting.
        scales: The scales offered, from ``quick``, ``full`` and ``gpu``.
        requires: Module to the extra that brings it, for modules that only the claim needs.
        num_cpus: Threads it uses.
    """

    id: str
    statement: str
    source: str
    paper: str
    run: Callable[[str, int, str], Outcome]
    holds: Callable[[Mapping[str, Estimate]], Check | Sequence[Check]]
    headline: str
    differs: str = ""
    scales: tuple[str, ...] = ("quick", "full")
    requires: Mapping[str, str] = field(default_factory=dict)
    num_cpus: float = 1

    def __post_init__(self) -> None:
        """Refuse a claim that could not be listed or reported."""
        if not _ID.fullmatch(self.id):
            raise ClaimError(f"claim id {self.id!r} must be 'package.slug' of lower-case letters, digits and '-'")
        for name in ("statement", "source", "paper", "headline"):
            if not getattr(self, name).strip():
                raise ClaimError(f"claim {self.id}: {name} is empty")
        unknown = [scale for scale in self.scales if scale not in SCALES]
        if unknown or not self.scales:
            raise ClaimError(f"claim {self.id}: scales are {self.scales!r}; give some of {', '.join(SCALES)}")
        if not any(name for _, name, _, _ in string.Formatter().parse(self.headline)):
            raise ClaimError(f"claim {self.id}: the headline {self.headline!r} shows no metric; write '{{name:.3f}}'")

    @property
    def package(self) -> str:
        """The part of the id before the dot."""
        return self.id.split(".", 1)[0]

    def judge(self, metrics: Mapping[str, Estimate]) -> tuple[Check, ...]:
        """The inequalities of this claim at these metrics.

        Raises:
            ClaimError: The claim compares nothing, or something else than :class:`Check`, or with NaN.
        """
        checks: Any = self.holds(metrics)
        checks = (checks,) if isinstance(checks, Check) else tuple(checks)
        if not checks or not all(isinstance(check, Check) for check in checks):
            raise ClaimError("holds() must return a Check or a sequence of them, from at_least() and at_most()")
        if any(math.isnan(check.value) or math.isnan(check.bound) for check in checks):
            raise ClaimError("holds() compared with NaN, so there is no verdict")
        return checks
