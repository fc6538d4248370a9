"""Claim: the simulator says what real processes over slowed links do."""

from collections.abc import Mapping
from typing import Any

from common_core.claims import Check, Claim, Estimate, Outcome, at_most, report_progress
from xmesh_reshard.cases import Case, case_numbers, multi_host_case, one_to_many_case
from xmesh_reshard.claims._cases import ALPHA, RUNS, WORDS, executable, spread
from xmesh_reshard.claims.trials import links, measured
from xmesh_reshard.network import simulate

_ERROR = 0.2
_METHODS = ("plan", "naive_broadcast", "send_recv")


def _suite(scale: str) -> list[Case]:
    if scale == "quick":
        return [one_to_many_case(1, 2, 2**21, nic="10MB/s", alpha=ALPHA)]
    wide = [one_to_many_case(a, b, 2**22, nic="15MB/s", alpha=ALPHA) for a, b in ((1, 4), (2, 2), (3, 2))]
    return wide + [multi_host_case(k, 8, nic="15MB/s", alpha=ALPHA) for k in case_numbers() if k != 8]


def run_faithful(scale: str, seed: int, device: str) -> Outcome:
    """Measured over simulated time of every case and method."""
    how, repeats = ("bucket", 1) if scale == "quick" else (links(), 5)
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in _METHODS}
    errors: dict[str, float] = {}
    wrong, cases = 0, _suite(scale)
    for number, case in enumerate(cases):
        for name in _METHODS:
            report_progress(number, len(cases), f"{case.name}, {WORDS[name]}")
            made = executable(name, case)
            expected = simulate(made).makespan
            found = measured(made, seed, how, repeats)
            points[name].append((expected, found.seconds))
            errors[f"{case.name} {name}"] = abs(found.seconds / expected - 1)
            wrong += found.wrong
    median, ninth, most = spread(errors)
    within = sum(error <= _ERROR for error in errors.values())
    metrics = {
        "error": most, "error_90": ninth, "error_median": median, "runs": float(len(errors)),
        "within": float(within), "wrong": float(wrong),
    }  # fmt: skip
    metrics |= {f"error of {name}": error for name, error in errors.items()}
    return Outcome(metrics, {"Measured against simulated": _draw(points)})


def _draw(points: Mapping[str, list[tuple[float, float]]]) -> str:
    from common_core.plotting import svg
    from xmesh_reshard.plots import scatter_figure

    return svg(scatter_figure({WORDS[name]: rows for name, rows in points.items()}))


def holds_faithful(metrics: Mapping[str, Estimate]) -> list[Check]:
    """No run is further than a fifth from what was simulated."""
    return [
        at_most("relative error of the simulated time, at worst", metrics["error"], _ERROR),
        at_most("wrong results", metrics["wrong"], 0.0),
    ]


CLAIMS: tuple[Any, ...] = (
    Claim(
        id="xmesh-reshard.simulator-faithful",
        statement="The network simulator is within 20 % of real processes over slowed links, for good and bad plans.",
        source="ours",
        paper="none",
        run=run_faithful,
        holds=holds_faithful,
        headline=(
            "{within:.0f} of {runs:.0f} plans on gloo processes within 20 %: error {error:.1%} at worst, "
            "{error_90:.1%} at the ninetieth percentile, {error_median:.1%} in the median"
        ),
        differs=(
            "The paper has no simulator. Processes of one machine whose links between hosts are slowed to 15 MB/s by "
            "the kernel (network namespaces) where allowed, else by token buckets; 1 ms is taken for a message. "
            "Planned, naive and send/recv messages of eleven transfers, median of five. A busy machine is slower than "
            "the simulator. Quick: one transfer over token buckets, once."
        ),
        requires=RUNS,
    ),
)
