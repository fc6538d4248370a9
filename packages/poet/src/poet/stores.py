"""What all stores of pages share: the bytes of a tensor, the error when a transfer fails, and where files may lie."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from poet.trace_layout import Layout


class PageError(OSError):
    """A page that could not be written or read back."""


@final
@dataclass(frozen=True, slots=True)
class Form:
    """How a tensor lies in its storage, which is what a page holds.

    Attributes:
        layout: How the tensor reads its storage.
        nbytes: Bytes of the whole storage.

    Example:
        >>> part = torch.arange(6, dtype=torch.int16).view(2, 3).t()[1:]
        >>> form = Form.of(part)
        >>> copy = form.tensor(raw(part).clone())
        >>> form.nbytes, copy.tolist() == part.tolist(), copy.stride() == part.stride()
        (12, True, True)
    """

    layout: Layout
    nbytes: int

    @staticmethod
    def of(tensor: Tensor) -> "Form":
        """The form of a dense tensor.

        Raises:
            TypeError: If it is sparse.
        """
        if tensor.layout is not torch.strided:
            raise TypeError(f"a tensor of layout {tensor.layout}: only dense tensors can be paged")
        return Form(Layout.of(tensor), tensor.untyped_storage().nbytes())

    def empty(self) -> Tensor:
        """Bytes for a storage of this form, uninitialised, on the tensor's device."""
        return torch.empty(self.nbytes, dtype=torch.uint8, device=self.layout.device)

    def tensor(self, storage: Tensor) -> Tensor:
        """The tensor on a storage.

        Args:
            storage: Bytes, shape [nbytes]; shared, not copied.
        """
        layout = self.layout
        bare = torch.empty(0, dtype=layout.dtype, device=storage.device)
        tensor = bare.set_(storage.untyped_storage(), layout.offset, layout.shape, layout.stride)
        tensor = tensor.conj() if layout.conj else tensor
        return torch._neg_view(tensor) if layout.neg else tensor


def raw(tensor: Tensor) -> Tensor:
    """The whole storage of a tensor as bytes, shape [nbytes]; shared, not copied."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))


def default_page_dir() -> Path:
    """The folder for temporary files; where that lies in memory, `/var/tmp`, which does not.

    Example:
        >>> default_page_dir().is_dir()
        True
    """
    folder = Path(tempfile.gettempdir())
    lasting = Path("/var/tmp")
    if lies_in_memory(folder) and lasting.is_dir() and not lies_in_memory(lasting):
        return lasting
    return folder


def lies_in_memory(folder: Path) -> bool:
    """Whether a folder is on a file system that is kept in memory; False where the system does not say."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    mounts = [line.split()[1:3] for line in lines]
    real = folder.resolve()
    around = [(len(place), kind) for place, kind in mounts if real.is_relative_to(place)]
    # the deepest mount holds the folder; of several at one place, the last
    return bool(around) and max(enumerate(around), key=lambda m: (m[1][0], m[0]))[1][1] in ("tmpfs", "ramfs")
