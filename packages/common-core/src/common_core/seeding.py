"""One seed, many independent named streams, for numpy, torch, jax and environments.

A stream is a `numpy.random.SeedSequence` whose spawn key is the SHA-256 of its names, so it depends on nothing but the
seed and the names: not on the platform, on Python's hash seed, or on the order in which streams are taken.
"""

import hashlib
import struct
from importlib import import_module
from typing import Any, final

import numpy as np

Name = str | int


@final
class Streams:
    """A node in the tree of streams below one seed.

    Each method returns a fresh generator at the beginning of its stream: equal calls give equal numbers.

    Args:
        seed: Non-negative integer.
        names: Path of this node, for example a claim and a run.

    Raises:
        TypeError: If the seed is not an integer, or a name is neither text nor an integer.
        ValueError: If the seed is negative.

    Example:
        >>> tree = Streams(0, "hieropo.evidence")
        >>> a, b = tree.numpy("data"), tree.child("run", 3).numpy("data")
        >>> bool(a.random() == tree.numpy("data").random())
        True
    """

    __slots__ = ("names", "seed")

    def __init__(self, seed: int, *names: Name) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(f"seed={seed!r} is {type(seed).__name__}; give a non-negative integer")
        if seed < 0:
            raise ValueError(f"seed={seed} is negative; give a non-negative integer")
        for name in names:
            if isinstance(name, bool) or not isinstance(name, str | int | np.integer):
                raise TypeError(f"stream name {name!r} is {type(name).__name__}; give text or an integer")
        self.seed = int(seed)
        self.names = tuple(name if isinstance(name, str) else int(name) for name in names)

    def __repr__(self) -> str:
        return f"Streams({', '.join(map(repr, (self.seed, *self.names)))})"

    def child(self, *names: Name) -> "Streams":
        """Return the node that `names` lead to from here."""
        return Streams(self.seed, *self.names, *names)

    def sequence(self, *names: Name) -> np.random.SeedSequence:
        """Return the stream's `SeedSequence`, the root of the other forms."""
        path = (*self.names, *names)
        digest = hashlib.sha256("".join(_encode(name) for name in path).encode()).digest()
        return np.random.SeedSequence(self.seed, spawn_key=struct.unpack("<8I", digest) if path else ())

    def numpy(self, *names: Name) -> np.random.Generator:
        """Return a NumPy generator (PCG64)."""
        return np.random.Generator(np.random.PCG64(self.child(*names).sequence("numpy")))

    def torch(self, *names: Name, device: Any = "cpu") -> Any:
        """Return a `torch.Generator` on `device`; imports torch."""
        generator = import_module("torch").Generator(device=device)
        return generator.manual_seed(self._integer("torch", names) >> 1)  # torch takes 63 bits

    def jax(self, *names: Name) -> Any:
        """Return a typed jax key; imports jax."""
        return import_module("jax").random.key(
            self._integer("jax", names) >> 32
        )  # 32 bits: what jax takes without its x64 mode

    def env(self, *names: Name) -> int:
        """Return a seed for an environment's ``reset(seed=...)``: an integer below 2**31."""
        return self._integer("env", names) >> 33

    def _integer(self, kind: str, names: tuple[Name, ...]) -> int:
        return int(self.child(*names).sequence(kind).generate_state(1, np.uint64)[0])


def streams(seed: int, *names: Name) -> Streams:
    """Return the tree of streams below `seed` and `names`; see `Streams`."""
    return Streams(seed, *names)


def numpy_rng(seed: int, *names: Name) -> np.random.Generator:
    """Return the NumPy generator of one named stream.

    Args:
        seed: Non-negative integer.
        names: Text or integers that name the stream.

    Returns:
        A generator at the beginning of that stream.

    Raises:
        TypeError: As `Streams`.
        ValueError: As `Streams`.

    Example:
        >>> bool(numpy_rng(0, "data").random() == numpy_rng(0, "noise").random())
        False
    """
    return Streams(seed, *names).numpy()


def _encode(name: Name) -> str:
    """Text that no other name or sequence of names shares."""
    text = str(name)
    return f"{'s' if isinstance(name, str) else 'i'}{len(text)}:{text}"
