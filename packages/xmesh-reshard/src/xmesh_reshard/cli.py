"""The command: `plan`, `simulate`, `run`, `schedule`, `measure`, `demo` and `claims`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from common_core.cli import FELL_SHORT, OK, Answer, option, package_app, writable
from common_core.console import progress, table
from common_core.records import write_bytes_atomic, write_json_atomic
from xmesh_reshard import quantities
from xmesh_reshard.cli_inputs import Job, find_job, numbers, on_network, pairs, slowed
from xmesh_reshard.cli_show import WORDS, Row, compare, compare_table
from xmesh_reshard.explain import bytes_text, explain, seconds_text
from xmesh_reshard.planning import plan as make_plan
from xmesh_reshard.plans import Plan

Spec = Annotated[str, option("SPEC")]
File = Annotated[Path | None, option("FILE", "not written")]
Network = Annotated[Path | None, option("FILE", "that of SPEC")]
Count = Annotated[int | None, option("INT", "the kind's own")]
Time = Annotated[str, option("SECONDS")]
Links = Literal["bucket", "netns", "none"]
Kind = Literal["gpipe", "1f1b", "eager-1f1b", "interleaved", "zero-bubble", "all"]
_KINDS = ("gpipe", "1f1b", "eager-1f1b", "interleaved", "zero-bubble")
_COMPARED = ("send_recv", "send_recv_balanced", "naive_broadcast", "size_only", "local_allgather", "global_allgather")


def plan(
    spec: Spec,
    /,
    topology: Network = None,
    shrink: int = 1,
    cast: bool = False,
    split_senders: bool = True,
    max_message: Annotated[str, option("BYTES")] = "256MiB",
    save: File = None,
    explain: bool = False,
    gantt: File = None,
    bytes_svg: File = None,
) -> Answer:
    """Plan how to move tensors, and say how far from the best possible the plan is.

    SPEC is a YAML or JSON file of tensors, layouts and network; a plan's file; or a built-in case: case:1 to case:9 of
    the paper, multicast:4x2 (one device to 4 hosts with 2 each), llama:8b, llama:70b (trainer to inference fleet).

    Args:
        spec: What to move.
        topology: Another network, as YAML.
        shrink: For case:N and multicast:AxB: divides the lengths of the tensor.
        cast: Whether tensors may change their type on the way.
        split_senders: Whether a part may be split over the hosts that hold it.
        max_message: Largest message, which bounds the receive buffers.
        save: The plan as JSON.
        explain: Show loads of the cards, methods, busiest links and buffers.
        gantt: What every network card carries when, simulated, as SVG.
        bytes_svg: Bytes between hosts as a heat map, SVG.
    """
    writable(save, gantt, bytes_svg)
    job = find_job(spec, topology, shrink)
    made = _planned(job, cast=cast, split_senders=split_senders, max_message=max_message)
    shown: list[Any] = [_explained(made) if explain else _summary(made)]
    if save is not None:
        made.save(save)
    if gantt is not None or bytes_svg is not None:
        _draw(made, job.case.name, gantt, bytes_svg)
    shown += [f"wrote {file}" for file in (save, gantt, bytes_svg) if file is not None]
    return Answer(_facts(made), shown)


def _planned(job: Job, **options: Any) -> Plan:
    return job.plan or make_plan(job.case.transfers, job.case.topology, **options)


def _explained(made: Plan) -> str:
    return explain(made)


def _summary(made: Plan) -> str:
    head, *rest = explain(made).splitlines()
    times = [line for line in rest if line.startswith(("Between hosts", "Planned time", "The network cannot"))]
    return "\n".join([head, *times])


def _facts(made: Plan) -> dict[str, Any]:
    """A plan's figures for a program."""
    return {
        "tensors": len(made.tensors), "devices": len(made.devices), "messages": len(made.messages),
        "makespan": made.makespan, "lower_bound": made.lower_bound, "gap": made.gap,
        "network_bytes": made.network_bytes, "hash": made.hash(), "notes": list(made.notes),
    }  # fmt: skip


def _draw(made: Plan, title: str, gantt: Path | None, heat: Path | None) -> None:
    from common_core.plotting import svg
    from xmesh_reshard import plots

    if gantt is not None:
        write_bytes_atomic(gantt, svg(plots.gantt(made, title=title)).encode())
    if heat is not None:
        write_bytes_atomic(heat, svg(plots.bytes_figure(made, title=title)).encode())


def simulate(
    spec: Spec,
    /,
    topology: Network = None,
    shrink: int = 1,
    cast: bool = False,
    baselines: Annotated[tuple[str, ...], option("NAME...")] = _COMPARED,
    gantt: File = None,
) -> Answer:
    """Run a plan and what people do today through the network simulator: times, bytes, ratio to the lower bound.

    "In order" is with two messages under way at a device, as the transports work; "all at once" posts everything and
    lets the network share itself fairly. The ratio is that of the better.

    Args:
        spec: What to move, as for plan.
        topology: Another network, as YAML.
        shrink: For case:N and multicast:AxB: divides the lengths of the tensor.
        cast: Whether tensors may change their type on the way.
        baselines: send_recv, send_recv_balanced, round_robin, naive_broadcast, size_only, paper_broadcast,
            tree_broadcast, local_allgather, global_allgather, gather_broadcast.
        gantt: What every network card carries when, as SVG.
    """
    writable(gantt)
    job = find_job(spec, topology, shrink)
    made = _planned(job, cast=cast)
    rows = compare(job.case, made, baselines)
    if gantt is not None:
        _draw(made, job.case.name, gantt, None)
    data = {**_facts(made), "case": job.case.name, "methods": rows}
    bound = f"lower bound {seconds_text(made.lower_bound)}"
    shown: list[Any] = [f"{job.case.name}: {bytes_text(_total(made))} in all, {bound}\n", compare_table(rows)]
    shown += [] if gantt is None else [f"wrote {gantt}"]
    return Answer(data, shown)


def _total(made: Plan) -> int:
    return sum(pair.source.nbytes for pair in made.tensors.values())


def run(
    spec: Spec,
    /,
    topology: Network = None,
    shrink: int = 1,
    cast: bool = False,
    links: Links = "bucket",
    rate: Annotated[str, option("RATE")] = "25MB/s",
    repeats: int = 3,
    checksum: bool = True,
    baselines: Annotated[tuple[str, ...], option("NAME...")] = (),
    seed: int = 0,
    timeout: float = 120.0,
) -> Answer:
    """Execute a plan on processes of this machine, one for each device, and check every result bit by bit.

    Links between hosts are slowed to the network's rates, all in proportion so that the slowest card has RATE: then the
    machine's own speed does not matter, and times compare with the plan's. Needs torch (gloo). Status 1 if a result is
    wrong.

    Args:
        spec: What to move, as for plan; at most 512 MiB and 64 devices.
        topology: Another network, as YAML.
        shrink: For case:N and multicast:AxB: divides the lengths of the tensor.
        cast: Whether tensors may change their type on the way.
        links: How links are slowed: token buckets in the processes; network namespaces by the kernel (root); not.
        rate: Of the slowest card.
        repeats: Executions of each plan; the median counts.
        checksum: Whether every chunk is followed by its checksum, compared at each receiver.
        baselines: Further methods to execute, for comparison: send_recv, send_recv_balanced, round_robin,
            naive_broadcast, size_only, paper_broadcast, tree_broadcast.
        seed: Of the tensors' random contents.
        timeout: Seconds until everything is ended.
    """
    from xmesh_reshard.baselines import PLANS
    from xmesh_reshard.claims.trials import contents
    from xmesh_reshard.cli_run import measure

    if unknown := [name for name in baselines if name not in PLANS]:
        raise ValueError(f"cannot execute {unknown[0]!r}; give some of {', '.join(PLANS)}")
    job = find_job(spec, topology, shrink)
    network = job.case.topology if links == "none" else slowed(job.case.topology, quantities.rate(rate))
    job = replace(job, plan=job.plan and on_network(job.plan, network), case=replace(job.case, topology=network))
    whole = contents(job.case.transfers, seed)
    rows: list[Row] = []
    for name in ("plan", *baselines):
        progress().print(f"executing: {WORDS[name]}")
        made = _planned(job, cast=cast) if name == "plan" else PLANS[name](job.case.transfers, network)
        found = measure(
            made, whole, links=None if links == "none" else links, repeats=repeats, checksum=checksum, timeout=timeout
        )
        rows.append({"method": name, **found})
    wrong = sum(row["wrong"] for row in rows)
    bound = rows[0]["lower_bound"]
    cells = [
        (
            WORDS[row["method"]], seconds_text(row["median"]), seconds_text(row["planned"]),
            seconds_text(row["simulated"]), f"{row['median'] / bound:.3f}" if bound and links != "none" else "–",
            bytes_text(row["buffer_peak"]), "equal to the bit" if not row["wrong"] else f"{row['wrong']} parts WRONG",
        )
        for row in rows
    ]  # fmt: skip
    head = ["method", "measured", "planned", "simulated", "measured / bound", "buffers at most", "result"]
    slow = "as fast as this machine is" if links == "none" else f"slowest card {_slowest(network) / 1e6:g} MB/s"
    checks = f"{rows[0]['checked']} checksums compared" if checksum else "no checksums"
    shown = [f"{job.case.name} on {len(job.case.topology.host_of)} devices, {slow}; {checks}\n", table(head, cells)]
    return Answer({"case": job.case.name, "links": links, "methods": rows}, shown, FELL_SHORT if wrong else OK)


def _slowest(network: Any) -> float:
    return min(min(nic.up, nic.down) for host in network.hosts for nic in host.nics)


def schedule(
    kind: Annotated[Kind, option("KIND")],
    /,
    stages: int = 4,
    microbatches: int = 16,
    tf: Time = "1",
    tb: Time = "2",
    tw: Annotated[str | None, option("SECONDS", "half of tb")] = None,
    comm: Time = "0",
    skips: Annotated[tuple[str, ...], option("I-J...", "none")] = (),
    chunks: Count = None,
    split_backward: bool = False,
    max_inflight: Count = None,
    overlap: bool = True,
    gantt: File = None,
    save: File = None,
) -> Answer:
    """Show a pipeline schedule: instructions, simulated time, memory; with KIND all, every kind side by side.

    KIND is gpipe, 1f1b, eager-1f1b (the paper's), interleaved, zero-bubble or all. Times are one number, or one for
    each stage (boundary) as 1,2,1. Interleaved stages are cut into chunks, whose passes take a part of the time.

    Args:
        kind: The rule of the order.
        stages: Devices in the pipeline.
        microbatches: How many.
        tf: Of a forward pass.
        tb: Of a whole backward pass.
        tw: Of the part of it that gives weights' gradients, where it is split.
        comm: Of a transfer, each way.
        skips: Skip connections between stages, as 0-3; each takes as long as a transfer between neighbours.
        chunks: Stages a device, for interleaved.
        split_backward: Whether to put weights' gradients off (weight delaying).
        max_inflight: The most activations that a device may hold.
        overlap: Whether transfers run beside the computation.
        gantt: The timeline as SVG.
        save: The schedule as JSON.
    """
    from xmesh_reshard.cli_pipeline import comparison, one

    writable(gantt, save)
    times = {name: numbers(text, name) for name, text in (("tf", tf), ("tb", tb), ("tw", tw), ("comm", comm))}
    if kind == "all":
        if gantt is not None or save is not None or chunks is not None or max_inflight is not None:
            raise ValueError("--gantt, --save, --chunks and --max-inflight are for one kind; give one instead of all")
        return comparison(_KINDS, stages, microbatches, times, pairs(skips, stages), split_backward)
    options = {"chunks": chunks, "split_backward": split_backward, "max_inflight": max_inflight}
    made, timeline, data, shown = one(kind, stages, microbatches, times, pairs(skips, stages), options, overlap)
    if gantt is not None:
        from xmesh_reshard.pipeline import gantt_svg

        write_bytes_atomic(gantt, gantt_svg(timeline, title=kind).encode())
    if save is not None:
        write_bytes_atomic(save, made.to_json().encode() + b"\n")
    wrote = [f"wrote {file}" for file in (gantt, save) if file is not None]
    return Answer(data, [*shown, *wrote], OK if data["status"] == "COMPLETE" else FELL_SHORT)


def measure(
    processes: int = 2,
    repeats: int = 9,
    timeout: float = 120.0,
    out: File = None,
) -> Answer:
    """Fit α (seconds a message) and β (bytes a second) between processes of this machine; needs torch (gloo).

    Across machines, call xmesh_reshard.transports.measuring.measure_group in every process of a job.

    Args:
        processes: How many.
        repeats: Messages of each size; the median counts.
        timeout: Seconds until everything is ended.
        out: The network as YAML, for --topology.
    """
    from xmesh_reshard.transports.measuring import measure_local

    writable(out)
    found = measure_local(processes, repeats=repeats, timeout=timeout)
    rows = [
        (f"{a} – {b}", seconds_text(fit.alpha), f"{bytes_text(fit.rate)}/s", f"{fit.error:.1%}")
        for (a, b), fit in sorted(found.fits.items())
    ]
    made = found.topology.to_dict()
    if out is not None:
        write_bytes_atomic(out, yaml.safe_dump(made, sort_keys=False).encode())
    shown: list[Any] = [table(["processes", "α", "β", "median deviation from α + n / β"], rows)]
    shown += [] if out is None else [f"wrote {out}"]
    return Answer({"topology": made, "error": found.error}, shown)


def demo(out: File = None) -> Answer:
    """Show in the simulator what multicast, balance, order and eager pipelines gain, in the paper's settings.

    Args:
        out: The figures as JSON.
    """
    from xmesh_reshard.cli_demo import facts, shown

    writable(out)
    data = facts()
    if out is not None:
        write_json_atomic(out, data)
    return Answer(data, [*shown(data), *([] if out is None else [f"wrote {out}"])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    verbs = {
        "plan": plan, "simulate": simulate, "run": run, "schedule": schedule, "measure": measure, "demo": demo,
    }  # fmt: skip
    description = "Move sharded tensors between device meshes as fast as the network allows."
    return package_app("xmesh-reshard", verbs, description, arguments)
