"""Schedules of chains against checkpoint-schedules': its schedules replayed by our rules, and never beaten by them."""

from itertools import product

import pytest

from poet import Device, Tier
from poet.events import compute
from poet.problem import formulate
from poet.replay import replay
from poet.solving import solve
from poet.stages import settle
from poet.theory_chains import chain_executions, joint_chain, revolve_steps

pytestmark = pytest.mark.peer
SIZES = [(steps, snapshots) for steps, snapshots in product((4, 7, 12, 20), (1, 2, 3, 5)) if snapshots < steps]
TOY = Device("toy", flops_per_second=1.0, compute_power=1.0)


def translated(schedule, steps):
    """Operations of `joint_chain(steps - 1)` in the order in which a schedule of that many steps runs them.

    The state before step k + 1 is what operation k makes; the state before step 0 is static. A step executed with its
    tape is part of its reversal.
    """
    from checkpoint_schedules import Forward, Reverse

    operations = []
    for action in schedule:
        if isinstance(action, Forward):
            operations += range(action.n0, action.n1 - bool(action.write_adj_deps))
        elif isinstance(action, Reverse):
            operations += [2 * (steps - 1) - k for k in reversed(range(action.n0, action.n1)) if k]
        if schedule.is_exhausted:
            break
    return [compute(i) for i in operations]


@pytest.mark.parametrize(("steps", "snapshots"), SIZES)
def test_revolve_fits_one_place_more_than_it_has_snapshots(steps, snapshots):
    from checkpoint_schedules import Revolve

    problem = formulate(joint_chain(steps - 1), TOY, snapshots + 1, objective="time")
    events = settle(problem, translated(Revolve(steps, snapshots), steps))
    seen = replay(problem, events)
    assert seen.peak <= snapshots + 1
    executions = seen.cost - (steps - 1)  # without the backward operations
    assert executions == revolve_steps(steps, snapshots)
    assert chain_executions(steps - 1, snapshots + 1) <= executions


@pytest.mark.parametrize(("steps", "snapshots"), [(8, 2), (12, 3)])
def test_solve_needs_no_more_than_revolve(steps, snapshots):
    from checkpoint_schedules import Revolve

    problem = formulate(joint_chain(steps - 1), TOY, snapshots + 1, objective="time")
    peer = replay(problem, settle(problem, translated(Revolve(steps, snapshots), steps))).cost
    ours = solve(problem.graph, TOY, snapshots + 1, objective="time", time_limit=3.0)
    assert ours.certificate.objective <= peer
    assert ours.certificate.objective == chain_executions(steps - 1, snapshots + 1) + steps - 1


@pytest.mark.parametrize(("write", "read"), [(2.0, 2.0), (1.0, 4.0)])
def test_solve_needs_no_more_than_hrevolve(write, read):
    from checkpoint_schedules import Copy, Forward, HRevolve, Move, StorageType

    steps, snapshots = 10, 2
    device = TOY.with_tiers(Tier("disk", 0.0, 1 / read, 0.0, 1 / write))
    ours = solve(joint_chain(steps - 1), device, snapshots + 1, objective="time", paging="serial", time_limit=5.0)
    cost, schedule = 0.0, HRevolve(steps, snapshots, steps, wd=write, rd=read)
    for action in schedule:
        if isinstance(action, Forward):
            cost += action.n1 - action.n0
            cost += write * (action.write_ics and action.storage == StorageType.DISK)
        elif isinstance(action, Copy | Move):
            cost += read * (action.from_storage == StorageType.DISK)
        if schedule.is_exhausted:
            break
    # in both: an execution with tape for each step, here within the backward operation
    assert ours.certificate.objective - (steps - 1) <= cost - steps
