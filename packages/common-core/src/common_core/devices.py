"""The best device, what it is, and waiting for it; torch and jax are used only where they are already loaded.

A framework is looked up in ``sys.modules``, so that asking about devices never costs an import; naming it imports it.
Host and user names are never part of a description.
"""

import os
import platform
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

Framework = Literal["torch", "jax"]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is.

    Args:
        kind: ``"cpu"``, ``"cuda"`` or another device type of the framework.
        name: Model of the processor or accelerator.
        memory_bytes: Its memory in bytes, or None if unknown.
        cores: Processor cores this process may use; None for an accelerator.
        framework: The framework that was asked, or None.
    """

    kind: str
    name: str
    memory_bytes: int | None = None
    cores: int | None = None
    framework: Framework | None = None

    def __str__(self) -> str:
        parts = [self.name]
        if self.cores is not None:
            parts.append(f"{self.cores} core{'s' if self.cores != 1 else ''}")
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes / 2**30:.0f} GiB")
        return ", ".join(parts)


def best_device(framework: Framework | None = None) -> str:
    """Return ``"cuda"`` if a framework sees a CUDA device, else ``"cpu"``.

    Other accelerators are never chosen unasked: most of them lack float64.

    Args:
        framework: Ask this one, importing it; by default torch, then jax, where already loaded.

    Raises:
        ValueError: If the framework is unknown.
        ImportError: If it is named and not installed.
    """
    for name, module in _frameworks(framework):
        if name == "torch" and module.cuda.is_available():
            return "cuda"
        if name == "jax" and any(device.platform == "gpu" for device in module.devices()):
            return "cuda"
    return "cpu"


def describe(device: str = "cpu", framework: Framework | None = None) -> DeviceInfo:
    """Describe a device.

    Args:
        device: ``"cpu"``, or ``"cuda"`` or ``"cuda:1"``.
        framework: Ask this one, importing it; by default torch, then jax, where already loaded.

    Returns:
        Its kind, name and memory.

    Raises:
        ValueError: If no framework that is loaded can see such a device.
        ImportError: If `framework` is named and not installed.

    Example:
        >>> describe("cpu").kind
        'cpu'
    """
    kind, _, ordinal = str(device).partition(":")
    frameworks = _frameworks(framework)
    if kind == "cpu":
        return DeviceInfo("cpu", _cpu_name(), _cpu_memory(), _cpu_cores(), framework)
    index = int(ordinal) if ordinal.isdecimal() else 0
    if kind == "cuda" and (ordinal == "" or ordinal.isdecimal()):
        for name, module in frameworks:
            if name == "torch" and module.cuda.is_available() and index < module.cuda.device_count():
                properties = module.cuda.get_device_properties(index)
                return DeviceInfo("cuda", properties.name, properties.total_memory, framework="torch")
            if name == "jax" and len(gpus := [d for d in module.devices() if d.platform == "gpu"]) > index:
                limit = (gpus[index].memory_stats() or {}).get("bytes_limit")
                return DeviceInfo("cuda", gpus[index].device_kind, limit, framework="jax")
    asked = ", ".join(name for name, _ in frameworks) or "no framework is loaded: import torch or jax first"
    raise ValueError(f"device={device!r} cannot be found (asked: {asked}); use 'cpu' or a visible 'cuda:<index>'")


def synchronise(result: Any = None) -> None:
    """Wait until the work that was started has finished.

    torch: every queued CUDA kernel, where CUDA is in use. jax: the arrays in `result`, which jax computes in the
    background, on the CPU too. Does nothing for a framework that is not loaded.

    Args:
        result: What was returned by the call to wait for.
    """
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    if jax is not None and result is not None and hasattr(jax, "block_until_ready"):
        jax.block_until_ready(result)


def _frameworks(asked: Framework | None) -> list[tuple[str, Any]]:
    if asked is None:
        return [(name, sys.modules[name]) for name in ("torch", "jax") if name in sys.modules]
    if asked not in ("torch", "jax"):
        raise ValueError(f"framework={asked!r}; choose 'torch', 'jax' or None")
    return [(asked, import_module(asked))]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _cpu_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not POSIX
        return None


def _cpu_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
