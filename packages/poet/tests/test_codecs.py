"""The third action: values kept compressed, found codecs, and which values are spared."""

import itertools
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from poet import codecs, compiling
from poet.codecs import Codec, CodecError, CodecStore, approximated, codec_tier, compressible, find_codec, key_of
from poet.device import Device
from poet.events import Event, Kind, compute, drop, free, page_in, page_out
from poet.executor import Executor
from poet.profiling import Transfer
from poet.trace_store import PageStore
from poet.tracing import trace


class Halves:
    """Single precision as bfloat16, rounded to nearest: inexact, deterministic, and easy to foretell."""

    bits: tuple[int, ...] = (16,)
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)

    def __init__(self) -> None:
        self.keys: list[int] = []

    def nbytes(self, numel: int, dtype: torch.dtype, bits: int) -> int:
        return 2 * numel

    def compress(self, numbers: Tensor, bits: int, key: int) -> Tensor:
        self.keys.append(key)
        return numbers.to(torch.bfloat16).view(torch.uint8)

    def decompress(self, codes: Tensor, bits: int, out: Tensor) -> None:
        out.copy_(codes.view(torch.bfloat16))


FREE = Transfer(0.0, 1e15), Transfer(0.0, 1e15)


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def test_codecs_are_found_by_name(monkeypatch):
    entry = EntryPoint("halves", f"{__name__}:Halves", codecs.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: {"halves": Halves(), "broken": object()}[self.name])
    points = [entry, EntryPoint("broken", "nowhere:nothing", codecs.GROUP)]
    monkeypatch.setattr(codecs, "entry_points", lambda group: points if group == codecs.GROUP else [])
    assert isinstance(find_codec("halves"), Codec)
    with pytest.raises(CodecError, match=r"'broken' \(nowhere:nothing\) is not a poet.codecs.Codec"):
        find_codec("broken")
    with pytest.raises(CodecError, match="no codec 'other': broken, halves"):
        find_codec("other")


@pytest.mark.parametrize("order", ["contiguous", "channels last"])
def test_a_copy_comes_back_in_its_layout(order):
    codec, tensor = Halves(), torch.randn(2, 3, 4, 5)
    if order == "channels last":
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    store = CodecStore(codec, 16, seed=1)
    assert isinstance(store, PageStore)
    first, second = store.write(0, tensor), store.write(0, tensor)
    assert store.held == 2 * tensor.numel() * 2
    back = store.read(first)
    store.wait(first)
    assert torch.equal(back, rounded(tensor))
    assert back.stride() == tensor.stride()
    store.drop(first)
    store.drop(second)
    store.close()
    assert store.held == 0
    assert len(set(codec.keys)) == 2  # every copy is rounded by numbers of its own


@pytest.mark.parametrize("tensor", [torch.ones(4, dtype=torch.int64), torch.ones(8)[2:], torch.ones(4, 4)[:, ::2]])
def test_what_cannot_be_compressed_is_refused(tensor):
    with pytest.raises(CodecError, match="value 3 is a"):
        CodecStore(Halves(), 16).write(3, tensor)


def test_widths_are_checked():
    with pytest.raises(CodecError, match="bits=3: the codec offers 16"):
        CodecStore(Halves(), 3)
    with pytest.raises(CodecError, match="bits=3: the codec offers 16"):
        codec_tier(Halves(), 3, [])


@pytest.mark.property
@given(st.integers(), st.integers(0, 2**70), st.integers(1, 1000))
def test_keys_differ(seed, start, count):
    keys = {key_of(seed, start + k) for k in range(count)}
    assert len(keys) == count
    assert all(0 <= key < 2**64 for key in keys)


class Padded(Halves):
    def nbytes(self, numel: int, dtype: torch.dtype, bits: int) -> int:
        return -(-numel // 100) * 217


@pytest.mark.property
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_a_tier_reserves_at_least_the_codes(sizes):
    codec = Padded()
    tier = codec_tier(codec, 16, [(n, torch.float32) for n in sizes], speed=FREE)
    assert (tier.name, tier.in_ram, tier.exact) == ("16-bit", True, False)
    stored = [(tier.stored(4 * n), codec.nbytes(n, torch.float32, 16)) for n in sizes]
    assert all(reserved >= needed for reserved, needed in stored)
    assert any(reserved <= needed + 1 for reserved, needed in stored)  # the least compressible one, tightly


def test_a_tier_takes_the_time_of_its_codec():
    speed = Transfer(0.1, 1000.0), Transfer(0.2, 500.0)
    tier = codec_tier(Halves(), 16, [(1000, torch.float32)], speed=speed)
    assert tier.read_seconds(4000) == pytest.approx(speed[0].seconds(4000), rel=1e-3)
    assert tier.write_seconds(4000) == pytest.approx(speed[1].seconds(4000), rel=1e-3)
    measured = codec_tier(Halves(), 16, [(1000, torch.float32)])
    assert 0 < measured.write_seconds(1 << 20) < 10


# Which values


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(8 * 16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.pool(torch.tanh(self.first(x)))).flatten(1))


def test_only_large_numbers_of_the_forward_pass_are_offered():
    sample = torch.randn(4, 1, 32, 32), torch.randint(0, 10, (4,))
    program = trace(Net(), cross_entropy, sample, measure=False)
    chosen = compressible(program, Halves())
    graph = program.graph
    assert chosen
    for v in chosen:
        assert program.bases[v].dtype is torch.float32
        assert graph.values[v].size >= codecs.SMALLEST
        assert not graph.values[v].keep
        assert graph.ops[graph.producer[v]].phase != "backward"
        assert any(graph.ops[i].phase == "backward" for i in graph.users[v])
    spared = {program.bases[v].dtype for v in range(len(graph.values)) if v not in chosen}
    assert torch.int64 in spared  # where the maxima were


def chain_program() -> Any:
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))
    sample = torch.randn(64, 64), torch.randn(64, 64)
    return trace(model, mse_loss, sample, measure=False), sample


def test_what_the_forward_pass_reads_must_be_exact():
    program, _ = chain_program()
    graph = program.graph
    v = graph.ops[0].outputs[0]
    everything = [compute(i) for i in range(len(graph.ops))]
    squeeze = [page_out(v), free(v), page_in(v)]
    before = [*everything[:1], *squeeze, *everything[1:]]
    assert approximated(program, before, frozenset({0})) == {v}
    assert approximated(program, before, frozenset()) == frozenset()
    backward = next(i for i, op in enumerate(graph.ops) if op.phase == "backward")
    after = [*everything[:backward], *squeeze, *everything[backward:]]
    assert approximated(program, after, frozenset({0})) == frozenset()
    # executed again from an inexact copy, for the backward pass alone
    again = [*everything[:backward], *squeeze, compute(1), *everything[backward:]]
    assert approximated(program, again, frozenset({0})) == frozenset()
    # an exact copy of an inexact value is not exact
    copies = [*everything[:1], page_out(v, 0), free(v), page_in(v, 0), page_out(v, 1), free(v), page_in(v, 1)]
    assert approximated(program, [*copies, *everything[1:]], frozenset({0})) == {v}


def test_gradients_are_those_of_the_rounded_value():
    """W₂'s gradient is dY₂ᵀ·h with h rounded; nothing else changes, to the bit."""
    program, sample = chain_program()
    graph = program.graph
    h = graph.ops[0].outputs[0]
    backward = next(i for i, op in enumerate(graph.ops) if op.phase == "backward")
    everything = [compute(i) for i in range(len(graph.ops))]
    events: list[Event] = [
        *everything[:backward], page_out(h), free(h), page_in(h), drop(h), *everything[backward:],
    ]  # fmt: skip
    step = Executor(program, events, stores=(CodecStore(Halves(), 16),))
    model = program.model
    loss = step.step(*sample)
    weights = [model[k].weight for k in range(3)]
    found = [w.grad for w in weights]
    values = [sample[0]]
    for w in weights:
        values.append(values[-1] @ w.t())
    exact = mse_loss(values[-1], sample[1])
    expected = torch.autograd.grad(exact, weights)
    assert torch.equal(loss, exact.detach())
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])
    delta = 2 * (values[3] - sample[1]).detach() / values[3].numel() @ weights[2].detach()
    torch.testing.assert_close(found[1], delta.t() @ rounded(values[1].detach()), rtol=1e-5, atol=1e-7)
    assert not torch.equal(found[1], expected[1])


def test_a_compiled_step_uses_the_tier(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(*itertools.chain(*((nn.Linear(64, 64), nn.Tanh()) for _ in range(5))), nn.Linear(64, 1))
    sample = torch.randn(256, 64), torch.randn(256, 1)
    codec = Halves()
    step = compiling.compile(
        model, mse_loss, sample, ram="75%", device=Device("bare"), codec=codec, bits=16, time_limit=2.0,
        recompute=False,
    )  # fmt: skip
    with step:
        codec.keys.clear()
        loss = step(*sample)
        exact = mse_loss(model(sample[0]), sample[1])
        expected = torch.autograd.grad(exact, list(model.parameters()))
        report, schedule = step.report(), step.schedule
    assert torch.equal(loss, exact.detach())
    assert report.measured <= report.limit < report.plain
    assert report.tiers == ("16-bit",)
    assert len(codec.keys) == report.paged_out > 0
    assert schedule.events is not None
    squeezed = {e.target for e in schedule.events if e.kind is Kind.PAGE_OUT}
    assert all(schedule.problem.graph.values[v].compressible for v in squeezed)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=0.05, atol=0.02 * float(gradient.abs().max()))


def test_without_a_codec_nothing_is_compressed():
    model, sample = nn.Linear(4, 1), (torch.ones(2, 4), torch.ones(2, 1))
    tier = codec_tier(Halves(), 16, [(8, torch.float32)], speed=FREE)
    with pytest.raises(ValueError, match="tier '16-bit' lies in RAM: give codec="):
        compiling.compile(model, mse_loss, sample, ram="100%", device=Device("d", tiers=(tier,)))
