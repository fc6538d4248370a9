"""Transports on one GPU: packing there, rounds between threads, and a process group of one over NCCL."""

import pytest
import torch

from xmesh_reshard import Layout, Topology, Transfer
from xmesh_reshard.assembling import assemble
from xmesh_reshard.plans import Hop, Message, Piece
from xmesh_reshard.transports import PartError
from xmesh_reshard.transports.executor import execute, program_of
from xmesh_reshard.transports.packing import NumpyPacker
from xmesh_reshard.transports.rounds import depths, execute_rounds
from xmesh_reshard.transports.threads import Fabric, run_devices
from xmesh_reshard.transports.torch_packing import TorchPacker, to_numpy, to_torch

pytestmark = pytest.mark.gpu


def chain():
    """Two columns of a matrix go from device 0 to 1 and 2 and become bfloat16 on the way."""
    before = Layout.from_boxes((6, 4), "float32", {0: [(0, 6), (0, 4)]})
    after = Layout.from_boxes((6, 4), "bfloat16", {d: [(0, 6), (1, 3)] for d in (1, 2)})
    piece = Piece("w", (0, 1), (6, 3), 24)
    message = Message(0, "chain", (Hop(0, 1), Hop(1, 2)), (piece,), 24, 10, 0.0, 0.0)
    return assemble({"w": Transfer(before, after)}, Topology.uniform(1, 3), [message])


@pytest.mark.parametrize("rounds", [False, True])
def test_threads_on_one_gpu_equal_slicing(rounds):
    made, whole = chain(), torch.randn(6, 4, device="cuda")
    fabric, place = Fabric(made.devices), torch.device("cuda")

    def work(device):
        packer = TorchPacker(made.tensors, device, {"w": whole} if device == 0 else {}, place)
        program, channel = program_of(made, device), fabric.channel(device)
        if rounds:
            return execute_rounds(program, depths(made, device), packer, channel, checksum=True)
        return execute(program, packer, channel, checksum=True, window=1)

    done = run_devices(fabric, made.devices, work)
    for device in (1, 2):
        new, report = done[device]
        assert new["w"].device.type == "cuda"
        assert torch.equal(new["w"], whole[:, 1:3].to(torch.bfloat16))
        assert report.checked == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "bool", "int16"])
def test_the_gpu_packs_the_same_bytes_as_the_cpu(dtype):
    layout = Layout.from_boxes((5, 7), dtype, {0: [(0, 5), (0, 7)]})
    transfers = {"w": Transfer(layout, Layout.from_boxes((5, 7), dtype, {1: [(0, 5), (2, 5)]}))}
    part = to_numpy(torch.arange(35).reshape(5, 7).to(getattr(torch, dtype)))
    pieces = [Piece("w", (1, 2), (5, 5), 12 * layout.itemsize), Piece("w", (0, 2), (1, 5), 3 * layout.itemsize)]
    on_cpu = NumpyPacker(transfers, 0, {"w": part})
    on_gpu = TorchPacker(transfers, 0, {"w": to_torch(part).cuda()})
    want = on_cpu.outgoing(pieces, on_cpu.buffer)[0]
    got = on_gpu.outgoing(pieces, on_gpu.buffer)[0]
    assert got.device.type == "cuda"
    assert got.cpu().numpy().tobytes() == want.tobytes()
    assert on_gpu.checksum(got) == on_cpu.checksum(want)


@pytest.fixture
def alone(tmp_path):
    import torch.distributed as dist

    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_group_of_one_over_nccl_copies_and_casts():
    from xmesh_reshard.transports import TorchTransport

    before = Layout.from_boxes((6, 4), "float32", {0: [(0, 6), (0, 4)]})
    after = Layout.from_boxes((6, 4), "float16", {0: [(2, 5), (0, 4)]})
    copy = (0, Piece("w", (2, 0), (5, 4), 24))
    made = assemble({"w": Transfer(before, after)}, Topology.uniform(1, 1), [], [copy])
    whole = torch.randn(6, 4, device="cuda")
    with TorchTransport(timeout=30) as transport:
        for _ in range(3):
            new = transport.execute(made, {"w": whole})
            assert torch.equal(new["w"], whole[2:5].half())
        with pytest.raises(PartError, match="on cpu"):
            transport.execute(made, {"w": whole.cpu()})
