"""Members that start different: copies of a module with fresh weights, seeded, without touching global generators."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from dncc.surgery import refuse_lazy

__all__ = ["build_members", "checked_members", "draw_seeds", "fresh_copies", "fresh_copy"]


def checked_members(members: int) -> int:
    """`members` as it is.

    Args:
        members: Number of members.

    Returns:
        The same number.

    Raises:
        ValueError: If it is not at least 1.
        TypeError: If it is no whole number.
    """
    if isinstance(members, bool) or not isinstance(members, int):
        raise TypeError(f"members is {members!r}; it must be a whole number, at least 1")
    if members < 1:
        raise ValueError(f"members is {members}; an ensemble has at least 1 member")
    return members


def draw_seeds(count: int, generator: torch.Generator | None = None) -> list[int]:
    """Seeds, all different from one another up to chance 2**-63 a pair.

    Args:
        count: How many.
        generator: Where they are drawn from; torch's default generator if None.

    Returns:
        Non-negative integers below 2**63.
    """
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()


def fresh_copy(module: nn.Module, seed: int) -> nn.Module:
    """A copy whose layers are initialised anew, by `reset_parameters` of every submodule that has it.

    The weights depend on the seed alone, whatever the device; torch's default generator is left as it was. Parameters
    owned by a module without `reset_parameters` (class tokens, layer scales) keep their values.

    Args:
        module: Left as it is.
        seed: Of the new weights.

    Returns:
        The copy, on the same device and of the same types.

    Raises:
        ValueError: If the module has parameters and no submodule knows how to initialise its own.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> bool((fresh_copy(layer, 0).weight == fresh_copy(layer, 0).weight).all())
        True
        >>> bool((fresh_copy(layer, 0).weight == fresh_copy(layer, 1).weight).any())
        False
    """
    refuse_lazy(module, "the module to copy")
    other = copy.deepcopy(module)
    places = [(t, t.device) for t in (*other.parameters(), *other.buffers())]
    for tensor, _ in places:  # drawn on the CPU, so that a seed means the same weights everywhere
        tensor.data = tensor.data.cpu()
    resettable = [m for m in other.modules() if callable(getattr(m, "reset_parameters", None))]
    if not any(p.numel() for m in resettable for p in m.parameters()) and any(True for _ in other.parameters()):
        raise ValueError(f"no layer of {type(module).__name__} has reset_parameters(): copies would start equal and "
                         "stay equal; give a function that builds it, or modules built one by one")  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for submodule in resettable:
            submodule.reset_parameters()  # type: ignore[operator]
    for tensor, device in places:
        tensor.data = tensor.data.to(device)
    return other


def fresh_copies(module: nn.Module, members: int, generator: torch.Generator | None = None) -> list[nn.Module]:
    """`members` copies with fresh weights, each from a seed of its own; see `fresh_copy`.

    Args:
        module: Left as it is.
        members: How many.
        generator: Source of the seeds; torch's default generator if None.

    Returns:
        The copies.
    """
    return [fresh_copy(module, seed) for seed in draw_seeds(checked_members(members), generator)]


def build_members(
    source: Sequence[nn.Module] | Callable[[], nn.Module],
    members: int | None = None,
    generator: torch.Generator | None = None,
) -> list[nn.Module]:
    """Modules from a list, or from a function that builds one and is called once a member.

    Args:
        source: Modules, used as they are, or a function.
        members: How many; needed with a function, and checked against the length of a list.
        generator: Makes what a function builds reproducible: each call then sees torch's default CPU generator
            seeded from it, and the default generator's own state is put back.

    Returns:
        The modules.

    Raises:
        ValueError: If the number is missing, does not fit, or a module appears twice.
        TypeError: If something is no module.
    """
    if callable(source):
        if isinstance(source, nn.Module):
            raise TypeError("one module was given: give a list of modules, or a function that builds one")
        if members is None:
            raise ValueError("members= is needed with a function that builds a member")
        built = _called(source, checked_members(members), generator)
    else:
        built = list(source)
        if members is not None and checked_members(members) != len(built):
            raise ValueError(f"members is {members} and {len(built)} modules were given; leave members out")
    if not built:
        raise ValueError("no modules were given; an ensemble has at least 1 member")
    if wrong := [type(m).__name__ for m in built if not isinstance(m, nn.Module)]:
        raise TypeError(f"members must be torch modules; found {wrong[0]}")
    if len({id(m) for m in built}) < len(built):
        raise ValueError("a module appears twice among the members: they would share their weights; build each anew")
    return built


def _called(build: Callable[[], nn.Module], members: int, generator: torch.Generator | None) -> list[nn.Module]:
    if generator is None:
        return [build() for _ in range(members)]
    built = []
    with torch.random.fork_rng(devices=[]):
        for seed in draw_seeds(members, generator):
            torch.default_generator.manual_seed(seed)
            built.append(build())
    return built
