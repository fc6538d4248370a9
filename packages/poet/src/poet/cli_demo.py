"""What `poet demo` shows: one step, one limit, every way to schedule it."""

from collections.abc import Mapping, Sequence
from typing import Any

from poet.claims._cases import CLASSICAL, problem_of, step_of
from poet.claims._joint import three
from poet.cli_show import memory_text
from poet.events import Event
from poet.problem import Problem
from poet.replay import replay
from poet.schedule import FRONTIER
from poet.search import everything_resident
from poet.verifier import verify

_NETWORK, _DEVICE, _SHARE, _SECONDS = "resnet", "m4f", 0.2, 3.0
_WORDS = {
    "chen": "evenly spaced checkpoints",
    "dtr": "DTR, recomputing greedily",
    "paging": "paging by longest next use",
    "capuchin": "Capuchin-like",
}


def facts(seed: int) -> dict[str, Any]:
    """The step, its limit, what each way costs, and memory over the plain step and the best schedule.

    Args:
        seed: Seed of the search.
    """
    problem = problem_of(step_of(_NETWORK), _DEVICE, _SHARE)
    trio = three(_NETWORK, _DEVICE, _SHARE, _SECONDS, seed)
    plain = everything_resident(problem)
    ways: dict[str, dict[str, Any] | None] = {"plain step, if it fitted": _figures(problem, plain)}
    for name, words in _WORDS.items():
        ways[words] = _figures(problem, CLASSICAL[name](problem).events)
    searched = {
        "recomputation alone, searched": trio.recomputing,
        "paging alone, searched": trio.paging,
        "both together, searched": trio.joint,
    }
    ways |= {words: _figures(way.problem, way.events) for words, way in searched.items()}
    roomy = problem.with_ram(problem.graph.static.total + problem.graph.resident_peak)
    return {
        "graph": problem.graph.name, "device": problem.device.title, "limit": problem.limit,
        "static": problem.graph.static.total, "plain_peak": roomy.limit, "plain_memory": _memory(roomy, plain),
        "memory": _memory(problem, trio.joint.events or ()), "ways": ways, "bound": trio.joint.least / 100,
        "bound_by": trio.joint.by, "class": f"among {FRONTIER}",
    }  # fmt: skip


def _memory(problem: Problem, events: Sequence[Event]) -> list[int]:
    """Bytes at each event of a schedule that breaks no rule."""
    return list(verify(problem.graph, problem.device, events, limit=problem.limit).unwrap().memory)


def _figures(problem: Problem, events: Sequence[Event] | None) -> dict[str, Any] | None:
    """What a schedule costs; None if there is none."""
    if events is None:
        return None
    seen = replay(problem, events)
    return {
        "modelled_joules": seen.joules, "overhead": seen.joules / problem.baseline_cost - 1,
        "recomputed": seen.recomputed, "paged_out": seen.paged_out,
    }  # fmt: skip


def rows(ways: Mapping[str, Mapping[str, Any] | None]) -> list[tuple[str, ...]]:
    """A row for each way; those that do not fit say so."""
    return [
        (words, "does not fit", "", "", "")
        if way is None
        else (
            words, f"{1e3 * way['modelled_joules']:.1f} mJ", f"{way['overhead']:.1%}", str(way["recomputed"]),
            str(way["paged_out"]),
        )
        for words, way in ways.items()
    ]  # fmt: skip


def chart(memory: Sequence[int], data: Mapping[str, Any]) -> str:
    """Memory beside parameters and gradients over the events, with what is left of the limit."""
    static, limit, top = (data[key] for key in ("static", "limit", "plain_peak"))
    return memory_text([size - static for size in memory], limit - static, top=top - static)
