"""`solve`: certificates, explanations, monotonicity, and what happens on the way."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from poet import Device, Objective, ScheduleError, Status, Tier, legacy, pareto, solve
from poet.explain import floor_ram
from poet.graph import Graph, Op, Static, Value, chain
from poet.plan import Schedule
from poet.problem import formulate
from poet.schedule import Limits
from poet.solving import SOLVERS, first_schedules, solve_problem
from poet.theory import optimum
from poet.theory_graphs import small_problem

NRF = Device.load("nrf52840")
LINEAR = legacy.graph("linear")


@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_to_the_optimum(seed):
    problem = small_problem(np.random.default_rng(seed), 6, workspace=True, several_outputs=seed % 2 == 0)
    made = solve_problem(problem, Limits(20.0, gap=0.0))
    best = optimum(problem, "indexed")
    assert best is not None
    # schedules to start from may leave the order within a stage, and then be better
    least = optimum(problem, "graph")
    assert least.cost - 1e-6 <= made.certificate.objective <= best.cost + 1e-6
    assert made.certificate.lower_bound <= made.certificate.objective + 1e-9
    assert made.verify().ok
    assert made.status is Status.OPTIMAL


@pytest.mark.parametrize("solver", [s for s in SOLVERS if ":" not in s])
def test_every_engine_gives_a_verified_schedule(solver):
    if solver == "reference":
        pytest.importorskip("cvxpy")
    made = solve(LINEAR, NRF, 3600, 2.0, paging="free", solver=solver, time_limit=20.0)
    assert made.verify(LINEAR).ok
    assert made.certificate.overhead < 0.02
    assert made.peak <= 3600


def test_the_original_graph_at_half_its_memory():
    """The paper's program, solved to the end, costs 1.0895 % over the plain step at 3388 bytes."""
    made = solve(LINEAR, NRF, 3388, 2.0, paging="free", gap=1e-6, time_limit=60.0)
    assert made.certificate.overhead == pytest.approx(0.010895, abs=1e-5)
    assert made.status is Status.OPTIMAL


def test_more_room_never_costs_more():
    surface = pareto(LINEAR, NRF, 5, (1.05, 2.0), paging="free", gap=0.0, time_limit=10.0)
    costs = np.array(
        [[s.certificate.objective if s.certificate else np.inf for s in line] for line in surface.schedules]
    )
    assert (np.diff(costs, axis=1) <= 1e-12).all()
    assert (np.diff(costs, axis=0) <= 1e-12).all()
    for line in surface.schedules:
        bounds = [s.certificate.lower_bound for s in line if s.certificate]
        assert all(a >= b - 1e-12 for a, b in pairwise(bounds))
    assert {row["limit"] for row in surface.rows()} == set(surface.limits)
    front = surface.front()
    assert front
    assert all(s.verify().ok for s in front)


def test_a_schedule_can_be_saved_and_read(tmp_path):
    made = solve(LINEAR, NRF, 3600, "1.5x", time_limit=10.0)
    made.save(tmp_path / "plan.json")
    again = Schedule.load(tmp_path / "plan.json", LINEAR)
    assert again.events == made.events
    assert again.certificate == made.certificate
    assert again.problem.deadline == made.problem.deadline
    assert again.verify().ok
    with pytest.raises(ValueError, match="graph"):
        Schedule.load(tmp_path / "plan.json", legacy.graph("resnet18_cifar"))
    content = json.loads((tmp_path / "plan.json").read_text())
    del content["paging"]
    (tmp_path / "broken.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="paging"):
        Schedule.load(tmp_path / "broken.json", LINEAR)


def test_infeasible_by_an_operation():
    made = solve(LINEAR, NRF, 3000)
    assert made.status is Status.INFEASIBLE
    why = made.explanation
    assert (why.binding, why.smallest_ram, why.impossible_ram) == ("working set", 3256, 3255)
    assert why.operation in {op.name for op in LINEAR.ops}
    assert why.operation in why.sentence
    with pytest.raises(ScheduleError, match=why.operation):
        made.unwrap()
    assert solve(LINEAR, NRF, why.smallest_ram, time_limit=10.0).verify().ok


def test_infeasible_by_static_bytes_the_end_and_the_deadline():
    heavy = LINEAR.with_static(Static(parameters=10_000))
    assert solve(heavy, NRF, 9_000).explanation.binding == "static"
    ops = tuple(Op(f"g{i}", (), (i,), 1.0) for i in range(4))
    ends = Graph("ends", ops, tuple(Value(f"v{i}", 10, keep=True) for i in range(4)))
    why = solve(ends, NRF, 30).explanation
    assert (why.binding, why.smallest_ram) == ("end of the step", 40)
    why = solve(LINEAR, NRF, 4000, 0.5).explanation
    assert why.binding == "deadline"
    assert why.smallest_seconds == pytest.approx(formulate(LINEAR, NRF, 4000).baseline_seconds)


def test_infeasible_by_recomputation_alone_names_what_is_enough():
    graph = Graph(
        "once",
        (Op("a", (), (0,), 1.0, recomputable=False), Op("b", (), (1,), 1.0), Op("c", (0, 1), (2,), 1.0)),
        (Value("va", 4), Value("vb", 4), Value("vc", 4)),
    )
    assert floor_ram(formulate(graph, NRF, 1)) == 12
    deep = Graph(
        "deep",
        (
            Op("a", (), (0,), 1.0, recomputable=False),
            Op("b", (), (1,), 1.0, recomputable=False),
            Op("c", (1,), (2,), 1.0),
            Op("d", (0, 2), (3,), 1.0),
        ),
        (Value("va", 4), Value("vb", 4), Value("vc", 4), Value("vd", 1)),
    )
    why = solve(deep, NRF, 11, tiers=(), time_limit=5.0).explanation
    assert why.binding == "recomputation alone"
    assert why.smallest_ram == 12
    assert why.impossible_ram == 11


def test_infeasible_by_a_deadline_that_memory_breaks():
    made = solve(LINEAR, NRF, 3388, 1.001, tiers=(), time_limit=10.0)
    assert made.status is Status.INFEASIBLE
    assert made.explanation.binding == "deadline"
    seconds = made.explanation.smallest_seconds
    again = solve(LINEAR, NRF, 3388, f"{seconds * 1.0001:.9f}s", tiers=(), time_limit=10.0)
    assert again.verify().ok


def test_room_in_a_tier_is_respected():
    small = Tier("flash", 0.0, 1e6, 0.0, 1e6, power=0.1, capacity=1024)
    made = solve(LINEAR, NRF.with_tiers(small), 3388, 2.0, recompute=True, time_limit=10.0)
    assert made.verify().ok
    none = Tier("flash", 0.0, 1e6, 0.0, 1e6, power=0.1, capacity=0)
    why = solve(LINEAR, NRF.with_tiers(none), 3388, recompute=False, time_limit=5.0).explanation
    assert why.binding == "tiers' room"


def test_weights_lie_between_their_ends():
    ends = [
        solve(LINEAR, NRF, 3388, objective=goal, paging="serial", gap=0.0, time_limit=20.0)
        for goal in (Objective(1.0, 0.0), Objective(1.0, 1e-4), Objective(0.0, 1.0))
    ]
    joules, seconds = [s.joules for s in ends], [s.seconds for s in ends]
    assert joules[0] <= joules[1] + 1e-12 <= joules[2] + 2e-12
    assert seconds[2] <= seconds[1] + 1e-12 <= seconds[0] + 2e-12


def test_starts_are_used_and_bad_ones_passed_over():
    good = solve(LINEAR, NRF, 3388, 2.0, paging="free", time_limit=20.0)
    seen = []
    made = solve(
        LINEAR, NRF, 3388, 2.0, paging="free", time_limit=20.0, starts=[good.events[:-3], good.events],
        on_progress=seen.append,
    )  # fmt: skip
    assert seen[0].doing == "start"
    assert made.certificate.objective <= good.certificate.objective + 1e-12


def test_progress_falls_and_bounds_rise():
    seen = []
    solve(LINEAR, NRF, 3388, 2.0, paging="free", time_limit=20.0, gap=0.0, on_progress=seen.append)
    objectives, bounds = [p.objective for p in seen], [p.lower_bound for p in seen]
    assert objectives == sorted(objectives, reverse=True)
    assert bounds == sorted(bounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ram": "12 parsecs"}, "expected bytes"),
        ({"ram": -1}, "negative"),
        ({"deadline": "soon"}, "deadline"),
        ({"deadline": -1.0}, "deadline"),
        ({"tiers": ("tape",)}, "no tier 'tape'"),
        ({"objective": "fun"}, "objective"),
        ({"solver": "oracle"}, "solver"),
        ({"time_limit": 0.0}, "time_limit"),
        ({"gap": -1.0}, "gap"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve(LINEAR, NRF, **{"ram": 4000, **arguments})


def test_a_profile_without_speed_says_so():
    with pytest.raises(ValueError, match="flops_per_second"):
        solve(LINEAR, Device.load("jetson-tx2"), 4000)


def test_interrupting_returns_the_best_so_far():
    code = (
        "import poet, sys\n"
        "from poet import legacy\n"
        "g = legacy.graph('resnet18_cifar')\n"
        "told = []\n"
        "def tell(p):\n"
        "    if not told: told.append(p); print('started', flush=True)\n"
        "s = poet.solve(g, poet.Device.load('nrf52840'), 262144, 2.0, time_limit=90.0, on_progress=tell)\n"
        "print(s.status.name, s.verify(g).ok, s.certificate.seconds < 60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "started\n"
    time.sleep(1.0)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert out.split() == ["FEASIBLE", "True", "True"], err
    assert "Traceback" not in err


def test_an_interruption_passes_on_where_it_is_asked_to():
    def interrupt(_progress):
        raise KeyboardInterrupt

    graph = legacy.graph("resnet18_cifar")
    with pytest.raises(KeyboardInterrupt):
        solve(graph, NRF, 262144, 2.0, time_limit=20.0, on_progress=interrupt, keep_interrupted=False)
    with pytest.raises(KeyboardInterrupt):
        pareto(LINEAR, NRF, 3, time_limit=5.0, on_schedule=interrupt)


def test_wrong_kinds_of_arguments_are_named():
    problem = formulate(LINEAR, NRF, 4000)
    assert repr(Schedule(problem, Status.UNKNOWN, None, None)).startswith("<Schedule of legacy linear")
    with pytest.raises(ValueError, match="sequence of names"):
        solve(LINEAR, NRF, 4000, tiers="flash")


def test_a_chain_is_solved_as_its_closed_form():
    """Recomputing a chain of equal values in c places: the search finds what the recursion gives."""
    from poet.theory_chains import chain_executions, joint_chain

    for steps, places in ((6, 2), (8, 3)):
        graph = joint_chain(steps)
        device = Device("toy", flops_per_second=1.0, flops_per_joule=1.0)
        room = solve(graph, device, places + 1, gap=0.0, time_limit=30.0)
        if room.certificate is None:
            continue
        assert room.certificate.objective <= chain_executions(steps, places) + graph_backward(graph) + 1e-9


def graph_backward(graph: Graph) -> float:
    return sum(op.flops for op in graph.ops if op.phase == "backward")


def test_first_schedules_fit_or_are_left_out():
    for seed in range(10):
        problem = small_problem(np.random.default_rng(seed), 7, tiers=2)
        for events in first_schedules(problem):
            made = Schedule(problem, Status.FEASIBLE, events, None)
            assert made.verify().ok


def test_plain_steps_need_no_search():
    made = solve(chain("c", [4, 4, 4]), NRF, 100)
    assert made.status is Status.OPTIMAL
    assert made.replay.recomputed == made.replay.paged_out == 0
    assert "optimal" in made.summary()
