"""Static addresses: nothing overlaps, and the lowest arena against two other ways of finding it."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from poet.arena import Arena, Block, arena, best_fit, first_fit, lifetimes, memory_layers
from poet.arena_search import optimal
from poet.device import Tier
from poet.events import compute, drop, free, page_in, page_out
from poet.graph import Graph, Op, Static, Value
from poet.replay import replay
from poet.verifier import verify

SEEDS = st.integers(0, 10**6)

# Nine blocks of which at most 5 bytes live at once, and that need 6.
STUBBORN = [(0, 0, 3), (0, 2, 2), (1, 3, 2), (2, 4, 1), (3, 4, 1), (3, 8, 1), (4, 8, 2), (8, 13, 2), (9, 10, 3)]


def blocks_of(rows):
    return [Block(number, *row) for number, row in enumerate(rows)]


def random_blocks(rng, count, last, largest):
    starts = rng.integers(0, last, count)
    ends = np.minimum(starts + rng.integers(0, max(2, last // 2), count), last - 1)
    rows = zip(starts.tolist(), ends.tolist(), rng.integers(1, largest, count).tolist(), strict=True)
    return blocks_of(rows)


def crowded(rng, height, last):
    """Blocks that fill `height` bytes at every point in time."""
    live, rows, gap = [], [], height
    for t in range(last):
        if t:
            gone = [live.pop(int(rng.integers(len(live)))) for _ in range(min(2, len(live)))]
            rows += [(start, t - 1, size) for start, size in gone]
            gap = sum(size for _, size in gone)
        while gap:
            live.append((t, int(rng.integers(1, min(gap, 3) + 1))))
            gap -= live[-1][1]
    return blocks_of(sorted([*rows, *((start, last - 1, size) for start, size in live)]))


def assert_sound(found: Arena):
    for (a, x), (b, y) in combinations(zip(found.blocks, found.offsets, strict=True), 2):
        if a.start <= b.end and b.start <= a.end:
            assert x + a.size <= y or y + b.size <= x
    assert all(offset >= 0 and offset % found.alignment == 0 for offset in found.offsets)
    assert all(o + b.size <= found.height for o, b in zip(found.offsets, found.blocks, strict=True))
    assert found.live_peak <= found.lower_bound <= found.height
    events = max((block.end for block in found.blocks), default=-1) + 1
    live = [sum(b.size for b in found.blocks if b.start <= e <= b.end) for e in range(events)]
    assert found.live_peak == max(live, default=0)


def lowest_by_trying(blocks):
    """Every packing pushed down is a stack in some order."""
    least = sum(block.size for block in blocks)
    for order in permutations(blocks):
        tops = {}
        for b in order:
            below = [top for c, top in tops.items() if c.start <= b.end and b.start <= c.end]
            tops[b] = max(below, default=0) + b.size
        least = min(least, max(tops.values()))
    return least


def packs(blocks, height):
    """Whether a height is enough, by a mixed-integer program: one binary a pair says which lies below."""
    pairs = [(i, j) for i, j in combinations(range(len(blocks)), 2)]
    pairs = [(i, j) for i, j in pairs if blocks[i].start <= blocks[j].end and blocks[j].start <= blocks[i].end]
    n = len(blocks)
    rows, upper = [], []
    for k, (i, j) in enumerate(pairs):
        row = np.zeros(n + len(pairs))
        row[[i, j, n + k]] = 1, -1, height
        rows += [row, -row]
        upper += [height - blocks[i].size, -blocks[j].size]
    most = [height - block.size for block in blocks] + [1] * len(pairs)
    whole = np.array([0] * n + [1] * len(pairs))
    rules = LinearConstraint(np.array(rows), -np.inf, np.array(upper))
    status = milp(np.zeros(len(most)), constraints=rules, integrality=whole, bounds=Bounds(0, most)).status
    assert status in (0, 2)
    return status == 0


def test_a_schedule_as_blocks():
    graph = Graph(
        "step",
        (Op("f", (), (0,), workspace=3), Op("g", (0,), (1,))),
        (Value("x", 8), Value("y", 4)),
        Static(parameters=100),
    )
    tier = Tier("2-bit", 1.0, 1.0, 1.0, 1.0, ratio=0.25, in_ram=True)
    events = (compute(0), page_out(0), free(0), page_in(0), drop(0), compute(1), free(0))
    assert lifetimes(graph, events, [tier]) == [
        Block(0, 0, 2, 8),
        Block(0, 0, 0, 3, "workspace"),
        Block(0, 1, 4, 2, "copy", 0),
        Block(0, 3, 6, 8),
        Block(1, 5, 6, 4),
    ]
    assert memory_layers(graph, events, [tier]) == {
        "static": [100] * 7,
        "forward": [8, 8, 8, 8, 8, 12, 12],
        "copies": [0, 2, 2, 2, 2, 0, 0],
        "workspace": [3, 0, 0, 0, 0, 0, 0],
    }


@pytest.mark.property
@settings(max_examples=150)
@given(seed=SEEDS)
def test_live_bytes_are_the_memory(random_case, seed):
    problem, events = random_case(seed)
    blocks = lifetimes(problem.graph, events, problem.tiers)
    live = [sum(b.size for b in blocks if b.start <= e <= b.end) for e in range(len(events))]
    assert live == replay(problem, events).memory.tolist()
    layers = memory_layers(problem.graph, events, problem.tiers)
    memory = verify(problem.graph, problem.device, events, limit=10**6).memory
    assert (
        np.array(list(layers.values()), dtype=float).reshape(len(layers), len(events)).sum(axis=0).tolist()
        == [*memory][: len(events)]
    )


@pytest.mark.property
@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, count=st.integers(0, 25), alignment=st.sampled_from([1, 4, 16]))
def test_nothing_overlaps(seed, count, alignment):
    blocks = random_blocks(np.random.default_rng(seed), count, 12, 40)
    found = [first_fit(blocks, alignment), best_fit(blocks, alignment), optimal(blocks, 5.0, alignment)]
    for each in found:
        assert_sound(each)
        assert each.blocks == tuple(blocks)
    assert found[2].proved
    assert found[2].height <= min(found[0].height, found[1].height)


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_the_lowest_arena_by_trying_every_order(seed):
    blocks = random_blocks(np.random.default_rng(seed), 6, 6, 8)
    found = optimal(blocks, 10.0, alignment=1)
    assert (found.height, found.proved) == (lowest_by_trying(blocks), True)


@pytest.mark.parametrize("seed", range(8))
def test_the_lowest_arena_by_an_integer_program(seed):
    blocks = crowded(np.random.default_rng(seed), 6, 7)
    found = optimal(blocks, 10.0, alignment=1)
    assert_sound(found)
    assert found.proved
    assert packs(blocks, found.height)
    assert not packs(blocks, found.height - 1)


def test_some_blocks_need_more_than_lives_at_once():
    blocks = blocks_of(STUBBORN)
    assert not packs(blocks, 5)
    found = optimal(blocks, 10.0, alignment=1)
    assert_sound(found)
    assert (found.live_peak, found.height, found.lower_bound, found.proved) == (5, 6, 6, True)
    assert found.fragmentation == pytest.approx(0.2)
    # Fewer of them do not, and in other units it is the same.
    assert all(optimal(blocks[:i] + blocks[i + 1 :], 10.0, alignment=1).height == 5 for i in range(9))
    large = blocks_of((start, end, 1000 * size) for start, end, size in STUBBORN)
    assert optimal(large, 10.0, alignment=1).height == 6000


def test_the_search_beats_first_fit_where_that_fragments():
    blocks = random_blocks(np.random.default_rng(4), 60, 80, 1000)
    greedy = first_fit(blocks, alignment=1)
    found = optimal(blocks, 30.0, alignment=1)
    assert_sound(found)
    assert greedy.height > greedy.live_peak
    assert (found.height, found.fragmentation, found.proved) == (found.live_peak, 0.0, True)


def test_stretches_of_time_are_packed_apart():
    later = [(start + 20, end + 20, 2 * size) for start, end, size in STUBBORN]
    found = optimal(blocks_of([*STUBBORN, *later]), 10.0, alignment=1)
    assert_sound(found)
    assert (found.height, found.proved) == (12, True)


def test_out_of_time_is_not_a_proof():
    found = optimal(blocks_of(STUBBORN), 0.0, alignment=1)
    assert_sound(found)
    assert found.height >= 6
    assert found.lower_bound == 5
    assert not found.proved


def test_alignment_pads():
    blocks = blocks_of([(0, 1, 5), (0, 1, 5)])
    assert first_fit(blocks).offsets == (0, 16)
    found = first_fit(blocks, 16)
    assert (found.height, found.live_peak, found.lower_bound, found.fragmentation) == (32, 10, 32, 2.2)
    assert first_fit([], 16).height == optimal([]).height == 0
    assert arena((), (), 16).fragmentation == 0.0


@pytest.mark.parametrize(
    ("block", "alignment"), [(Block(0, 0, 1, 4), 0), (Block(0, 0, 1, 0), 16), (Block(0, 2, 1, 4), 16)]
)
def test_bad_blocks_are_refused(block, alignment):
    for pack in (first_fit, best_fit):
        with pytest.raises(ValueError, match=r"alignment must be|a block needs bytes"):
            pack([block], alignment)
    with pytest.raises(ValueError, match=r"alignment must be|a block needs bytes"):
        optimal([block], 1.0, alignment)
