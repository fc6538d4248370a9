"""The simulator against closed forms, hand calculations and bounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmesh_reshard import Host, Layout, Nic, Topology, Transfer, plan, theory
from xmesh_reshard.assembling import assemble
from xmesh_reshard.moves import Collective, Move
from xmesh_reshard.network import simulate
from xmesh_reshard.plans import Hop, Message, Piece


def made(topology, legs, chunk=None):
    """A plan of messages (method, hops, bytes): each sends fresh bytes of its own tensor."""
    transfers, messages = {}, []
    for k, (method, pairs, nbytes, *cards) in enumerate(legs):
        name, everywhere = f"t{k}", {b for _, b in pairs}
        source = Layout.from_boxes((nbytes,), "uint8", {pairs[0][0]: [(0, nbytes)]})
        target = Layout.from_boxes((nbytes,), "uint8", {d: [(0, nbytes)] for d in everywhere})
        transfers[name] = Transfer(source, target)
        host = topology.host_of
        out, into = cards or (0, 0)
        hops = tuple(Hop(a, b, out, into) if host[a] != host[b] else Hop(a, b) for a, b in pairs)
        piece = Piece(name, (0,), (nbytes,), nbytes)
        messages.append(Message(k, method, hops, (piece,), nbytes, chunk or max(1, nbytes), 0.0, 0.0))
    return assemble(transfers, topology, messages)


def chain(*devices):
    return list(itertools.pairwise(devices))


def hosts(n, devices=1, **options):
    return Topology.uniform(n, devices, **({"nic": 100.0, "local": 1e30} | options))


@pytest.mark.property
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 0.01, 2.0]))
@settings(deadline=None, max_examples=60)
def test_a_chain_takes_the_closed_form(hops, chunks, unit, alpha):
    topology = hosts(hops + 1, alpha=alpha)
    one = made(topology, [("chain", chain(*range(hops + 1)), unit * chunks)], chunk=unit)
    expected = theory.chain_seconds(hops, chunks, unit * chunks, alpha, 100.0)
    assert simulate(one, detail="chunks").makespan == pytest.approx(expected, rel=1e-9)
    assert simulate(one, detail="messages").makespan == pytest.approx(expected, rel=1e-9)
    assert theory.chain_seconds_by_steps(hops, chunks, unit * chunks, alpha, 100.0) == pytest.approx(expected)


def test_a_chain_over_hosts_and_local_links():
    # 5 chunks of 10 bytes: card 0.1 s, local link 0.25 s + α 0.05, card again 0.1 s, then 4 times the slowest.
    topology = hosts(3, 2, local=40.0, local_alpha=0.05)
    one = made(topology, [("chain", chain(0, 2, 3, 4), 50)], chunk=10)
    expected = 0.1 + 0.3 + 0.1 + 4 * 0.3
    for detail in ("chunks", "messages"):
        run = simulate(one, detail=detail)
        assert run.makespan == pytest.approx(expected)
        assert run.port_names == (
            "host0 nic0 out", "host1 nic0 out", "host1 nic0 in", "host2 nic0 in", "device 2 out", "device 3 in",
        )  # fmt: skip
        assert run.critical == "device 2 out"
        assert run.utilisation["device 3 in"] == pytest.approx(50 / 40 / expected)


def test_a_star_shares_the_senders_card():
    topology = hosts(4)
    star = made(topology, [("send_recv", [(0, 1), (0, 2), (0, 3)], 100)], chunk=25)
    for detail in ("chunks", "messages"):
        assert simulate(star, detail=detail).makespan == pytest.approx(3.0)


def test_a_tree_of_whole_messages():
    # Device 0 sends to 1 and 2 at the same time (2 s at half the rate), then 1 to 3 (1 s).
    tree = made(hosts(4), [("chain", [(0, 1), (0, 2), (1, 3)], 100)])
    assert simulate(tree).message_end.tolist() == pytest.approx([3.0])


def test_cards_work_side_by_side():
    cards = hosts(2, 2, nics=2)
    both = [("send_recv", [(0, 2)], 100, 0, 0), ("send_recv", [(1, 3)], 100, 1, 1)]
    assert simulate(made(cards, both)).makespan == pytest.approx(1.0)
    same = [("send_recv", [(0, 2)], 100, 0, 0), ("send_recv", [(1, 3)], 100, 0, 1)]
    assert simulate(made(cards, same)).makespan == pytest.approx(2.0)


def test_unequal_cards_racks_and_core():
    def network(**limits):
        racks = ["a", "a", "b", "b"]
        made = tuple(Host(f"h{k}", (k,), (Nic(100.0 + 100 * (k == 0), 100.0),), 1e30, racks[k]) for k in range(4))
        return Topology(made, **limits)

    across = [("send_recv", [(0, 2)], 100), ("send_recv", [(1, 3)], 100)]
    assert simulate(made(network(), across)).message_end.tolist() == pytest.approx([1.0, 1.0])
    assert simulate(made(network(racks={"a": 100.0}), across)).makespan == pytest.approx(2.0)
    assert simulate(made(network(racks={"b": 50.0}), across)).makespan == pytest.approx(4.0)
    assert simulate(made(network(core=80.0), across)).makespan == pytest.approx(2.5)
    run = simulate(made(network(core=80.0), across))
    assert run.critical == "core"
    assert run.utilisation["core"] == pytest.approx(1.0)
    # The fast card of h0 serves two receivers of its own rack at 100 each; within a rack nothing else is used.
    inside = [("send_recv", [(0, 1)], 100), ("send_recv", [(0, 2)], 100)]
    assert simulate(made(network(core=100.0), inside)).makespan == pytest.approx(1.0)


def test_messages_in_flight():
    # A device has three messages for three receivers. One at a time: 1, 2, 3 s. Two: the first two share the card until
    # 2 s, then the third alone. All at once: 3 s each.
    out = made(hosts(4), [("send_recv", [(0, d)], 100) for d in (1, 2, 3)])
    assert simulate(out, in_flight=1).message_end.tolist() == pytest.approx([1, 2, 3])
    assert simulate(out).message_end.tolist() == pytest.approx([2, 2, 3])
    assert simulate(out, in_flight=None).message_end.tolist() == pytest.approx([3, 3, 3])


def test_a_receive_waits_for_all_but_one_chunk_of_the_one_before():
    # Device 2 receives 10 chunks from 0 (rate of 0: 50); the second message may come when 9 chunks are in: at 1.8 s.
    # Its first chunk shares the receiver's card (50 each): 0.2 s; then 9 chunks at 100: 0.9 s.
    slow = Topology((Host("a", (0,), (Nic(50.0, 50.0),)), *(Host(f"b{k}", (k,), (Nic(100.0, 100.0),)) for k in (1, 2))))
    two = made(slow, [("chain", [(0, 2)], 100), ("chain", [(1, 2)], 100)], chunk=10)
    run = simulate(two, detail="chunks")
    assert run.message_start.tolist() == pytest.approx([0, 1.8])
    assert run.message_end.tolist() == pytest.approx([2.0, 2.9])
    serial = simulate(two, detail="chunks", in_flight=1)
    assert serial.message_end.tolist() == pytest.approx([2.0, 3.0])


def test_a_device_passes_one_message_on_after_the_other():
    # Two chains over the same devices: the second follows the first chunk by chunk, so the chain fills only once.
    twice = made(hosts(3), [("chain", chain(0, 1, 2), 100), ("chain", chain(0, 1, 2), 100)], chunk=10)
    assert simulate(twice, detail="chunks").message_end.tolist() == pytest.approx([1.1, 2.1])
    # With one message under way, device 1 takes the second when it has passed on all of the first.
    assert simulate(twice, detail="chunks", in_flight=1).message_end.tolist() == pytest.approx([1.1, 2.2])
    # Device 1 first receives, then is the first sender of its own: it starts when it has passed the first on.
    relay = made(hosts(4), [("chain", chain(0, 1, 2), 100), ("chain", chain(1, 3), 100)], chunk=50)
    run = simulate(relay, detail="chunks")
    assert run.message_start.tolist() == pytest.approx([0, 1.0])
    assert run.message_end.tolist() == pytest.approx([2.0, 2.5])


def test_messages_without_bytes_are_left_out():
    empty = made(hosts(3, alpha=1.0), [("chain", chain(0, 1, 2), 0), ("chain", chain(0, 1), 100)])
    assert simulate(empty).makespan == pytest.approx(2.0)
    nothing = assemble({}, hosts(2), [])
    run = simulate(nothing)
    assert (run.makespan, run.critical, run.port_bound, run.utilisation) == (0.0, "", 0.0, {})


def test_moves_wait_only_for_those_they_name():
    topology = hosts(3)
    out, back = (Hop(0, 1, 0, 0),), (Hop(1, 2, 0, 0),)
    moves = [
        Move(out, 100, 100),
        Move(out, 100, 100),
        Move((), 0, 1, (0, 1)),
        Move(back, 100, 100, (2,)),
        Move((), 0, 1, (3, 2)),
    ]
    run = simulate(Collective(topology, tuple(moves)))
    assert run.message_end[[0, 1, 3]].tolist() == pytest.approx([2, 2, 3])
    with pytest.raises(ValueError, match="move 0 waits for the moves \\(0,\\)"):
        Collective(topology, (Move(out, 1, 1, (0,)),))


def test_bad_arguments():
    one = made(hosts(2), [("chain", chain(0, 1), 10)])
    with pytest.raises(ValueError, match="detail is 'auto', 'chunks' or 'messages'; got 'all'"):
        one.simulate(detail="all")
    with pytest.raises(ValueError, match="got in_flight=0"):
        simulate(one, in_flight=0)
    with pytest.raises(ValueError, match="no port 'x' carries anything"):
        simulate(one).busy("x")
    for card in (-1, 1):
        wrong = made(hosts(2), [("chain", chain(0, 1), 10, card, 0)])
        with pytest.raises(ValueError, match=f"uses card {card}; host host0 has the cards 0 to 0"):
            simulate(wrong)


@pytest.mark.property
@pytest.mark.parametrize("seed", range(30))
def test_plans_of_random_layouts(seed, random_layout, random_topology):
    rng = np.random.default_rng(seed)
    topology = random_topology(rng, mixed=bool(seed % 2))
    devices = np.array(sorted(topology.host_of))
    shape = tuple(int(n) for n in rng.integers(4, 14, 2))
    transfers = {f"t{k}": (random_layout(rng, shape, devices), random_layout(rng, shape, devices)) for k in range(3)}
    found = plan(transfers, topology, min_chunk=16)
    runs = [simulate(found, detail=detail) for detail in ("chunks", "messages")]
    for run in runs:
        assert run.makespan >= found.lower_bound * (1 - 1e-9)
        assert run.makespan >= run.port_bound * (1 - 1e-9)
        assert run.makespan == pytest.approx(run.message_end.max(initial=0.0), abs=0)
        assert (run.message_end >= run.message_start).all()
        carried = dict(zip(run.port_names, run.port_bytes.tolist(), strict=True))
        for (host, card), (out, into) in found.nic_bytes().items():
            assert carried.get(f"{host} nic{card} out", 0) == out
            assert carried.get(f"{host} nic{card} in", 0) == into
        for port in run.port_names:
            spans = run.busy(port)
            assert (spans[1:, 0] > spans[:-1, 1]).all()
            needed = carried[port] / run.port_rates[run.port_names.index(port)]
            if run is runs[0]:  # chains taken as one flow shift their spans by the fill
                assert (spans[:, 1] - spans[:, 0]).sum() >= needed * (1 - 1e-9)
    # One flow for a chain and flows for its chunks differ by no more than the time that all chains need to fill.
    fill = _fill(found)
    assert abs(runs[0].makespan - runs[1].makespan) <= fill * (1 + 1e-9) + 1e-12


def _fill(found):
    """The sum over messages of the time their chains need to fill on free links."""
    total = 0.0
    for message in found.messages:
        if message.nbytes and len(message.hops) > 1:
            host = found.topology.host_of
            rates = [
                min(found.topology.hosts[host[h.source]].local, 1e30)
                if h.out < 0
                else min(
                    found.topology.hosts[host[h.source]].nics[h.out].up,
                    found.topology.hosts[host[h.target]].nics[h.into].down,
                )
                for h in message.hops
            ]
            alpha = max(found.topology.alpha, found.topology.local_alpha)
            total += sum(alpha + min(message.chunk, message.nbytes) / rate for rate in rates)
    return total


def test_many_hosts_agree_in_both_details():
    # 32 hosts of 4 devices, every device of the first half to two hosts of the other. Each message waits for the one
    # before it at a receiver, so the fills add up: one chunk's time for each of the 63 later messages, and no more.
    topology = hosts(32, 4, nic=1e6, local=1e8)
    legs = [("chain", chain(d, 64 + d, 64 + (d + 4) % 64), 64_000 + 64 * d) for d in range(64)]
    for chunk in (2_000, 4_000):
        found = made(topology, legs, chunk=chunk)
        chunks, whole = (simulate(found, detail=detail) for detail in ("chunks", "messages"))
        assert chunks.flows > 10 * whole.flows
        assert chunks.makespan - whole.makespan == pytest.approx(63 * chunk / 1e6)
        assert chunks.port_bound == pytest.approx(whole.port_bound, rel=1e-12)
