"""Claim: planned multicast beats send/recv and all-gathers, in the simulator and on real processes."""

from collections.abc import Mapping
from typing import Any

from common_core.claims import Check, Claim, Estimate, Outcome, at_least, at_most, report_progress
from xmesh_reshard.cases import Case, case_numbers, multi_host_case, one_to_many_case
from xmesh_reshard.claims._cases import ALPHA, RUNS, WORDS, at_best, executable, made
from xmesh_reshard.claims.trials import links, measured
from xmesh_reshard.theory import chain_seconds, local_allgather_seconds, send_recv_seconds

_METHODS = ("plan", "send_recv", "send_recv_balanced", "local_allgather", "global_allgather")
_SWEEP = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (3, 2), (4, 2))
_RATE = {"quick": "20MB/s", "full": "25MB/s"}
_BYTES = {"quick": 2**21, "full": 2**23}
_REAL = {"quick": ((2, 2),), "full": ((1, 4), (2, 2), (3, 2), (4, 2))}
_REAL_CASES = {"quick": (), "full": (2, 3, 5)}


def run_broadcast(scale: str, seed: int, device: str) -> Outcome:
    """Times of all methods in units of T: simulated at the paper's sizes, and measured at small ones."""
    cases = [one_to_many_case(a, b) for a, b in _SWEEP] + [multi_host_case(k) for k in case_numbers() if k != 8]
    simulated = {case.name: {name: at_best(made(name, case)) / case.seconds for name in _METHODS} for case in cases}
    metrics: dict[str, float | Estimate] = {}
    for name in _METHODS[1:]:
        ratios = [row[name] / row["plan"] for row in simulated.values()]
        metrics |= {f"{name}_most": max(ratios), f"{name}_least": min(ratios)}
    metrics["least"] = min(float(metrics[f"{name}_least"]) for name in _METHODS[1:])
    metrics["wide"] = _wide()
    metrics |= _forms(simulated)
    real, wrong = _measure(scale, seed, metrics)
    metrics["wrong"] = float(wrong)
    return Outcome(metrics, _figures(simulated, real))


def _wide() -> float:
    """Send/recv over planned for more receivers than the paper tried: 4 hosts with 4 devices."""
    case = one_to_many_case(4, 4)
    return at_best(made("send_recv", case)) / at_best(made("plan", case))


def _forms(simulated: Mapping[str, Mapping[str, float]]) -> dict[str, float | Estimate]:
    """Largest relative distance of simulated one-to-many times from A B t and A t."""
    worst = {"send_recv": 0.0, "local_allgather": 0.0}
    for a, b in _SWEEP:
        row = simulated[f"1 to {a} x {b}"]
        forms = {"send_recv": send_recv_seconds(a, b, 1.0), "local_allgather": local_allgather_seconds(a, 1.0)}
        for name, value in forms.items():
            worst[name] = max(worst[name], abs(row[name] / value - 1))
    return {f"{name}_form": value for name, value in worst.items()}


def _measure(scale: str, seed: int, metrics: dict[str, float | Estimate]) -> tuple[dict[str, dict[str, float]], int]:
    """Measured times in units of T, by case and method; fills in ratios; how many results were wrong."""
    how, rate, repeats = ("bucket", _RATE[scale], 1) if scale == "quick" else (links(), _RATE[scale], 3)
    nbytes = _BYTES[scale]
    work: list[tuple[Case, tuple[int, int] | None]] = [
        (one_to_many_case(a, b, nbytes, nic=rate, alpha=ALPHA), (a, b)) for a, b in _REAL[scale]
    ]
    work += [(multi_host_case(k, 8, nic=rate, alpha=ALPHA), None) for k in _REAL_CASES[scale]]
    real: dict[str, dict[str, float]] = {}
    wrong, chain = 0, []
    for number, (case, form) in enumerate(work):
        report_progress(number, len(work), f"{case.name} on real processes")
        row = real.setdefault(case.name, {})
        for name in ("plan", "send_recv"):
            plan = executable(name, case)
            found = measured(plan, seed, how, repeats)
            row[name] = found.seconds / case.seconds
            wrong += found.wrong
            if name == "plan" and form is not None:
                chunks = plan.messages[0].chunks
                chain.append(row[name] / chain_seconds(form[0], chunks, 1.0, 0.0, 1.0))
        if form is not None and how == "netns":
            wrong += _gathered(row, nbytes, form, rate, repeats, case.seconds)
    ratios = [row["send_recv"] / row["plan"] for row in real.values()]
    metrics |= {"measured_most": max(ratios), "measured_least": min(ratios), "chain": max(chain)}
    gathers = [row[name] / row["plan"] for row in real.values() for name in row if name.endswith("allgather")]
    if gathers:
        metrics |= {"measured_allgather_least": min(gathers), "measured_allgather_most": max(gathers)}
    return real, wrong


def _gathered(row: dict[str, float], nbytes: int, form: tuple[int, int], rate: str, repeats: int, t: float) -> int:
    """Add gloo's all-gathers to a row; how many were wrong."""
    from xmesh_reshard.claims._allgather import allgather_seconds

    wrong = 0
    for name, local in (("local_allgather", True), ("global_allgather", False)):
        seconds, right = allgather_seconds(nbytes, *form, nic=rate, local=local, repeats=repeats)
        row[name] = seconds / t
        wrong += not right
    return wrong


def _figures(simulated: Mapping[str, Mapping[str, float]], real: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    from common_core.plotting import svg
    from xmesh_reshard.plots import bars_figure

    figures = {}
    sweep = [f"1 to {a} x {b}" for a, b in _SWEEP]
    groups = {"One source, simulated": sweep, "The paper's cases, simulated": [c for c in simulated if c not in sweep]}
    for title, cases in groups.items():
        series = {WORDS[name]: {case: simulated[case][name] for case in cases} for name in _METHODS}
        bounds = {case: _bound(case) for case in cases}
        figures[title] = svg(bars_figure(series, bounds, logarithmic=True))
    names = list(dict.fromkeys(name for row in real.values() for name in row))
    series = {WORDS[name]: {case: row[name] for case, row in real.items() if name in row} for name in names}
    bounds = {case: _bound(case) for case in real}
    figures["Measured on gloo processes over slowed links"] = svg(bars_figure(series, bounds, logarithmic=True))
    return figures


def _bound(case: str) -> float:
    """The lower bound in units of T: half where two hosts receive half each, else the whole."""
    return 1.0 if case.startswith("1 to ") or case in ("case 7", "case 8") else 0.5


def holds_broadcast(metrics: Mapping[str, Estimate]) -> list[Check]:
    """Never slower than another method; A B times faster than send/recv, also when measured; results exact."""
    checks = [
        at_least("other methods' time over ours, at worst", metrics["least"], 0.99),
        at_least("send/recv over ours, at best (A B = 8)", metrics["send_recv_most"], 0.98 * 8),
        at_least("send/recv over ours to 4 hosts with 4 devices (the paper: up to 10)", metrics["wide"], 10.0),
        at_most("simulated send/recv against A B t", metrics["send_recv_form"], 0.02),
        at_most("simulated local all-gather against A t", metrics["local_allgather_form"], 0.02),
        at_least("measured: send/recv over ours, at best", metrics["measured_most"], 2.5),
        at_most("measured: our chain over t (1 + (A - 1) / K)", metrics["chain"], 1.1),
        at_most("wrong results", metrics["wrong"], 0.0),
    ]
    if "measured_allgather_least" in metrics:
        checks.append(at_least("measured: all-gathers over ours, at worst", metrics["measured_allgather_least"], 0.95))
    return checks


CLAIMS: tuple[Any, ...] = (
    Claim(
        id="xmesh-reshard.broadcast-beats",
        statement=(
            "Planned multicast is never slower than send/recv, balanced or not, or all-gathers over the paper's "
            "layouts, and up to A B times faster than send/recv to A hosts with B devices: ten times and more where "
            "there are as many receivers."
        ),
        source="Section 5.1, Figures 5 and 6",
        paper="up to 10 times faster than send/recv; equal in cases 1 and 4 to the best alternative",
        run=run_broadcast,
        holds=holds_broadcast,
        headline=(
            "send/recv takes up to {send_recv_most:.1f} times as long in the paper's layouts ({wide:.1f} with 4 hosts "
            "of 4 devices), with balanced senders {send_recv_balanced_most:.1f}, local all-gather "
            "{local_allgather_most:.1f}, global {global_allgather_most:.2f}; never less than {least:.2f}; on real "
            "processes send/recv takes {measured_least:.1f} to {measured_most:.1f} times as long"
        ),
        differs=(
            "Simulated at the paper's sizes (1 GiB, 2 GiB; 10 Gbit/s a host, fast links inside), where every other "
            "method is given the better of strict order and everything posted at once. In this model send/recv is at "
            "most A B = 8 times slower in the paper's layouts; more than that is not explained by bytes, and 10 is "
            "reached with more receivers. Measured at 8 MiB and 25 MB/s a host on processes of one machine: network "
            "namespaces slowed by the kernel where allowed, else token buckets (then without all-gathers, which are "
            "gloo's own). The paper measured NCCL on V100 hosts. Quick: one small measured case over token buckets."
        ),
        requires=RUNS,
    ),
)
