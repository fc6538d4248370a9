"""Claim: what fits a microcontroller with 256 KiB of RAM, and what does not."""

from collections.abc import Mapping
from typing import Any

from common_core.claims import Check, Claim, Estimate, Outcome, at_least, at_most
from poet import legacy, zoo
from poet.baselines_online import page_only
from poet.claims._cases import broken
from poet.device import Device
from poet.graph import Graph, Static
from poet.problem import formulate
from poet.solving import solve

_PART = 256 * 2**10  # bytes of RAM of a Cortex-M4F
_SECONDS = {"quick": 0.5, "full": 4.0}


def activations(graph: Graph) -> Graph:
    """The step without what is always there: parameters, gradients, buffers, inputs."""
    return graph.with_static(Static())


def run_fits(scale: str, seed: int, device: str) -> Outcome:
    """Largest working sets, static bytes, and schedules of 256 KiB as witnesses."""
    machine = Device.load("nrf52840")
    ours, original = zoo.resnet18_cifar(gradients="static"), legacy.graph("resnet18_cifar")
    berts = {tokens: zoo.bert(seq=tokens, gradients="static") for tokens in (128, 512)}
    metrics: dict[str, float | Estimate] = {
        "resnet": float(ours.largest_working_set),
        "resnet_static": float(ours.static.total),
        "resnet_plain": float(ours.resident_peak),
        "original": float(original.largest_working_set),
        "original_bert": float(legacy.graph("bert").largest_working_set),
    }
    for tokens, graph in berts.items():
        metrics[f"bert_{tokens}"] = float(graph.largest_working_set)
        metrics[f"bert_{tokens}_static"] = float(graph.static.total)
    witness = page_only(formulate(original, machine, _PART))
    found = solve(activations(ours), machine, _PART, time_limit=_SECONDS[scale], seed=seed).unwrap()
    metrics["original_fits"] = float(witness.events is not None)
    metrics["resnet_peak"] = float(found.peak)
    metrics["resnet_overhead"] = 100 * found.certificate.overhead if found.certificate else 0.0
    metrics["broken"] = float(
        broken(found.problem, found.events) + broken(formulate(original, machine, _PART), witness.events)
    )
    metrics |= {f"{key}_kib": float(metrics[key]) / 2**10 for key in ("resnet", "resnet_static", "original")}
    metrics |= {f"bert_{tokens}_mib": float(metrics[f"bert_{tokens}"]) / 2**20 for tokens in berts}
    metrics["original_bert_mib"] = float(metrics["original_bert"]) / 2**20
    metrics["bert_static_mib"] = float(metrics["bert_512_static"]) / 2**20
    return Outcome(metrics, {"Memory of ResNet-18 (CIFAR) in 256 KiB of activations": _figure(found)})


def _figure(schedule: Any) -> str:
    from common_core.plotting import svg
    from poet.arena import memory_layers
    from poet.plots import memory_figure

    problem = schedule.problem
    layers = memory_layers(problem.graph, schedule.events, problem.tiers)
    return svg(memory_figure(layers, schedule.events, limit=problem.limit))


def holds_fits(metrics: Mapping[str, Estimate]) -> list[Check]:
    """ResNet-18's largest working set fits, schedules show it, and BERT's does not by far."""
    return [
        at_most("largest working set of ResNet-18, corrected graph, bytes", metrics["resnet"], _PART),
        at_most("largest working set of ResNet-18, original graph, bytes", metrics["original"], _PART),
        at_most("peak of a schedule of the corrected graph, bytes", metrics["resnet_peak"], _PART),
        at_least("a schedule of the original graph fits", metrics["original_fits"], 1.0),
        at_least("largest working set of BERT, 128 tokens, bytes", metrics["bert_128"], _PART),
        at_least(
            "largest working set of BERT, 512 tokens, original graph, bytes", metrics["original_bert"], 10 * 2**20
        ),
        at_least("largest working set of BERT, 512 tokens, corrected graph, bytes", metrics["bert_512"], 10 * 2**20),
        at_most("broken rules", metrics["broken"], 0.0),
    ]


CLAIMS = (
    Claim(
        id="poet.fits-cortex-m",
        statement=(
            "The activations of ResNet-18 for CIFAR can be scheduled in 256 KiB, its parameters apart; BERT's cannot: "
            "with 512 tokens a single operation needs tens of MiB, so no schedule of whole operations fits."
        ),
        source="Abstract; Section 5",
        paper="ResNet-18 and BERT within the memory of a Cortex-M class device",
        run=run_fits,
        holds=holds_fits,
        headline=(
            "largest working set of ResNet-18: {original_kib:.0f} KiB on the original's graph, {resnet_kib:.0f} KiB on "
            "the corrected one, beside {resnet_static_kib:.0f} KiB of parameters and gradients; of BERT: "
            "{bert_128_mib:.1f} MiB with 128 tokens, {bert_512_mib:.0f} MiB with 512 ({original_bert_mib:.0f} MiB on "
            "the original's graph), beside {bert_static_mib:.0f} MiB"
        ),
        differs=(
            "Batch 1, single precision. No schedule can do without the inputs, outputs and workspace of an operation "
            "at once, unless the operation itself is cut into tiles, which neither the paper's program nor ours does. "
            "Parameters and gradients do not fit beside the activations even for ResNet-18: they would have to be read "
            "and written in flash. 'ResNet-18 for CIFAR' is the paper's narrow network with 16 to 64 channels."
        ),
        requires={"matplotlib": "repertory-poet[claims]"},
    ),
)
