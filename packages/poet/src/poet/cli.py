"""The command: `solve`, `pareto`, `run`, `devices`, `demo` and `claims`."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from common_core.cli import FELL_SHORT, OK, Answer, option, package_app, writable
from common_core.console import progress, table
from common_core.records import write_bytes_atomic, write_json_atomic
from poet.cli_inputs import find_graph, find_model, find_objective
from poet.cli_show import DEVICE_HEAD, device_row, watched
from poet.device import Device
from poet.units import show_bytes

Gradients = Literal["keep", "static", "apply"]
Optimizer = Literal["sgd", "momentum", "adam"]
Paging = Literal["overlap", "serial", "free"]
File = Annotated[Path | None, option("FILE", "not written")]
Ram = Annotated[str | None, option("BYTES", "the device's")]
Deadline = Annotated[str | None, option("TIME", "none")]
Tiers = Annotated[tuple[str, ...] | None, option("NAME...", "all of the device's")]
Count = Annotated[int | None, option("INT", "the network's own")]


def solve(
    graph: Annotated[str, option("GRAPH")],
    /,
    device: str = "nrf52840",
    ram: Ram = None,
    deadline: Deadline = None,
    objective: str = "energy",
    tiers: Tiers = None,
    recompute: bool = True,
    paging: Paging = "overlap",
    solver: str = "auto",
    time_limit: float = 60.0,
    gap: float = 1e-4,
    workers: int = 1,
    seed: int = 0,
    batch: Count = None,
    image: Count = None,
    seq: Count = None,
    gradients: Annotated[Gradients | None, option("{keep,static,apply}", "keep")] = None,
    optimizer: Annotated[Optimizer | None, option("{sgd,momentum,adam}", "sgd")] = None,
    out: File = None,
    c_header: File = None,
    plot: File = None,
) -> Answer:
    """Schedule a training step in limited memory.

    GRAPH is a network of the zoo such as resnet18_cifar, one of the original's as legacy:resnet18_cifar, or a .json
    file that poet.save_graph wrote. Energy is modelled from the device's profile. Status 1 if nothing fits.

    Args:
        graph: The training step.
        device: A built-in device, or a .json profile.
        ram: Limit, parameters included: 262144, 256KiB, or 40% of what the plain step needs.
        deadline: 1.5x the plain step's duration, or 90s, 200ms.
        objective: energy, time, or weights of a joule and a second as 1:0.5.
        tiers: Where values may be paged; ram alone allows none.
        recompute: Whether operations may run again.
        paging: Whether transfers run beside the computation, stop it, or take no time.
        solver: auto, cpsat, tight, rounding, reference.
        time_limit: Seconds for the search; Ctrl-C ends it early with the best so far.
        gap: Share of the plain step's cost within which the search may end.
        workers: Threads.
        seed: Seed of the search.
        batch: Batch size of a network of the zoo.
        image: Pixels a side.
        seq: Tokens.
        gradients: What becomes of parameters' gradients: kept, added in place, or applied at once.
        optimizer: What the optimizer remembers.
        out: The schedule as JSON.
        c_header: The schedule as a C table with static addresses.
        plot: Memory over the step as SVG.
    """
    from poet.solving import solve as solve_graph

    writable(out, c_header, plot)
    options = {"batch": batch, "image": image, "seq": seq, "gradients": gradients, "optimizer": optimizer}
    step = find_graph(graph, options)
    with watched("searching") as tell:
        schedule = solve_graph(
            step, Device.load(device), ram, _factor(deadline), objective=find_objective(objective), tiers=tiers,
            recompute=recompute, paging=paging, solver=solver, time_limit=time_limit, gap=gap, workers=workers,
            seed=seed, on_progress=tell,
        )  # fmt: skip
    data = _facts(schedule)
    if schedule.events is None:
        return Answer(data, schedule.summary(), FELL_SHORT)
    schedule.verify(step).unwrap()
    shown: list[Any] = [schedule.summary(), "checked by the independent verifier: no rule is broken"]
    data["verified"] = True
    if out is not None:
        schedule.save(out)
    if c_header is not None:
        data["arena"] = _export(schedule, c_header)
        shown.append("arena of {height} bytes, {fragmentation:.2%} above the live peak".format(**data["arena"]))
    if plot is not None:
        _draw(schedule, plot)
    shown += [f"wrote {file}" for file in (out, c_header, plot) if file is not None]
    return Answer(data, shown)


def _factor(deadline: str | None) -> float | str | None:
    """A bare number is a factor, as in the library."""
    try:
        return None if deadline is None else float(deadline)
    except ValueError:
        return deadline


def _facts(schedule: Any) -> dict[str, Any]:
    """A schedule's figures for a program."""
    problem, proof = schedule.problem, schedule.certificate
    facts: dict[str, Any] = {
        "graph": problem.graph.name, "device": problem.device.name, "limit": problem.limit,
        "deadline": problem.deadline if isfinite(problem.deadline) else None, "status": schedule.status.name,
    }  # fmt: skip
    if proof is None:
        why = schedule.explanation
        return {
            **facts,
            "explanation": why.sentence if why else None,
            "smallest_ram": why.smallest_ram if why else None,
        }
    seen = schedule.replay
    return {
        **facts, "peak": schedule.peak, "static": problem.graph.static.total, "seconds": seen.makespan,
        "modelled_joules": seen.joules if isfinite(seen.joules) else None, "objective": proof.objective,
        "lower_bound": proof.lower_bound, "baseline": proof.baseline, "overhead": proof.overhead, "gap": proof.gap,
        "solver": proof.solver, "bound_by": proof.bound_by, "class": proof.optimality, "searched": proof.seconds,
        "recomputed": seen.recomputed, "paged_out": seen.paged_out, "paged_in": seen.paged_in,
    }  # fmt: skip


def _export(schedule: Any, file: Path) -> dict[str, Any]:
    """Write a C header; static bytes are the firmware's own."""
    from poet.arena import lifetimes
    from poet.arena_search import optimal
    from poet.export_c import to_c

    problem = schedule.problem
    placed = optimal(lifetimes(problem.graph, schedule.events, problem.tiers))
    text = to_c(problem.graph, schedule.events, placed, problem.tiers)
    write_bytes_atomic(file, text.encode())
    return {"height": placed.height, "live_peak": placed.live_peak, "fragmentation": placed.fragmentation}


def _draw(schedule: Any, file: Path) -> None:
    from common_core.plotting import svg
    from poet.arena import memory_layers
    from poet.plots import memory_figure

    problem = schedule.problem
    layers = memory_layers(problem.graph, schedule.events, problem.tiers)
    figure = memory_figure(layers, schedule.events, limit=problem.limit, title=problem.graph.name)
    write_bytes_atomic(file, svg(figure).encode())


def pareto(
    graph: Annotated[str, option("GRAPH")],
    /,
    device: str = "nrf52840",
    rams: Annotated[tuple[str, ...], option("BYTES...", "evenly spread")] = (),
    limits: int = 6,
    deadlines: Annotated[tuple[str, ...], option("TIME...", "none")] = (),
    objective: str = "energy",
    tiers: Tiers = None,
    time_limit: float = 10.0,
    seed: int = 0,
    batch: Count = None,
    image: Count = None,
    seq: Count = None,
    gradients: Annotated[Gradients | None, option("{keep,static,apply}", "keep")] = None,
    out: File = None,
    plot: File = None,
) -> Answer:
    """Trade memory, time and modelled energy: schedules over many limits of RAM and deadlines.

    Each search starts from the schedules found before it, so that cost never grows with RAM or with the deadline.

    Args:
        graph: The training step, as for solve.
        device: A built-in device, or a .json profile.
        rams: Limits, as for solve.
        limits: How many, from the least to what the plain step needs, unless rams are given.
        deadlines: Deadlines as for solve, shortest first.
        objective: energy, time, or weights as 1:0.5.
        tiers: Where values may be paged; ram alone allows none.
        time_limit: Seconds for each search.
        seed: Seed of the search.
        batch: Batch size of a network of the zoo.
        image: Pixels a side.
        seq: Tokens.
        gradients: What becomes of parameters' gradients.
        out: All rows as JSON.
        plot: Cost against RAM as SVG.
    """
    from poet.sweep import pareto as sweep

    writable(out, plot)
    step = find_graph(graph, {"batch": batch, "image": image, "seq": seq, "gradients": gradients})
    with watched("searching") as tell:
        surface = sweep(
            step, Device.load(device), rams or limits, [_factor(d) for d in deadlines] or [None],
            objective=find_objective(objective), tiers=tiers, time_limit=time_limit, seed=seed, on_progress=tell,
        )  # fmt: skip
    rows = surface.rows()
    data = {"graph": step.name, "device": device, "rows": rows}
    if out is not None:
        write_json_atomic(out, data)
    if plot is not None:
        _draw_surface(surface, plot)
    head = ["RAM", "deadline", "overhead", "gap", "seconds", "modelled joules", "recomputed", "paged out"]
    shown: list[Any] = [f"{step.name} on {device}\n", table(head, [_row(row) for row in rows])]
    shown += [f"wrote {file}" for file in (out, plot) if file is not None]
    return Answer(data, shown, OK if any("overhead" in row for row in rows) else FELL_SHORT)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    first = show_bytes(row["limit"]), str(row["deadline"] or "–")
    if "overhead" not in row:
        return (*first, row["status"].lower(), "", "", "", "", "")
    return (
        *first, f"{row['overhead']:.3%}", f"{row['gap']:.3%}", f"{row['seconds']:.4g}", f"{row['joules']:.4g}",
        str(row["recomputed"]), str(row["paged_out"]),
    )  # fmt: skip


def _draw_surface(surface: Any, file: Path) -> None:
    from common_core.plotting import svg
    from poet.plots import pareto_figure

    curves: dict[str, list[tuple[int, float]]] = {}
    bounds: list[tuple[int, float]] = []
    for deadline, line in zip(surface.deadlines, surface.schedules, strict=True):
        made = [(s.problem.limit, s.certificate) for s in line if s.certificate is not None]
        if made:
            bounds = bounds or [(limit, 100 * (proof.lower_bound / proof.baseline - 1)) for limit, proof in made]
            name = "no deadline" if deadline is None else f"deadline {deadline}"
            curves[name] = [(limit, 100 * proof.overhead) for limit, proof in made]
    weights = surface.schedules[0][0].problem.objective
    cost = {(1.0, 0.0): "modelled energy", (0.0, 1.0): "time"}.get((weights.energy, weights.time), "cost")
    figure = pareto_figure(curves, bounds, cost=f"{cost} above the plain step (%)")
    write_bytes_atomic(file, svg(figure).encode())


def run(
    model: Annotated[str, option("MODEL")],
    /,
    ram: str = "60%",
    steps: int = 10,
    deadline: Deadline = None,
    tiers: Tiers = None,
    page_dir: Annotated[Path | None, option("DIR", "the folder for temporary files")] = None,
    gradients: Literal["keep", "static"] = "keep",
    time_limit: float = 10.0,
    width: Count = None,
    batch: Count = None,
    depth: Count = None,
    seed: int = 0,
) -> Answer:
    """Train a model for some steps within a limit, and measure peak and time beside eager execution in turns.

    MODEL is convnet, encoder or perceptron, or module:function, found from the present folder too: a function without
    arguments that returns (model, loss_fn, (inputs, targets)). The model is profiled on this machine. Status 1 if no
    schedule keeps the limit, or a result differs from eager execution.

    Args:
        model: The model.
        ram: Limit, parameters included; or 60% of what the plain step needs beyond parameters and gradients.
        steps: Steps of each.
        deadline: As for solve.
        tiers: Where values may be paged: host, disk; ram alone allows none.
        page_dir: Folder for pages.
        gradients: Whether gradients are counted as left at the end, or as always there.
        time_limit: Seconds for the search.
        width: Features or channels of a built-in model.
        batch: Samples of a built-in model.
        depth: Layers or stages of a built-in model.
        seed: Seed of weights, data and search.
    """
    from poet.cli_run import compare
    from poet.compiling import MemoryLimitError

    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    sizes = {"width": width, "batch": batch, "depth": depth}
    given = {key: value for key, value in sizes.items() if value is not None}
    options: dict[str, Any] = {
        "ram": ram, "deadline": _factor(deadline), "tiers": tiers, "page_dir": page_dir, "gradients": gradients,
        "time_limit": time_limit,
    }  # fmt: skip
    with watched("searching") as tell:
        try:
            data = compare(lambda: find_model(model, given), steps, seed, **options, on_progress=tell)
        except MemoryLimitError as error:
            return Answer({"model": model, "ram": ram, "explanation": str(error)}, str(error), FELL_SHORT)
    rows = [
        (name, show_bytes(data[f"{name}_peak"]), f"{1e3 * data[f'{name}_seconds']:.2f} ms")
        for name in ("eager", "ours")
    ]
    same = "equal to the bit" if data["equal"] else "DIFFERENT"
    kept = "yes" if data["kept"] else "NO"
    ratios = f"peak {data['peak_ratio']:.1%} of eager's, time {data['time_ratio']:.2f} times"
    shown: list[Any] = [
        f"{data['report']}\n",
        table(["", "measured peak", "median step"], rows),
        f"\n{ratios}; limit kept: {kept}; losses and gradients {same}",
    ]
    return Answer({"model": model, "ram": ram, **data}, shown, OK if data["equal"] and data["kept"] else FELL_SHORT)


def devices(
    names: Annotated[tuple[str, ...], option("DEVICE")] = (),
    /,
    profile: bool = False,
    seconds: float = 2.0,
    page_dir: Annotated[Path | None, option("DIR", "the folder for temporary files")] = None,
    cuda: bool = False,
    out: File = None,
) -> Answer:
    """List the built-in device profiles and what they lack, or measure this machine.

    Args:
        names: Devices or .json profiles to show with the origin of each entry.
        profile: Measure this machine: speed, disk, and the way to the host of a GPU.
        seconds: About how long to measure.
        page_dir: Folder on the disk that is meant.
        cuda: Measure the GPU.
        out: The profile as JSON, for --device.
    """
    writable(out)
    if out is not None and not profile and len(names) != 1:
        raise ValueError("--out writes one profile: give --profile, or one device")
    found = [Device.load(name) for name in names or ([] if profile else Device.names())]
    if profile:
        from poet.profiling import profile_device

        progress().print(f"measuring for about {seconds:g} s")
        found = [*found, profile_device(page_dir, seconds, device="cuda" if cuda else "cpu")]
    shown: list[Any] = [table(DEVICE_HEAD, [device_row(device) for device in found])]
    if names or profile:
        shown += [
            "",
            table(["device", "entry", "from"], [(d.name, k, v) for d in found for k, v in d.provenance.items()]),
        ]
    if out is not None:
        write_json_atomic(out, found[-1].to_json())
        shown.append(f"wrote {out}")
    return Answer({device.name: device.to_json() for device in found}, shown)


def demo(seed: int = 0) -> Answer:
    """Show on a network for a Cortex-M4F what recomputation and paging cost alone and together.

    Args:
        seed: Seed of the search.
    """
    from poet.cli_demo import chart, facts, rows

    with watched("searching"):
        data = facts(seed)
    head = ["", "modelled energy", "above the plain step", "recomputed", "paged out"]
    limit, plain = data["limit"], data["plain_peak"]
    there = f"there are {show_bytes(limit)}, {show_bytes(data['static'])} of them for parameters and gradients"
    proved = f"By whatever means, at least {data['bound']:.2%} are needed ({data['bound_by']}; {data['class']})"
    shown: list[Any] = [
        f"{data['graph']} on {data['device']}: the plain step needs {show_bytes(plain)}, {there}.\n",
        table(head, rows(data["ways"])),
        f"\n{proved}. Energy is modelled from the device's profile.\n",
        "Activations over the plain step:\n",
        chart(data["plain_memory"], data),
        "\nActivations over the best schedule, which the independent verifier has checked:\n",
        chart(data["memory"], data),
    ]
    return Answer({key: value for key, value in data.items() if not key.endswith("memory")}, shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    verbs = {"solve": solve, "pareto": pareto, "run": run, "devices": devices, "demo": demo}
    description = "Training in the memory there is, by certified schedules of recomputation and paging."
    return package_app("poet", verbs, description, arguments)
