"""Plans between real processes (gloo): equal to slicing, refused when they differ, ended when a peer dies."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

pytest.importorskip("torch")

from xmesh_reshard import Layout, Mesh, Topology
from xmesh_reshard.layout import dtype_of
from xmesh_reshard.planning import plan
from xmesh_reshard.transports import CorruptedError, PartError, PeerLostError, PlanMismatchError, TransportError
from xmesh_reshard.transports.launcher import LaunchError, run_local, run_ranks
from xmesh_reshard.transports.measuring import measure_rank
from xmesh_reshard.transports.nursery import RankDied
from xmesh_reshard.transports.shaping import why_no_namespaces

WORLD = Topology.uniform(2, 2, nic="100MB/s")
WAIT = 3.0  # seconds until a peer is given up


def transfers(seed, count=4):
    """Random layouts over the devices 0 to 3."""
    rng, found = np.random.default_rng(seed), {}
    for k in range(count):
        shape = tuple(rng.integers(0, 9, int(rng.integers(0, 5))).tolist())
        pair = []
        for _ in range(2):
            grid = [(1,), (3,), (4,), (2, 2)][int(rng.integers(4))]
            spec: list = [None] * len(shape)
            for axis in range(len(grid)):
                if shape:
                    spec[int(rng.integers(len(shape)))] = str(axis)
            dtype = ["float32", "bfloat16", "int8", "float8_e5m2"][int(rng.integers(4))]
            pair.append(
                Layout.sharded(shape, dtype, Mesh(rng.permutation(4)[: int(np.prod(grid))].reshape(grid)), spec)
            )
        found[f"t{k}"] = tuple(pair)
    return found


def make(pairs):
    return plan(pairs, WORLD, cast=True, min_chunk=16, target_gap=10.0)


def values(pairs):
    return {
        name: (np.arange(np.prod(s.shape, dtype=np.int64)) % 100).astype(dtype_of(s.dtype)).reshape(s.shape)
        for name, (s, _) in pairs.items()
    }


def parts_for(pairs, device):
    whole = values(pairs)
    return {name: whole[name][(*s.slices(device), ...)] for name, (s, _) in pairs.items() if device in s.position}


def count_wrong(pairs, device, new):
    """Tensors that are not the slices which the target layouts say."""
    wrong = len(new.keys() ^ {name for name, (_, t) in pairs.items() if device in t.position})
    for name, array in new.items():
        target = pairs[name][1]
        want = values(pairs)[name].astype(dtype_of(target.dtype))[(*target.slices(device), ...)]
        wrong += array.tobytes() != want.tobytes() or array.dtype != want.dtype or array.shape != want.shape
    return wrong


def tensors_for(pairs, device):
    from xmesh_reshard.transports.torch_packing import to_torch

    return {name: to_torch(part) for name, part in parts_for(pairs, device).items()}


def many_plans(rank, seeds):
    """Each way to execute a plan; then what is refused; the user's group works all the while."""
    import torch
    import torch.distributed as dist

    from xmesh_reshard.transports.torch_packing import to_numpy
    from xmesh_reshard.transports.torch_transport import TorchTransport

    wrong, report = {}, {}
    for name, options in {
        "free": {},
        "wide": {"window": 5, "checksum": True},
        "rounds": {"schedule": "rounds", "checksum": True},
    }.items():
        asked = torch.full((3,), float(rank.rank))
        other = dist.all_reduce(asked, async_op=True)  # under way while the transport works
        with TorchTransport(timeout=WAIT * 5, **options) as transport:
            wrong[name] = 0
            for seed in seeds:
                pairs = transfers(seed)
                new = transport.execute(make(pairs), tensors_for(pairs, rank.device))
                wrong[name] += count_wrong(pairs, rank.device, {k: to_numpy(v) for k, v in new.items()})
            report[name] = transport.report
        other.wait()
        wrong[f"{name}, the user's own group"] = int(asked[0] != 6)
    return wrong, report


def refused(rank):
    """Errors before the first byte reach all ranks, and leave the transport usable."""
    from xmesh_reshard.transports.torch_packing import to_numpy
    from xmesh_reshard.transports.torch_transport import TorchTransport

    said = {}
    pairs = transfers(3)
    good, other = make(pairs), make(transfers(4))
    with TorchTransport(timeout=WAIT * 5) as transport:
        said["other plan"] = _error(
            lambda: transport.execute(
                other if rank.rank == 2 else good, tensors_for(transfers(4) if rank.rank == 2 else pairs, rank.device)
            )
        )
        given = tensors_for(pairs, rank.device)
        if rank.rank == 1:
            given["surplus"] = given.popitem()[1] if given else None
        said["wrong part"] = _error(lambda: transport.execute(good, given))
        new = transport.execute(good, tensors_for(pairs, rank.device))
        said["wrong afterwards"] = count_wrong(pairs, rank.device, {k: to_numpy(v) for k, v in new.items()})
        said["foreign device"] = _error(
            lambda: transport.execute(plan({"w": (line(4)[0], line(5)[1])}, Topology.uniform(3, 2)), {})
        )
    return said


def _error(action):
    try:
        action()
    except Exception as error:
        return type(error), str(error)
    return None, ""


def line(last):
    """All of a large tensor from device 0 to the device given."""
    size = 2**22
    everything = [(0, size)]
    return Layout.from_boxes((size,), "uint8", {0: everything}), Layout.from_boxes((size,), "uint8", {last: everything})


def chain():
    size = 2**22
    target = Layout.from_boxes((size,), "uint8", {d: [(0, size)] for d in (1, 2, 3)})
    return plan({"w": (line(1)[0], target)}, WORLD, min_chunk=2**16)


class Tampered:
    """Changes a bit of a chunk on its way to device 3, or kills, stops or breaks the process instead."""

    def __init__(self, channel, what):
        self.channel, self.what, self.sends = channel, what, 0

    def irecv(self, source, buffer, tag):
        return self.channel.irecv(source, buffer, tag)

    def isend(self, target, buffer, tag):
        self.sends += 1
        if self.what is not None and self.sends == 5:
            if self.what == "flip":
                buffer = buffer.clone()
                buffer[7] ^= 1
            elif self.what == "raise":
                raise ZeroDivisionError("a bug")
            else:
                os.kill(os.getpid(), getattr(signal, self.what))
        return self.channel.isend(target, buffer, tag)


def tampered(rank, what, where):
    import torch
    import torch.distributed as dist

    from xmesh_reshard.transports.torch_transport import TorchTransport

    processes = [0] * rank.world
    dist.all_gather_object(processes, os.getpid())
    mine = what if rank.rank == where else None
    transport = TorchTransport(timeout=WAIT, checksum=True, wrap=lambda channel: Tampered(channel, mine))
    began = time.monotonic()
    said = _error(
        lambda: transport.execute(chain(), {"w": torch.zeros(2**22, dtype=torch.uint8)} if rank.rank == 0 else {})
    )
    seconds = time.monotonic() - began
    if what == "SIGSTOP" and rank.rank == 3:
        os.kill(processes[where], signal.SIGKILL)  # all that it was for has happened
    return (*said, seconds, _error(lambda: transport.execute(chain(), {})))


@pytest.fixture(scope="module")
def together():
    return run_ranks(many_plans, WORLD, range(12), timeout=100)


def test_every_schedule_equals_slicing_and_leaves_other_groups_alone(together):
    for wrong, _ in together:
        assert wrong == dict.fromkeys(wrong, 0)
        assert len(wrong) == 6


def test_reports_count_the_same_bytes_on_both_sides(together):
    made = make(transfers(11))
    total = sum(message.nbytes * len(message.hops) for message in made.messages)
    assert total > 0
    for name in ("free", "wide", "rounds"):
        reports = [report[name] for _, report in together]
        assert sum(r.bytes_sent for r in reports) == sum(r.bytes_received for r in reports) == total
        assert [r.device for r in reports] == [0, 1, 2, 3]
        if name == "free":
            assert all(r.buffer_peak <= made.buffer_bytes(r.device) for r in reports if r.device in made.devices)
        else:
            assert all(r.checked == r.receives for r in reports)


def test_what_cannot_work_is_refused_everywhere_before_the_first_byte():
    for rank, said in enumerate(run_ranks(refused, WORLD)):
        assert said["other plan"][0] is PlanMismatchError
        assert "nothing was sent" in said["other plan"][1]
        kind, words = said["wrong part"]
        assert kind is (PartError if rank == 1 else PeerLostError)
        assert "surplus" in words
        assert said["wrong afterwards"] == 0
        assert said["foreign device"][0] in (TransportError, PeerLostError)
        assert "device" in said["foreign device"][1]


@pytest.mark.parametrize("what", ["flip", "raise", "SIGKILL", "SIGSTOP"])
def test_trouble_on_one_rank_is_an_error_on_every_rank(what):
    results = run_ranks(tampered, WORLD, what, 2, timeout=60, strict=False)
    for rank, result in enumerate(results):
        if rank == 2 and what.startswith("SIG"):
            assert isinstance(result.error, RankDied)
            continue
        assert result.error is None, result.trace
        kind, words, seconds, again = result.value
        own = {"flip": (3, CorruptedError), "raise": (2, ZeroDivisionError)}.get(what, (2, None))
        assert kind is (own[1] if rank == own[0] else PeerLostError), words
        assert seconds < 5 * WAIT  # far from the launch's own limit
        assert again[0] is TransportError
        assert "make a new one" in again[1]
        if what == "flip":
            assert re.search(r"message \d+ \(w\) arrived changed at device 3 from device 2", words), words
        if what == "raise":
            assert "a bug" in words


def test_measured_hosts_follow_the_processes():
    topology = Topology.uniform(2, 2)
    first, *others = run_ranks(measure_rank, topology, (0, 2**12, 2**16, 2**18), 3)
    assert all(other == first for other in others)
    assert [host.devices for host in first.topology.hosts] == [(0, 1), (2, 3)]
    assert first.fits.keys() == {(0, 1), (2, 3), (0, 2)}
    assert all(fit.rate > 0 and fit.alpha >= 0 for fit in first.fits.values())


@pytest.mark.parametrize("links", ["bucket", "netns"])
def test_shaped_hosts_move_the_same_bits(links):
    if links == "netns" and (reason := why_no_namespaces()) is not None:
        pytest.skip(reason)
    pairs = transfers(5, 6)
    made = make(pairs)
    done = run_local(made, {d: parts_for(pairs, d) for d in made.devices}, links=links, repeats=2)
    assert sum(count_wrong(pairs, device, new) for device, new in done.parts.items()) == 0
    assert len(done.seconds) == 2
    assert [report.device for report in done.reports] == list(made.devices)


def where_am_i(rank):
    return rank.rank, rank.host, rank.device, rank.world


def test_ranks_know_where_they_are():
    assert run_ranks(where_am_i, WORLD, devices=[3, 0]) == [(0, 1, 3, 2), (1, 0, 0, 2)]


def fails(rank):
    if rank.rank == 1:
        raise LookupError("nothing here")
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.zeros(1))


def dies(rank):
    if rank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def sleeps(rank, file):
    file.with_suffix(f".{rank.rank}").write_text(str(os.getpid()))
    time.sleep(100)


def test_a_failed_rank_is_shown_with_its_traceback():
    with pytest.raises(LaunchError, match=r"rank 1 failed: LookupError: nothing here(.|\n)*in fails"):
        run_ranks(fails, WORLD, timeout=20)


def test_a_killed_rank_is_shown_with_its_signal():
    with pytest.raises(LaunchError, match="rank 1 was ended by signal 9"):
        run_ranks(dies, WORLD)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(files):
    until = time.monotonic() + 10
    while any(file.exists() and alive(int(file.read_text())) for file in files):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_ranks_end_after_the_timeout(tmp_path):
    with pytest.raises(LaunchError, match="had not finished after 2 s"):
        run_ranks(sleeps, WORLD, tmp_path / "pid", timeout=2)
    assert gone([tmp_path / f"pid.{rank}" for rank in range(4)])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_interrupting_the_launch_ends_all_ranks(tmp_path):
    files = [tmp_path / f"pid.{rank}" for rank in range(4)]

    def interrupt():
        while not all(file.exists() for file in files):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_ranks(sleeps, WORLD, tmp_path / "pid")
    assert gone(files)
    assert len(run_ranks(where_am_i, WORLD)) == 4  # and the next launch works


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ranks_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, sys, time
        from xmesh_reshard import Topology
        from xmesh_reshard.transports.launcher import run_ranks

        def wait(rank, folder):
            (folder / f"pid.{rank.rank}").write_text(str(os.getpid()))
            time.sleep(100)

        if __name__ == "__main__":
            run_ranks(wait, Topology.uniform(1, 2), pathlib.Path(sys.argv[1]))
        """)
    )
    files = [tmp_path / f"pid.{rank}" for rank in range(2)]
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)]) as parent:
        until = time.monotonic() + 60
        while not all(file.exists() for file in files) and time.monotonic() < until:
            time.sleep(0.05)
        parent.kill()
    assert gone(files)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"links": "wire"}, ValueError, "links"),
        ({"devices": [9]}, ValueError, "devices"),
        ({"each": [(1,)]}, ValueError, "each"),
    ],
)
def test_launches_that_make_no_sense(arguments, error, words):
    with pytest.raises(error, match=words):
        run_ranks(where_am_i, WORLD, **arguments)


def test_functions_without_a_module_are_refused():
    with pytest.raises(TypeError, match="defined in a module"):
        run_ranks(lambda rank: 0, WORLD)


def test_importing_the_package_of_transports_brings_no_torch():
    code = "import sys, xmesh_reshard.transports.executor, json; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
