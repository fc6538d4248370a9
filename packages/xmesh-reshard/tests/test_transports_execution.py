"""Plans through the oracle, through blocking links and in rounds: bitwise equal to slicing the global arrays."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmesh_reshard import Layout, Mesh, Topology, Transfer
from xmesh_reshard.assembling import assemble
from xmesh_reshard.layout import dtype_of
from xmesh_reshard.planning import plan
from xmesh_reshard.plans import Hop, Message, Piece
from xmesh_reshard.transports import CorruptedError, DeadlockError, PartError, execute_reference, execute_threads
from xmesh_reshard.transports.executor import LARGEST, execute, program_of, spans_of
from xmesh_reshard.transports.packing import NumpyPacker
from xmesh_reshard.transports.rounds import depths, execute_rounds
from xmesh_reshard.transports.threads import Fabric, run_devices

MESHES = [(1,), (2,), (3,), (5,), (2, 2), (2, 3), (3, 2), (2, 2, 2), (2, 1, 3), (12,)]
TYPES = ["float32", "bfloat16", "int8", "float16", "bool", "float64"]


def pairs_of(draw, world, dims=4, tensors=3):
    """Random transfers on the devices 0 to world - 1.

    No strategy of its own: the checks of types at test time draw random numbers, which strategies must not.
    """
    found = {}
    for k in range(draw(st.integers(1, tensors))):
        shape = tuple(draw(st.lists(st.integers(0, 7), max_size=dims)))
        types = draw(st.sampled_from(TYPES)), draw(st.sampled_from(TYPES))
        found[f"t{k}"] = tuple(layouts(draw, shape, dtype, world) for dtype in types)
    return found


def layouts(draw, shape, dtype, world):
    grid = draw(st.sampled_from([m for m in MESHES if np.prod(m) <= world]))
    devices = np.array(draw(st.permutations(range(world))))[: int(np.prod(grid))].reshape(grid)
    axes, spec = draw(st.permutations(range(len(grid)))), []
    for _ in shape:
        count = draw(st.integers(0, min(2, len(axes))))
        spec.append(tuple(axes[:count]))
        axes = axes[count:]
    return Layout.sharded(shape, dtype, Mesh(devices), spec)


def global_arrays(pairs, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(-5, 100, source.shape).astype(dtype_of(source.dtype)) for name, (source, _) in pairs.items()
    }


def parts_of(pairs, whole, devices):
    return {
        d: {name: whole[name][(*s.slices(d), ...)] for name, (s, _) in pairs.items() if d in s.position}
        for d in devices
    }


def check(pairs, whole, new):
    """Every device has the slices that its target layouts say, and nothing else."""
    for device, parts in new.items():
        want = {name: t for name, (_, t) in pairs.items() if device in t.position}
        assert parts.keys() == want.keys()
        for name, target in want.items():
            values = whole[name].astype(dtype_of(target.dtype))[target.slices(device)]
            assert parts[name].dtype == values.dtype
            assert parts[name].shape == values.shape
            assert parts[name].tobytes() == values.tobytes()


def by_hand(pairs, topology, order):
    """One chain for each tile of the target, from its first holder, in any order: cruder than the planner's plans."""
    messages, copies = [], []
    for name, (source, target) in pairs.items():
        transfer, size = Transfer(source, target), None
        size = dtype_of(transfer.wire).itemsize
        needs = {}
        for a, b in itertools.product(range(len(source.devices)), range(len(target.devices))):
            low = tuple(np.maximum(source.lower[a], target.lower[b]).tolist())
            high = tuple(np.minimum(source.upper[a], target.upper[b]).tolist())
            if all(x < y for x, y in zip(low, high, strict=True)):
                needs.setdefault((low, high), ([], []))
                needs[low, high][0].append(int(source.devices[a]))
                needs[low, high][1].append(int(target.devices[b]))
        placed = set()  # boxes that overlap would be sent twice: only tiles of a grid come here
        for (low, high), (holders, receivers) in needs.items():
            nbytes = size * int(np.prod(np.subtract(high, low, dtype=np.int64)))
            piece = Piece(name, low, high, nbytes)
            holders, receivers = sorted({*holders}), sorted({*receivers})
            copies += [(d, piece) for d in receivers if d in holders]
            chain = [holders[len(placed) % len(holders)], *order(d for d in receivers if d not in holders)]
            placed.add((low, high))
            if len(chain) > 1:
                hops = tuple(Hop(a, b) for a, b in itertools.pairwise(chain))
                messages.append(Message(0, "chain", hops, (piece,), nbytes, max(nbytes // 3, 1), 0.0, 0.0))
    transfers = {name: Transfer(*pair) for name, pair in pairs.items()}
    return assemble(transfers, topology, order(messages), copies)


def in_rounds(made, parts, checksum=False):
    fabric = Fabric(made.devices)

    def work(device):
        packer = NumpyPacker(made.tensors, device, parts[device])
        hops = depths(made, device)
        return execute_rounds(program_of(made, device), hops, packer, fabric.channel(device), checksum=checksum)

    done = run_devices(fabric, made.devices, work)
    return {device: new for device, (new, _) in done.items()}, [report for _, report in done.values()]


@pytest.mark.property
@settings(max_examples=30)
@given(st.data())
def test_planned_transfers_equal_slicing(data):
    hosts, each = data.draw(st.sampled_from([(1, 4), (2, 2), (2, 3), (4, 1), (4, 3), (6, 2)]))
    pairs = pairs_of(data.draw, hosts * each)
    made = plan(pairs, Topology.uniform(hosts, each, nic=1e6, local=1e6), cast=True, min_chunk=16, target_gap=10.0)
    whole = global_arrays(pairs)
    parts = parts_of(pairs, whole, made.devices)
    before = {(d, name): part.tobytes() for d, mine in parts.items() for name, part in mine.items()}
    check(pairs, whole, execute_reference(made, parts))
    for checksum in (False, True):
        new, reports = execute_threads(made, parts, checksum=checksum, capacity=int(checksum))
        check(pairs, whole, new)
        account(made, reports, checksum)
        new, reports = in_rounds(made, parts, checksum)
        check(pairs, whole, new)
        account(made, reports, checksum)
    assert before == {(d, name): part.tobytes() for d, mine in parts.items() for name, part in mine.items()}


def account(made, reports, checksum):
    """What devices report adds up to what the plan says."""
    total = sum(message.nbytes * len(message.hops) for message in made.messages)
    assert sum(r.bytes_sent for r in reports) == sum(r.bytes_received for r in reports) == total
    assert sum(r.checked for r in reports) == (sum(r.receives for r in reports) if checksum else 0)
    assert all(r.buffer_peak <= made.buffer_bytes(r.device) for r in reports)


def test_two_hundred_random_plans_never_deadlock():
    rng = np.random.default_rng(1)
    messages = 0
    for number in range(200):
        world = int(rng.integers(2, 13))
        pairs = {}
        for k in range(int(rng.integers(1, 4))):
            shape = tuple(rng.integers(1, 6, int(rng.integers(1, 4))).tolist())
            pairs[f"t{k}"] = tuple(random_layout(rng, shape, world) for _ in range(2))
        made = by_hand(pairs, Topology.uniform(1, world), lambda items: shuffled(rng, items))
        messages += len(made.messages)
        whole = global_arrays(pairs, number)
        new, _ = execute_threads(made, parts_of(pairs, whole, made.devices), capacity=number % 3)
        check(pairs, whole, new)
    assert messages > 1000  # the plans were not trivial


def shuffled(rng, items):
    items = list(items)
    return [items[k] for k in rng.permutation(len(items))]


def random_layout(rng, shape, world):
    grids = [m for m in MESHES if np.prod(m) <= world]
    grid = grids[int(rng.integers(len(grids)))]
    spec = [None] * len(shape)
    for axis in range(len(grid)):
        spec[int(rng.integers(len(shape)))] = str(axis)
    return Layout.sharded(shape, "int8", Mesh(rng.permutation(world)[: int(np.prod(grid))].reshape(grid)), spec)


def line(devices, size=8, chunk=2, topology=None):
    """A plan: device 0's bytes go down a chain."""
    source = Layout.from_boxes((size,), "uint8", {0: [(0, size)]})
    target = Layout.from_boxes((size,), "uint8", {d: [(0, size)] for d in range(1, devices)})
    hops = tuple(Hop(d, d + 1) for d in range(devices - 1))
    message = Message(0, "chain", hops, (Piece("w", (0,), (size,), size),), size, chunk, 0.0, 0.0)
    return assemble({"w": Transfer(source, target)}, topology or Topology.uniform(1, devices), [message])


def test_devices_with_different_orders_are_found_in_deadlock():
    boxes = Layout.from_boxes((2,), "uint8", {0: [(0, 1)], 1: [(1, 2)]})
    swapped = Layout.from_boxes((2,), "uint8", {0: [(1, 2)], 1: [(0, 1)]})
    pieces = Piece("w", (0,), (1,), 1), Piece("w", (1,), (2,), 1)
    there = Message(0, "chain", (Hop(0, 1),), pieces[:1], 1, 1, 0.0, 0.0)
    back = Message(0, "chain", (Hop(1, 0),), pieces[1:], 1, 1, 0.0, 0.0)
    topology, transfers = Topology.uniform(1, 2), {"w": Transfer(boxes, swapped)}
    plans = assemble(transfers, topology, [there, back]), assemble(transfers, topology, [back, there])
    parts = [{"w": np.array([d], np.uint8)} for d in range(2)]
    fabric = Fabric((0, 1))

    def work(device):
        packer = NumpyPacker(plans[device].tensors, device, parts[device])
        return execute(program_of(plans[device], device), packer, fabric.channel(device), window=1)

    with pytest.raises(DeadlockError, match="device 0 waits for device 1 to receive; device 1 waits for device 0"):
        run_devices(fabric, (0, 1), work)
    new, _ = execute_threads(plans[0], dict(enumerate(parts)))  # in one order it goes
    assert [new[d]["w"].tolist() for d in range(2)] == [[1], [0]]


class Liar:
    """A channel that changes one bit of one chunk on the way."""

    def __init__(self, channel, target, chunk):
        self.channel, self.target, self.left = channel, target, chunk

    def isend(self, target, buffer, tag):
        if target == self.target:
            self.left -= 1
            if self.left == -1:
                buffer = buffer.copy()
                buffer[0] ^= 16
        return self.channel.isend(target, buffer, tag)

    def irecv(self, source, buffer, tag):
        return self.channel.irecv(source, buffer, tag)


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_changed_bit_is_named(chunk):
    made = line(4)
    fabric = Fabric(made.devices)
    data = {"w": np.arange(8, dtype=np.uint8)}

    def work(device):
        channel = Liar(fabric.channel(device), 2, chunk)
        packer = NumpyPacker(made.tensors, device, data if device == 0 else {})
        return execute(program_of(made, device), packer, channel, checksum=True, window=1)

    words = rf"message 0 \(w\) arrived changed at device [23] from device [12]: chunk {chunk}"
    with pytest.raises(CorruptedError, match=words):
        run_devices(fabric, made.devices, work)


def test_a_missing_part_stops_all_before_the_first_byte():
    with pytest.raises(PartError, match="device 0 needs its part of 'w'"):
        execute_threads(line(3), {})


def test_an_error_in_one_device_ends_the_others():
    made = line(3)
    fabric = Fabric(made.devices)

    def work(device):
        if device == 1:
            raise ZeroDivisionError("broken")
        packer = NumpyPacker(made.tensors, device, {"w": np.zeros(8, np.uint8)} if device == 0 else {})
        return execute(program_of(made, device), packer, fabric.channel(device), window=1)

    with pytest.raises(ZeroDivisionError, match="broken"):
        run_devices(fabric, made.devices, work)


def test_devices_outside_the_plan_have_nothing_to_do():
    assert program_of(line(2, topology=Topology.uniform(1, 4)), 3).steps == ()


def test_chunks_of_any_size_are_cut_to_what_networks_send():
    step = program_of(line(2, size=8, chunk=8), 1).steps[0]
    assert spans_of(step) == [(0, 8)]
    assert LARGEST < 2**31


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_has_room_for_one(window):
    packer = NumpyPacker(line(2).tensors, 1, {})
    with pytest.raises(ValueError, match="window"):
        execute(program_of(line(2), 1), packer, Fabric((0, 1)).channel(1), window=window)
