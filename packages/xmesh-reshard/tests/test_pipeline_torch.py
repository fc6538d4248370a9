"""Stages in processes of their own, over gloo; this file is also the program of those processes."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from xmesh_reshard.pipeline import run_device, schedule  # noqa: E402
from xmesh_reshard.pipeline.torch_channel import TorchChannel  # noqa: E402

CASES = (schedule("eager-1f1b", 2, 5), schedule("interleaved", 2, 5, chunks=2))


def layers(stages):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(stages)]


def batches(microbatches):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, 4, generator=generator, dtype=torch.float64) for _ in range(microbatches)]


def work(rank, path):
    """One device of every case, one after the other."""
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    found = [one_case(rank, made) for made in CASES]
    torch.save(found, f"{path}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def one_case(rank, made):
    """A stack of linear layers whose loss is the sum of the outputs."""
    weights = layers(made.stages)
    gradients = {s: torch.zeros(4, 4, dtype=torch.float64) for s in range(made.stages) if made.placement[s] == rank}

    def backward(stage, k, x, dy):
        gradients[stage] += x.T @ dy
        return dy @ weights[stage].T

    channel = TorchChannel(made, rank, lambda message: torch.empty(2, 4, dtype=torch.float64), ahead=2)
    done = run_device(
        made,
        rank,
        channel,
        lambda stage, k, x: (x @ weights[stage], x),
        backward,
        inputs=batches(5),
        output_gradient=lambda k, y: torch.ones_like(y),
    )
    channel.close()
    return {"outputs": done.outputs, "dx": done.input_gradients, "dw": gradients}


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    command = [sys.executable, __file__, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [worker.wait(100) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for made, first, last in zip(CASES, *results, strict=True):
        weights = [w.clone().requires_grad_() for w in layers(made.stages)]
        inputs = [x.clone().requires_grad_() for x in batches(5)]
        for k, x in enumerate(inputs):
            y = x
            for w in weights:
                y = y @ w
            torch.testing.assert_close(last["outputs"][k], y.detach())
            y.sum().backward()
            torch.testing.assert_close(first["dx"][k], x.grad)
        for s, w in enumerate(weights):
            torch.testing.assert_close((first, last)[made.placement[s]]["dw"][s], w.grad)


def test_what_does_not_fit_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        made = schedule("gpipe", 2, 1)
        with pytest.raises(ValueError, match="ahead must be at least 1"):
            TorchChannel(made, 0, lambda message: torch.empty(1), ahead=0)
        with pytest.raises(ValueError, match="this one is rank 0"):
            TorchChannel(made, 1, lambda message: torch.empty(1))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[2]), sys.argv[1])
