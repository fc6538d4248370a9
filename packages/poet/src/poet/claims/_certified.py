"""Claim: every schedule comes with a proved bound, and the gap is small, without a commercial solver."""

from collections.abc import Mapping
from typing import Any

from common_core.claims import Check, Claim, Estimate, Outcome, at_most, report_progress
from poet import legacy
from poet.claims._cases import broken, gap, overhead
from poet.device import Device
from poet.explain import floor_ram
from poet.plan import Schedule
from poet.problem import formulate
from poet.solving import solve

# Key: graph, device, limit (share of the forward bytes; bytes; 0: the least that an operation allows), and words.
_CASES: dict[str, tuple[str, str, float, str]] = {
    "linear_50": ("linear", "nrf52840", 0.5, "linear, 50 %"),
    "linear_55": ("linear", "nrf52840", 0.55, "linear, 55 %"),
    "resnet_60": ("resnet18_cifar", "nrf52840", 0.6, "ResNet-18 (CIFAR), 60 %"),
    "resnet_40": ("resnet18_cifar", "nrf52840", 0.4, "ResNet-18 (CIFAR), 40 %"),
    "resnet_20": ("resnet18_cifar", "nrf52840", 0.2, "ResNet-18 (CIFAR), 20 %"),
    "resnet_256k": ("resnet18_cifar", "nrf52840", 262144, "ResNet-18 (CIFAR), 256 KiB"),
    "vgg_50": ("vgg16_cifar", "nrf52840", 0.5, "VGG-16 (CIFAR), 50 %"),
    "resnet50_least": ("resnet50", "rpi4b", 0, "ResNet-50, least RAM"),
    "bert_50": ("bert", "rpi4b", 0.5, "BERT, 50 %"),
    "bert_least": ("bert", "rpi4b", 0, "BERT, least RAM"),
}
_SECONDS = {
    "quick": {"linear_55": 1.0, "resnet_40": 1.5},
    "full": {
        "linear_50": 2.0, "linear_55": 2.0, "resnet_60": 4.0, "resnet_40": 6.0, "resnet_20": 6.0, "resnet_256k": 6.0,
        "vgg_50": 5.0, "resnet50_least": 5.0, "bert_50": 4.0, "bert_least": 4.0,
    },
}  # fmt: skip
_JUDGED = {"linear_50": 0.001, "linear_55": 0.001, "resnet_60": 0.05, "resnet_40": 0.05}  # gap, % of the plain energy
_OVERHEADS = {"resnet50_least": 0.25, "bert_least": 0.25}


def schedule(key: str, seconds: float, seed: int) -> Schedule:
    """Ours for one of the cases, in the paper's setting: paging takes no time, the deadline is twice the plain step."""
    name, device, limit, _ = _CASES[key]
    graph, machine = legacy.graph(name), Device.load(device)
    ram = int(limit * graph.forward_bytes) if 0 < limit < 1 else int(limit) or floor_ram(formulate(graph, machine, 1))
    return solve(graph, machine, ram, 2.0, paging="free", time_limit=seconds, gap=1e-5, seed=seed)


def run_certified(scale: str, seed: int, device: str) -> Outcome:
    """Overhead, proved bound and gap in percent of the plain step's modelled energy."""
    metrics: dict[str, float | Estimate] = {}
    rules, cases = 0, _SECONDS[scale]
    for k, (key, seconds) in enumerate(cases.items()):
        report_progress(k, len(cases), _CASES[key][3])
        found = schedule(key, seconds, seed).unwrap()
        rules += broken(found.problem, found.events)
        assert found.certificate is not None
        metrics[f"{key}_overhead"], metrics[f"{key}_gap"] = overhead(found), gap(found)
        metrics[f"{key}_seconds"] = found.certificate.seconds
    metrics["broken"] = float(rules)
    return Outcome(metrics, {"Overhead of modelled energy, and what is proved": _figure(metrics)})


def _figure(metrics: Mapping[str, Any]) -> str:
    from common_core.plotting import COLORS, new_figure, svg

    keys = [key for key in _CASES if f"{key}_gap" in metrics]
    figure, axes = new_figure(6.4, 0.9 + 0.32 * len(keys))
    for row, key in enumerate(keys):
        high, width = float(metrics[f"{key}_overhead"]), float(metrics[f"{key}_gap"])
        axes.plot([high - width, high], [row, row], color=COLORS[0], linewidth=4, solid_capstyle="butt")
        axes.plot([high - width], [row], color="black", marker="|", markersize=11, linestyle="none")
        axes.plot([high], [row], color=COLORS[1], marker="o", linestyle="none")
    axes.set_yticks(range(len(keys)), [_CASES[key][3] for key in keys])
    axes.set(
        xscale="symlog",
        xlabel="modelled energy above the plain step (%): proved bound | schedule ●",
        ylim=(len(keys) - 0.5, -0.5),
    )
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(left=0)
    return svg(figure)


def holds_certified(metrics: Mapping[str, Estimate]) -> list[Check]:
    """Gaps where memory is not at its least; overheads at the least RAM of the large networks; no rule broken."""
    checks = [
        at_most(f"gap, {_CASES[key][3]}, % of the plain step's energy", metrics[f"{key}_gap"], most)
        for key, most in _JUDGED.items()
        if f"{key}_gap" in metrics
    ]
    checks += [
        at_most(f"overhead, {_CASES[key][3]}, %", metrics[f"{key}_overhead"], most)
        for key, most in _OVERHEADS.items()
        if f"{key}_overhead" in metrics
    ]
    return [*checks, at_most("broken rules", metrics["broken"], 0.0)]


CLAIMS = (
    Claim(
        id="poet.certified",
        statement=(
            "On the paper's own graphs open solvers give schedules with a proved gap in seconds: at most 0.05 % of the "
            "step's energy for ResNet-18 with 40 % of its forward bytes."
        ),
        source="Section 4; ours",
        paper="schedules proved optimal by a commercial solver, in minutes",
        run=run_certified,
        holds=holds_certified,
        headline=(
            "ResNet-18 with 40 % of its forward bytes: {resnet_40_overhead:.3f} % modelled energy above the plain "
            "step, at most {resnet_40_gap:.4f} % above the least possible, after {resnet_40_seconds:.0f} s"
        ),
        differs=(
            "The original's graphs, faults included, with its setting: deadline twice the plain step, transfers take "
            "no time, nothing counts but activations. A first attempt with the paper's program and HiGHS left an "
            "overhead of 41 % on this case after 120 s on two cores, and one with a tightened program 18 %; the "
            "benchmarks run both beside ours in one run, with other outcomes. No commercial solver was tried. At 20 % "
            "and at 256 KiB, the largest working set, the gap stays open and is shown without a verdict. Quick: two "
            "cases."
        ),
        requires={"matplotlib": "repertory-poet[claims]"},
    ),
)
