"""Structure reuse and neighbourhoods."""

import numpy as np
import pytest

from poet import Device, zoo
from poet.graph import chain
from poet.grid import build, encode, near_places
from poet.lns import KINDS, Chooser, roster, values, window
from poet.problem import formulate
from poet.search import everything_resident
from poet.structure import Counterparts, periodic_run, repeated_blocks

DEVICE = Device.load("rpi4b")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 2, 1, 2, 1, 2], (0, 2, 3)),
        ([7, 1, 2, 3, 1, 2, 3, 9], (1, 3, 2)),
        ([1, 2, 3, 4], None),
        ([], None),
        ([5, 5, 5, 5], (0, 2, 2)),
    ],
)
def test_periodic_runs(labels, expected):
    assert periodic_run(np.array(labels, dtype=np.int64)) == expected


def test_the_blocks_of_a_transformer():
    graph = zoo.load("bert", blocks=5)
    blocks = repeated_blocks(graph)
    assert blocks.count == 5
    for k in range(5):
        kinds = [graph.ops[i].kind for i in np.flatnonzero(blocks.block == k)]
        assert kinds == [graph.ops[i].kind for i in np.flatnonzero(blocks.block == 0)]
    assert repeated_blocks(chain("c", [1, 2, 3])) is None


def test_a_transplant_copies_decisions_of_one_block_alone():
    graph = zoo.load("bert", blocks=4, gradients="apply")
    problem = formulate(graph, DEVICE)
    grid = build(problem, near_places(graph, 2))
    x = encode(grid, everything_resident(problem)) > 0.5
    alike = Counterparts(grid, repeated_blocks(graph))
    assert (alike.transplanted(x, 1, 2) == x).all()  # the plain step does the same in all blocks
    changed = x.copy()
    inside = alike.table[(alike.table[:, 1] >= 0) & (alike.table[:, 2] >= 0)]
    changed[inside[0, 1]] ^= True
    made = alike.transplanted(changed, 1, 2)
    assert np.flatnonzero(made != changed).tolist() == [inside[0, 2]]


def test_neighbourhoods_hold_what_they_say():
    graph = zoo.load("resnet18_cifar")
    problem = formulate(graph, DEVICE)
    grid = build(problem, near_places(graph, 3))
    who = roster(grid)
    narrow, wide = window(who, 40, 6), window(who, 40, 30)
    assert 0 < narrow.sum() < wide.sum() < len(grid.cost)
    few, all_of_them = values(grid, who, 10, 5), values(grid, who, 10, len(graph.ops))
    assert len(np.unique(who.op[few])) <= 5
    assert all_of_them.sum() > few.sum()
    x = encode(grid, everything_resident(problem)) > 0.5
    chooser = Chooser(grid, x.astype(float), np.random.default_rng(0))
    drawn = {chooser.draw(x)[0] for _ in range(60)}
    assert drawn == set(KINDS)
    before = chooser.size["window"]
    chooser.learn("window", better=True, solved=True)
    assert chooser.size["window"] > before
