"""From groups of recorded operators to a graph and the code of its operations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch

from poet.graph import Graph, Op, Static, Value
from poet.program import Output
from poet.trace_call import Call, Origin, Ref, Storage, repeats
from poet.trace_code import Arg, Code, Instruction, Result, copy_storage, copy_whole
from poet.trace_group import Group, Version, group, made, used
from poet.trace_layout import Layout, kept
from poet.trace_record import Recorder

RNG_STATE = {"cpu": 5056, "cuda": 16}
"""Bytes of a generator's state, by device type."""


@final
@dataclass
class Lowered:
    """Operations and values, before the graph is put together.

    Attributes:
        codes: Code of each operation.
        ops: The operations.
        values: The values; none is kept yet.
        bases: Layout by which each value is kept.
        value_of: Value of each version that has one.
        reads: Origins that each operation reads.
    """

    codes: list[Code] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    bases: list[Layout] = field(default_factory=list)
    value_of: dict[Version, int] = field(default_factory=dict)
    reads: list[frozenset[int]] = field(default_factory=list)

    def output(self, ref: Ref, recorder: Recorder) -> Output:
        """Where a tensor is to be found at the end."""
        version = (ref.storage, ref.version)
        if version in self.value_of:
            v = self.value_of[version]
            return Output(v, None, ref.layout, self.bases[v])
        external = recorder.storages[ref.storage].external
        if external is None:
            raise AssertionError(f"version {version} has no value")
        return Output(None, external, ref.layout, recorder.origins[external].layout)

    def whole(self, version: Version) -> Output:
        """All of a version's storage."""
        v = self.value_of[version]
        return Output(v, None, self.bases[v], self.bases[v])

    def graph(self, name: str, keep: Iterable[int], static: Static, notes: tuple[str, ...]) -> Graph:
        """The graph, with the kept values marked."""
        kept_values = set(keep)
        values = tuple(Value(v.name, v.size, i in kept_values) for i, v in enumerate(self.values))
        return Graph(name, tuple(self.ops), values, static, notes)


def lower(recorder: Recorder, outputs: Sequence[Version]) -> Lowered:
    """Group the recorded operators and give every operation its code.

    Args:
        recorder: The recorded step.
        outputs: Versions of storages that the step returns.
    """
    groups = group(recorder.calls, outputs, [storage.nbytes for storage in recorder.storages])
    owner = {version: i for i, g in enumerate(groups) for version in g.owns}
    visible = set(outputs)
    for i, g in enumerate(groups):
        visible.update(v for r in g.members for v in used(recorder.calls[r]) if owner.get(v, i) != i)
    lowered = Lowered()
    names: dict[str, int] = {}
    for g in groups:
        _Lowering(recorder, g, lowered, visible).run(names)
    return lowered


class _Lowering:
    """One group."""

    def __init__(self, recorder: Recorder, g: Group, into: Lowered, visible: set[Version]) -> None:
        self.storages: list[Storage] = recorder.storages
        self.origins: list[Origin] = recorder.origins
        self.calls: list[Call] = [recorder.calls[r] for r in g.members]
        self.anchor: Call = recorder.calls[g.anchor]
        self.group, self.into, self.visible = g, into, visible
        self.slot: dict[Version, int] = {}
        self.base: list[Layout] = []
        self.bytes: list[int] = []
        self.values: dict[int, int] = {}  # value -> slot
        self.externals: dict[int, int] = {}
        self.instructions: list[Instruction] = []
        self.named = 0

    def run(self, names: dict[str, int]) -> None:
        for call in self.calls:
            self._call(call)
        shown = [v for v in dict.fromkeys(v for c in self.calls for v in made(c)) if v in self.visible]
        if not shown:  # nobody reads what it draws, but eager execution draws it too
            shown = [made(self.calls[-1])[0]]
        name = _name(self.calls, self.anchor, names)
        stores = tuple((self.slot[version], self._value(version, name)) for version in shown)
        loaded = {*self.values.values(), *self.externals.values()}
        local = [s for s in range(len(self.base)) if s not in loaded and s not in {slot for slot, _ in stores}]
        instructions = _with_deaths(self.instructions, local)
        loads = tuple((slot, v) for v, slot in self.values.items())
        externals = tuple((slot, e) for e, slot in self.externals.items())
        devices = _devices(self.calls) if self.group.random else ()
        grad = any(call.grad for call in self.calls)
        self.into.codes.append(Code(len(self.base), loads, externals, instructions, stores, devices, grad))
        self.into.reads.append(frozenset(self.externals))
        self.into.ops.append(
            Op(
                name,
                tuple(self.values),
                tuple(v for _, v in stores),
                flops=sum(call.flops for call in self.calls),
                workspace=sum(self.bytes[s] for s in local),
                phase=self.anchor.phase,
                recomputable=all(repeats(call.func) for call in self.calls),
                kind="+".join(str(call.func) for call in self.calls),
            )
        )

    def _call(self, call: Call) -> None:
        for version in used(call):
            if version not in self.slot:
                self._load(version)
        copied: dict[int, int] = {}
        for version in zip(call.writes, call.versions, strict=True):
            if version not in self.group.owns:
                copied[version[0]] = self._copy(version)
        args = tuple(self._argument(a, copied) for a in call.args)
        kwargs = {name: self._argument(a, copied) for name, a in call.kwargs.items()}
        for s, v in zip(call.writes, call.versions, strict=True):
            self.slot[s, v + 1] = copied.get(s, self.slot[s, v])
        results = []
        for fresh in call.fresh:
            base = kept(fresh.layout, self.storages[fresh.storage].nbytes)
            slot = self.slot[fresh.storage, 0] = self._slot(base, self.storages[fresh.storage].nbytes)
            results.append(Result(fresh.position, slot, fresh.layout, base))
        self.instructions.append(Instruction(call.func, args, kwargs, tuple(results), ()))

    def _slot(self, base: Layout, nbytes: int) -> int:
        self.base.append(base)
        self.bytes.append(nbytes)
        return len(self.base) - 1

    def _load(self, version: Version) -> None:
        storage, nbytes = version[0], self.storages[version[0]].nbytes
        value = self.into.value_of.get(version)
        if value is not None:
            self.slot[version] = self.values[value] = self._slot(self.into.bases[value], nbytes)
            return
        external = self.storages[storage].external
        if external is None or version[1]:
            raise AssertionError(f"version {version} is read before it is made")
        self.slot[version] = self.externals[external] = self._slot(self.origins[external].layout, nbytes)

    def _copy(self, version: Version) -> int:
        """Copy a storage that others still need, to write in the copy."""
        nbytes, source = self.storages[version[0]].nbytes, self.slot[version]
        base = kept(self.base[source], nbytes)
        func = copy_storage if base == self.base[source] else copy_whole
        slot = self._slot(base, nbytes)
        argument = Arg(source, self.base[source], self.base[source])
        self.instructions.append(Instruction(func, (argument,), {}, (Result(None, slot, base, base),), ()))
        return slot

    def _argument(self, argument: Any, copied: Mapping[int, int]) -> Any:
        if isinstance(argument, Ref):
            slot = copied.get(argument.storage, self.slot[argument.storage, argument.version])
            return Arg(slot, argument.layout, self.base[slot])
        if isinstance(argument, list):
            return [self._argument(a, copied) for a in argument]
        return argument

    def _value(self, version: Version, name: str) -> int:
        """A value for a version that others read."""
        into, slot = self.into, self.slot[version]
        v = into.value_of[version] = len(into.values)
        taken = self.named
        self.named += 1
        into.values.append(Value(f"{name}[{taken}]" if taken else name, self.bytes[slot]))
        into.bases.append(self.base[slot])
        return v


def _with_deaths(instructions: Sequence[Instruction], local: Sequence[int]) -> tuple[Instruction, ...]:
    """The instructions, each with the slots that are not needed after it; results never used are not kept at all."""
    last: dict[int, int] = {}
    for k, instruction in enumerate(instructions):
        for slot in (*_slots(instruction.args), *_slots(list(instruction.kwargs.values()))):
            last[slot] = k
    done = []
    for k, old in enumerate(instructions):
        results = tuple(r for r in old.results if r.slot in last or r.slot not in local)
        dead = tuple(slot for slot in local if last.get(slot) == k)
        done.append(Instruction(old.func, old.args, old.kwargs, results, dead))
    return tuple(done)


def _slots(arguments: Any) -> Iterable[int]:
    if isinstance(arguments, Arg):
        yield arguments.slot
    elif isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from _slots(argument)


def _devices(calls: Sequence[Call]) -> tuple[torch.device, ...]:
    """Devices whose generators the random operators may use: that of the tensors, and the processor's."""
    layouts = [r.layout for c in calls if c.random for r in (*c.reads, *c.fresh)]
    return tuple(dict.fromkeys([torch.device("cpu"), *(layout.device for layout in layouts)]))


def _name(calls: Sequence[Call], anchor: Call, names: dict[str, int]) -> str:
    functions = dict.fromkeys(call.func._schema.name.split("::")[-1].rstrip("_") for call in calls)
    path = anchor.path
    name = (f"{path}." if path else "") + "+".join(functions)
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}:{names[name]}"
