import getpass
import platform
import subprocess
import sys
import types

import pytest

from common_core import devices
from common_core.devices import DeviceInfo, best_device, describe, synchronise


def fake_torch(gpus: int = 1) -> types.ModuleType:
    module = types.ModuleType("torch")
    module.synchronised = 0

    def wait():
        module.synchronised += 1

    module.cuda = types.SimpleNamespace(
        is_available=lambda: gpus > 0,
        is_initialized=lambda: gpus > 0,
        device_count=lambda: gpus,
        get_device_properties=lambda k: types.SimpleNamespace(name=f"Model {k}", total_memory=80 * 2**30),
        synchronize=wait,
    )
    return module


def fake_jax(platforms=("gpu",)) -> types.ModuleType:
    module = types.ModuleType("jax")
    module.waited = []
    module.devices = lambda: [
        types.SimpleNamespace(platform=p, device_kind="Model J", memory_stats=lambda: {"bytes_limit": 2**34})
        for p in platforms
    ]
    module.block_until_ready = module.waited.append
    return module


@pytest.fixture
def alone(monkeypatch):
    """Neither framework loaded."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    return monkeypatch


def test_the_cpu_is_described_without_host_or_user():
    info = describe("cpu")
    assert info.kind == "cpu"
    assert info.name
    assert info.cores >= 1
    assert info.memory_bytes > 2**20
    assert platform.node() not in str(info)
    assert getpass.getuser() not in str(info).split()


def test_info_reads_well():
    assert str(DeviceInfo("cpu", "Model", 2**34, 1)) == "Model, 1 core, 16 GiB"
    assert str(DeviceInfo("cuda", "Model")) == "Model"


def test_nothing_is_imported_to_find_out():
    program = (
        "import sys; from common_core.devices import *; best_device(); describe(); synchronise(1);"
        "sys.exit(bool({'torch', 'jax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_torch_answers_where_loaded(alone):
    assert best_device() == "cpu"
    alone.setitem(sys.modules, "torch", fake_torch(gpus=2))
    assert best_device() == best_device("torch") == "cuda"
    assert describe("cuda:1") == DeviceInfo("cuda", "Model 1", 80 * 2**30, framework="torch")
    with pytest.raises(ValueError, match="cannot be found"):
        describe("cuda:2")


def test_jax_answers_where_loaded(alone):
    alone.setitem(sys.modules, "jax", fake_jax())
    assert best_device() == "cuda"
    assert describe("cuda") == DeviceInfo("cuda", "Model J", 2**34, framework="jax")
    alone.setitem(sys.modules, "jax", fake_jax(["cpu"]))
    assert best_device() == "cpu"


def test_synchronise_waits_for_both(alone):
    torch, jax = fake_torch(), fake_jax()
    alone.setitem(sys.modules, "torch", torch)
    alone.setitem(sys.modules, "jax", jax)
    synchronise()
    assert (torch.synchronised, jax.waited) == (1, [])
    synchronise("result")
    assert (torch.synchronised, jax.waited) == (2, ["result"])


def test_a_framework_without_cuda_in_use_is_left_alone(alone):
    torch = fake_torch(gpus=0)
    alone.setitem(sys.modules, "torch", torch)
    synchronise()
    assert torch.synchronised == 0
    assert best_device() == "cpu"


def test_unknown_devices_and_frameworks_are_refused(alone):
    with pytest.raises(ValueError, match="import torch or jax first"):
        describe("cuda")
    with pytest.raises(ValueError, match="cannot be found"):
        describe("cuda:first")
    with pytest.raises(ValueError, match="choose 'torch', 'jax' or None"):
        best_device("tensorflow")


def test_a_system_without_proc_is_described(monkeypatch):
    monkeypatch.setattr(devices, "Path", lambda _: types.SimpleNamespace(read_text=_unreadable))
    assert describe("cpu").name == (platform.processor() or platform.machine())


def _unreadable(**_):
    raise FileNotFoundError


@pytest.mark.gpu
def test_a_real_gpu():
    assert best_device("torch") == "cuda"
    info = describe("cuda", "torch")
    assert info.memory_bytes > 2**30
    synchronise()
