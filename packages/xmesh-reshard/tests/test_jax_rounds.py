"""Rounds of permutations: what they carry, in what order, and how many there are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmesh_reshard.assembling import assemble
from xmesh_reshard.jax_rounds import SMALLEST_CHUNK, Batch, Load, batches, slabs
from xmesh_reshard.layout import Layout, Mesh
from xmesh_reshard.plans import Hop, Message, Piece, Transfer
from xmesh_reshard.topology import Topology


@st.composite
def trees(draw):
    """Random trees over six devices, as (bytes, legs); every leg starts where an earlier one has ended."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        order = draw(st.permutations(range(6)))[: draw(st.integers(2, 6))]
        legs = [(order[draw(st.integers(0, k - 1))], order[k]) for k in range(1, len(order))]
        found.append((2 * draw(st.integers(1, 40)), legs))
    return found


def loads(trees):
    return tuple(Load(tuple(Hop(*leg) for leg in legs), (), size) for size, legs in trees)


def run(batch):
    """Carry the loads out in NumPy, as the compiled program does."""
    rounds = batch.rounds
    buffers = np.zeros((len(rounds.devices), batch.words), np.int64)
    for k, load in enumerate(batch.loads):
        first = batch.places[load.hops[0].source][k]
        row = rounds.devices.index(load.hops[0].source)
        buffers[row, first : first + load.nbytes // batch.word] = 1000 * (k + 1) + np.arange(load.nbytes // batch.word)
    for r, (pairs, width) in enumerate(zip(rounds.pairs, rounds.widths, strict=True)):
        sent = {target: buffers[source, rounds.send[source, r] :][:width].copy() for source, target in pairs}
        for target, words in sent.items():
            n = rounds.count[target, r]
            buffers[target, rounds.receive[target, r] :][:n] = words[:n]
    return rounds, buffers


@pytest.mark.property
@given(trees(), st.sampled_from([1, 2]), st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_every_receiver_gets_every_load(some, word, chunk):
    batch = Batch(some := loads(some), word, chunk)
    rounds, buffers = run(batch)
    for k, load in enumerate(some):
        for device in load.receivers:
            first = batch.places[device][k]
            words = buffers[rounds.devices.index(device)][first : first + load.nbytes // word]
            assert words.tolist() == list(range(1000 * (k + 1), 1000 * (k + 1) + load.nbytes // word))


@pytest.mark.property
@given(trees(), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_rounds_are_permutations_and_carry_nothing_twice(some, chunk):
    batch = Batch(some := loads(some), 1, chunk)
    rounds = batch.rounds
    for pairs in rounds.pairs:
        assert len({source for source, _ in pairs}) == len({target for _, target in pairs}) == len(pairs) > 0
    assert rounds.count.sum() == sum(load.nbytes * len(load.hops) for load in some)
    assert [(p, w) for p, w, first, end in rounds.runs() for _ in range(first, end)] == [
        *zip(rounds.pairs, rounds.widths, strict=True)
    ]


@pytest.mark.parametrize("hops", [1, 2, 5])
@pytest.mark.parametrize("chunks", [1, 3, 16])
def test_a_chain_takes_as_many_rounds_as_the_closed_form(hops, chunks):
    """K chunks over A hops: K + A - 1 (Sec. 3.1: t + A t / K, one hop more or less)."""
    chain = tuple(Hop(k, k + 1) for k in range(hops))
    rounds = Batch((Load(chain, (), 8 * chunks),), 4, 8).rounds
    assert len(rounds.widths) == chunks + hops - 1
    assert len(rounds.runs()) <= 2 * hops - 1  # what fills, the steady state, what drains


def test_disjoint_loads_share_rounds():
    ring = tuple(Load((Hop(k, (k + 1) % 4),), (), 100) for k in range(4))
    assert len(Batch(ring, 1, 50).rounds.widths) == 2


@pytest.mark.property
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=5),
    st.integers(1, 200),
)
@settings(max_examples=100, deadline=None)
def test_slabs_hold_every_byte_once_in_order(boxes, most):
    pieces = [Piece(str(k), (0, 0, 0), box, int(np.prod(box)) * 2) for k, box in enumerate(boxes)]
    found = list(slabs(pieces, most))
    for some in found:
        assert len(some) == 1 or sum(piece.nbytes for piece in some) <= most
        for piece in some:
            lengths = np.subtract(piece.upper, piece.lower)
            assert piece.nbytes == 2 * lengths.prod()
            assert piece.nbytes <= most or lengths.prod() == 1
    inside = [
        (piece.tensor, *(np.add(piece.lower, i)).tolist())
        for some in found
        for piece in some
        for i in np.ndindex(*np.subtract(piece.upper, piece.lower).tolist())
    ]
    assert inside == [(piece.tensor, *i) for piece in pieces for i in np.ndindex(*piece.upper)]


def chained(sizes, chunk):
    """A plan of chains 0 → 1 → 2, one for each tensor."""
    transfers, messages = {}, []
    for k, n in enumerate(sizes):
        layouts = [Layout.sharded((n,), "int8", Mesh(np.array(d)), "R") for d in ([0], [1, 2])]
        transfers[str(k)] = Transfer(*layouts)
        hops = (Hop(0, 1, 0, 0), Hop(1, 2, 0, 0))
        messages.append(Message(k, "chain", hops, (Piece(str(k), (0,), (n,), n),), n, chunk, 0.0, 0.0))
    return assemble(transfers, Topology.uniform(3, 1), messages)


@pytest.mark.parametrize("buffer", [100, 1000, 10**6])
def test_batches_keep_to_the_buffer(buffer):
    plan = chained([700, 40, 30, 0, 900], 8)
    cut = batches(plan, buffer=buffer, most_rounds=8)
    for batch in cut:
        ends = [f + batch.loads[k].nbytes for places in batch.places.values() for k, f in places.items()]
        assert max(ends) <= buffer
    assert sum(load.nbytes for batch in cut for load in batch.loads) == 1670
    assert (len(cut) == 1) == (buffer == 10**6)


def test_chunks_grow_until_the_rounds_are_few():
    n = 40 * SMALLEST_CHUNK
    (fine,) = batches(chained([n], SMALLEST_CHUNK), buffer=2**30, most_rounds=100)
    (coarse,) = batches(chained([n], SMALLEST_CHUNK), buffer=2**30, most_rounds=10)
    assert len(fine.rounds.widths) == 41  # 40 chunks over 2 hops
    assert coarse.chunk == 8 * SMALLEST_CHUNK
    assert len(coarse.rounds.widths) == 6


def test_words_are_as_long_as_the_smallest_element():
    def word(*names):
        layouts = {n: [Layout.sharded((8,), n, Mesh(np.array([d])), "R") for d in (0, 1)] for n in names}
        pieces = tuple(Piece(n, (0,), (8,), 8 * layouts[n][0].itemsize) for n in names)
        size = sum(piece.nbytes for piece in pieces)
        message = Message(0, "chain", (Hop(0, 1, 0, 0),), pieces, size, size, 0.0, 0.0)
        plan = assemble({n: Transfer(*pair) for n, pair in layouts.items()}, Topology.uniform(2, 1), [message])
        return batches(plan, buffer=2**20, most_rounds=8)[0].word

    assert (word("float32"), word("complex64", "float32"), word("bfloat16", "int32"), word("bool", "float32")) == (
        4, 4, 2, 1,
    )  # fmt: skip
