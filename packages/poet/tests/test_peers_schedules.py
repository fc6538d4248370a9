"""Chains against checkpoint-schedules, the reference implementation of Revolve and its successors."""

from itertools import product

import pytest

from poet.theory_chains import revolve_steps, two_level_cost

pytestmark = pytest.mark.peer


def counts(schedule):
    """Forward steps, writes to disk and reads from disk."""
    from checkpoint_schedules import Copy, Forward, Move, StorageType

    forward = writes = reads = 0
    for action in schedule:
        if isinstance(action, Forward):
            forward += action.n1 - action.n0
            writes += action.write_ics and action.storage == StorageType.DISK
        elif isinstance(action, Copy | Move):
            reads += action.from_storage == StorageType.DISK
        if schedule.is_exhausted:
            break
    return forward, writes, reads


@pytest.mark.parametrize(("snapshots", "steps"), [(2, 85), (3, 65), (5, 53)])
def test_revolve_of_twenty(snapshots, steps):
    from checkpoint_schedules import Revolve

    assert counts(Revolve(20, snapshots))[0] == steps == revolve_steps(20, snapshots) + 20


def test_revolve_everywhere():
    from checkpoint_schedules import Revolve

    for steps, snapshots in product((2, 3, 7, 12, 25, 40), (1, 2, 3, 6)):
        if snapshots < steps:
            assert counts(Revolve(steps, snapshots))[0] == revolve_steps(steps, snapshots) + steps


def test_hrevolve_of_twenty():
    from checkpoint_schedules import HRevolve

    assert counts(HRevolve(20, 2, 20)) == (62, 2, 2)
    assert two_level_cost(20, 2) == 62 - 20 + 2 * (2 + 2)


def test_two_level_cost_everywhere():
    from checkpoint_schedules import DiskRevolve, HRevolve

    for steps, snapshots in product((5, 7, 12, 20, 30), (1, 2, 3)):
        for schedule in (HRevolve(steps, snapshots, steps), DiskRevolve(steps, snapshots)):
            forward, writes, reads = counts(schedule)
            assert forward - steps + 2 * (writes + reads) == two_level_cost(steps, snapshots)


def test_two_level_cost_at_other_prices():
    from checkpoint_schedules import DiskRevolve, HRevolve

    for write, read in ((1.0, 1.0), (1.0, 4.0), (5.0, 1.0), (2.0, 1.0)):
        costs = []
        for schedule in (HRevolve(20, 2, 20, wd=write, rd=read), DiskRevolve(20, 2, wd=write, rd=read)):
            forward, writes, reads = counts(schedule)
            costs.append(forward - 20 + write * writes + read * reads)
        assert costs[0] == two_level_cost(20, 2, 1.0, write, read) <= costs[1]  # DiskRevolve reads a copy only once
