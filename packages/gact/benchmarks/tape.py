"""A forward pass whose saved tensors can be quantised one at a time afterwards: the truth about each one's noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gact import kernels
from gact.contributions import Saved, contributions
from gact.gains import ParameterGains
from gact.sensitivity import memory_order
from gact.variance import BITS, law_variance, profile

GROUP_SIZE = 256
_RECTIFIERS = ("ReluBackward0", "ThresholdBackward0")  # kept as sign bits, so exact


@dataclass
class Entry:
    """A saved tensor and who uses it.

    Args:
        flat: Its numbers in the order of memory.
        users: Node, name of the saved tensor, shape and order of dimensions.
    """

    flat: Tensor
    users: list[tuple[Any, str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Who uses it, in words."""
        return " and ".join(f"{node.name().removesuffix('Backward0')}.{name}" for node, name, *_ in self.users)


class Held:
    """What the graph holds in place of a tensor."""

    def __init__(self, x: Tensor, key: Any) -> None:
        self.x, self.key, self.exact = x, key, False


class Tape:
    """One forward pass, kept for many backward passes.

    Args:
        model: Its parameters stay as they are.
        loss: The forward pass.
        least: Tensors of fewer elements stay as they are.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], least: int = 4096) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._least = least
        self._seen: Held | None = None
        self.active: Any = None
        self.bits, self.draw = 4, 0
        self.entries: dict[Any, Entry] = {}
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            self.loss = loss()
        self._find_users()
        self.exact = self.gradient()

    def gradient(self) -> Tensor:
        """The whole gradient, with the noise of the active tensor."""
        grads = torch.autograd.grad(self.loss, self.parameters, retain_graph=True, allow_unused=True)
        return torch.cat([g.reshape(-1) for g in grads if g is not None])

    def truth(self, key: Any, bits: int, draws: int) -> float:
        """Mean of ‖ĝ − g‖² when only one tensor is quantised."""
        self.active, self.bits, total = key, bits, 0.0
        for _ in range(draws):
            self.draw += 1
            total += float((self.gradient() - self.exact).double().square().sum()) / draws
        self.active = None
        return total

    def estimates(self) -> dict[Any, float]:
        """c of every tensor from one backward pass: closed forms and mean-field estimates."""
        found = dict.fromkeys(self.entries, 0.0)
        gains = ParameterGains(self.parameters)

        def watch(key: Any, node: Any, saved: Saved) -> Any:
            def hook(grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]) -> None:
                for entry in contributions(node, saved, grad_inputs, grad_outputs):
                    found[key] += float(entry.c) * gains.along(node, entry.edge)

            return node.register_hook(hook)

        handles = []
        for key, entry in self.entries.items():
            low, high = ranges(entry.flat)
            for node, name, size, order in entry.users:
                handles.append(watch(key, node, Saved(name, size, order, low, high, GROUP_SIZE)))
        self.gradient()
        for handle in handles:
            handle.remove()
        return found

    def simple_estimates(self) -> dict[Any, float]:
        """c by the rule of thumb: energy of the incoming gradient times the mean squared range."""
        found = dict.fromkeys(self.entries, 0.0)

        def watch(key: Any, node: Any, spread: float) -> Any:
            def hook(grads: Sequence[Tensor | None]) -> None:
                found[key] += sum(float(g.square().sum()) for g in grads if g is not None) * spread / 6

            return node.register_prehook(hook)

        handles = []
        for key, entry in self.entries.items():
            low, high = ranges(entry.flat)
            spread = float((high - low).square().mean())
            handles += [watch(key, node, spread) for node, *_ in entry.users]
        self.gradient()
        for handle in handles:
            handle.remove()
        return found

    def shape(self, key: Any, bits: int) -> float:
        """Exact variance of the stored tensor at some bits, in units of the law's at one bit."""
        flat = self.entries[key].flat
        law = float(law_variance(*ranges(flat), flat.numel(), GROUP_SIZE, 1))
        return profile(flat, GROUP_SIZE)[BITS.index(bits)] / law

    def _pack(self, x: Tensor) -> Any:
        owned = x.untyped_storage().data_ptr() in self._owned
        if owned or not x.is_floating_point() or x.numel() < self._least or not x.requires_grad:
            return x
        key: Any = (x.untyped_storage().data_ptr(), x._version)
        if not _dense(x):
            key += (x.storage_offset(), x.shape)
        x = x.detach()
        if key not in self.entries:
            flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()) if _dense(x) else x.contiguous().view(-1)
            self.entries[key] = Entry(flat)
        return Held(x, key)

    def _unpack(self, held: Any) -> Tensor:
        if not isinstance(held, Held):
            return held
        self._seen = held
        if held.key != self.active or held.exact:
            return held.x
        flat = self.entries[held.key].flat
        number = list(self.entries).index(held.key)
        codes = kernels.quantise(flat, self.bits, key=self.draw * 10_007 + number, group_size=GROUP_SIZE)
        noisy = kernels.dequantise(codes)
        return noisy.as_strided(held.x.shape, held.x.stride()) if _dense(held.x) else noisy.view(held.x.shape)

    def _find_users(self) -> None:
        """Ask every node for what it has saved; what never passes through a quantised form is forgotten."""
        stack, known = [self.loss.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in known:
                continue
            known.add(node)
            stack += [parent for parent, _ in node.next_functions]
            for name in (n for n in dir(node) if n.startswith("_saved_") and "_sym_" not in n):
                self._seen = None
                getattr(node, name)
                if self._seen is not None and node.name() in _RECTIFIERS:
                    self._seen.exact = True
                elif self._seen is not None:
                    x = self._seen.x
                    order = memory_order(x.shape, x.stride()) if _dense(x) else tuple(range(x.dim()))
                    self.entries[self._seen.key].users.append((node, name[7:], tuple(x.shape), order))
        self.entries = {key: entry for key, entry in self.entries.items() if entry.users}


def ranges(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each group."""
    whole = flat.numel() // GROUP_SIZE * GROUP_SIZE
    rows = flat[:whole].view(-1, GROUP_SIZE)
    low, high = rows.amin(1), rows.amax(1)
    if whole < flat.numel():
        low, high = torch.cat([low, flat[whole:].min()[None]]), torch.cat([high, flat[whole:].max()[None]])
    return low, high


def _dense(x: Tensor) -> bool:
    return bool(x.untyped_storage().nbytes() == x.numel() * x.element_size() and x.storage_offset() == 0)
