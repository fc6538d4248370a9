"""Steps, limits and judgements that the claims share."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from poet import zoo
from poet.baselines import best_segments, per_block, square_root
from poet.baselines_online import capuchin, dtr, page_only
from poet.device import Device
from poet.events import Event
from poet.explain import floor_ram
from poet.graph import Graph
from poet.plan import Schedule
from poet.problem import Problem, formulate
from poet.schedule import Found
from poet.verifier import verify

_NETWORKS = MappingProxyType({"resnet": "resnet18_cifar", "vgg": "vgg16_cifar", "bert": "bert"})
NAMES = MappingProxyType({"resnet": "ResNet-18 (CIFAR)", "vgg": "VGG-16 (CIFAR)", "bert": "BERT, 128 tokens"})
DEVICES = MappingProxyType({"m0": "mkr1000", "m4f": "nrf52840", "a72": "rpi4b"})
"""Short names, as they stand in metrics: Cortex-M0+, Cortex-M4F, Cortex-A72."""

CLASSICAL: Mapping[str, Callable[[Problem], Found]] = MappingProxyType(
    {
        "chen": best_segments,
        "sqrt": square_root,
        "blocks": per_block,
        "dtr": dtr,
        "paging": page_only,
        "capuchin": capuchin,
    }
)
"""What people use: each makes one schedule, or none that fits."""

SETTING = (
    "Analytic graphs of batch 1 with summed skip gradients and parameters' gradients added in place; limits count "
    "parameters and gradients and go from the least that an operation allows to what the plain step needs. No deadline"
)


def step_of(network: str) -> Graph:
    """The corrected graph of one of the networks, gradients of parameters added in place."""
    return zoo.load(_NETWORKS[network], gradients="static")


def problem_of(graph: Graph, device: str, share: float) -> Problem:
    """The step on a device, with the limit that lies this share of the way from the least to the plain step's peak."""
    machine = Device.load(DEVICES[device])
    least = floor_ram(formulate(graph, machine, 1))
    most = graph.static.total + graph.resident_peak
    return formulate(graph, machine, least + int(share * (most - least)))


def broken(problem: Problem, events: Sequence[Event] | None) -> int:
    """Rules that a schedule breaks, by the independent verifier; none if there is no schedule."""
    if events is None:
        return 0
    verdict = verify(
        problem.graph, problem.device, events, limit=problem.limit, deadline=problem.deadline, paging=problem.paging,
        recompute=problem.recompute,
    )  # fmt: skip
    return len(verdict.violations)


def overhead(schedule: Schedule) -> float:
    """Cost beyond the plain step's in percent of it; infinite without a schedule."""
    return 100 * schedule.certificate.overhead if schedule.certificate else float("inf")


def gap(schedule: Schedule) -> float:
    """Cost beyond what is proved to be needed, in percent of the plain step's; infinite without a schedule."""
    return 100 * schedule.certificate.gap if schedule.certificate else float("inf")
