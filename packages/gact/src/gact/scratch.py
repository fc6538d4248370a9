"""Working memory that one thread uses again and again, so that a call costs no page faults."""

import threading

import torch

_LOCAL = threading.local()


def take(name: str, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised numbers, valid until the same thread takes the same name again.

    On a processor the memory is kept by the thread; on a device PyTorch's own allocator does that.

    Args:
        name: What it is for; names in use at once must differ.
        numel: How many numbers.
        dtype: Their type.
        device: Where.

    Returns:
        A tensor of shape [numel].
    """
    if device.type != "cpu":
        return torch.empty(numel, dtype=dtype, device=device)
    kept: dict[str, torch.Tensor] | None = getattr(_LOCAL, "kept", None)
    if kept is None:
        kept = _LOCAL.kept = {}
    need = numel * dtype.itemsize
    buffer = kept.get(name)
    if buffer is None or buffer.numel() < need:
        with torch.inference_mode(False):  # what is born in inference mode cannot be written outside of it
            buffer = kept[name] = torch.empty(need, dtype=torch.uint8, device="cpu")
    return buffer[:need].view(dtype)
