"""Schedules executed for real: equal to eager to the bit, within the planned memory, and safe when a step fails."""

import copy
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.profiler import profile
from torch.nn import functional

from common_core.memory import PeakMeter
from poet.device import Device, Tier
from poet.events import Event, Kind, compute, free, page_in, page_out
from poet.executor import Executor
from poet.graph import Graph
from poet.problem import Problem
from poet.program import SignatureError
from poet.replay import replay
from poet.schedule import ScheduleError
from poet.trace_drills import paged, recomputed, resident, shuffled
from poet.trace_store import MemoryStore
from poet.tracing import trace

RNG_STATE = 5056  # bytes of the processor's generator


class Block(nn.Module):
    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outside) for _ in range(2)])
        self.relu = nn.ReLU(inplace=True)
        self.side = nn.Identity()
        if stride > 1 or inside != outside:
            self.side = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        y = self.norms[1](self.second(self.relu(self.norms[0](self.first(x)))))
        y += self.side(x)
        return self.relu(y)


def resnet18(width=4):
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    widths = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 5))


class Tied(nn.Module):
    """A small language model whose embedding is also its last layer."""

    def __init__(self, words=20, width=16, layers=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 32, 0.1, "gelu", batch_first=True, norm_first=True)
        self.embedding, self.places = nn.Embedding(words, width), nn.Embedding(8, width)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.embedding(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.layers(hidden, mask=mask, is_causal=True)).flatten(0, 1)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(0.2), nn.Linear(16, 4))

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layers(x).float()


def case(name):
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 3])
    if name == "mlp":
        model = nn.Sequential(
            nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        )
        return model, functional.mse_loss, (torch.randn(5, 8), torch.randn(5, 4))
    if name == "resnet18":
        return resnet18(), functional.cross_entropy, (images, labels)
    if name == "channels_last":
        model = resnet18().to(memory_format=torch.channels_last)
        return model, functional.cross_entropy, (images.to(memory_format=torch.channels_last), labels)
    if name == "encoder":
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        model = nn.TransformerEncoder(layer, 2)
        return model, functional.mse_loss, (torch.randn(3, 6, 16), torch.randn(3, 6, 16))
    if name == "tied":
        return Tied(), functional.cross_entropy, (torch.randint(20, (3, 8)), torch.randint(20, (24,)))
    return Mixed(), functional.mse_loss, (torch.randn(5, 8), torch.randn(5, 4))


NAMES = ["mlp", "resnet18", "channels_last", "encoder", "tied", "autocast"]
_TRACED = {}


@pytest.fixture(params=NAMES)
def traced(request):
    return get(request.param)


def get(name):
    if name not in _TRACED:
        model, loss, sample = case(name)
        _TRACED[name] = (model, loss, sample, trace(model, loss, sample, repeats=1))
    model, loss, sample, program = _TRACED[name]
    return copy.deepcopy(model), loss, sample, program


def schedules(graph, seed=0):
    rate = 0.3 if len(graph.ops) < 50 else 0.04
    rng = np.random.default_rng(seed)
    return {
        "resident": resident(graph),
        "nothing freed": [compute(i) for i in range(len(graph.ops))],
        "recomputed": recomputed(graph),
        "paged": paged(graph),
        "shuffled": shuffled(graph, rng, tiers=2, rate=rate),
        "recomputation alone": shuffled(graph, rng, tiers=0, rate=rate / 2),
    }


def same(a, b):
    if a is None or b is None:
        return a is b
    return torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype


def assert_equal(eager, ours):
    for (name, a), (_, b) in zip(eager.named_parameters(), ours.named_parameters(), strict=True):
        assert same(a, b), f"parameter {name}"
        assert same(a.grad, b.grad), f"gradient of {name}"
    for (name, a), (_, b) in zip(eager.named_buffers(), ours.named_buffers(), strict=True):
        assert same(a, b), f"buffer {name}"


def executor(program, model, events, **options):
    return Executor(program.with_model(model), events, stores=[MemoryStore(), MemoryStore()], **options)


def test_every_schedule_equals_eager_to_the_bit(traced):
    model, loss_fn, (inputs, targets), program = traced
    eager, after = copy.deepcopy(model), []
    torch.manual_seed(7)
    for _ in range(3):
        loss = loss_fn(eager(inputs), targets)
        loss.backward()
        after.append((loss.detach(), copy.deepcopy(eager), torch.get_rng_state()))
        for a, b in zip(after[-1][1].parameters(), eager.parameters(), strict=True):
            a.grad = b.grad.clone()
    for events in schedules(program.graph).values():
        ours = copy.deepcopy(model)
        run = executor(program, ours, events)
        torch.manual_seed(7)
        for loss, expected, state in after:
            found = run.step(inputs, targets)
            assert same(found, loss)
            assert not found.requires_grad
            assert_equal(expected, ours)
            assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["tied", "resnet18"])
def test_training_equals_eager_to_the_bit(name):
    model, loss_fn, (inputs, targets), program = get(name)
    eager, ours = copy.deepcopy(model), copy.deepcopy(model)
    run = executor(program, ours, schedules(program.graph)["shuffled"])
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (eager, ours)]
    states = []
    for optimizer, step in zip(optimizers, (lambda: loss_fn(eager(inputs), targets).backward(), None), strict=True):
        torch.manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad()
            step() if step is not None else run.step(inputs, targets)
            optimizer.step()
        states.append(torch.get_rng_state())
    assert_equal(eager, ours)
    assert torch.equal(*states)


@pytest.mark.property
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.8), st.integers(0, 2))
def test_random_schedules_equal_eager(seed, rate, tiers):
    model, loss_fn, (inputs, targets), program = get("mlp")
    eager, ours = copy.deepcopy(model), copy.deepcopy(model)
    events = shuffled(program.graph, np.random.default_rng(seed), tiers, rate)
    torch.manual_seed(seed % 1000)
    expected = loss_fn(eager(inputs), targets)
    expected.backward()
    torch.manual_seed(seed % 1000)
    assert same(expected.detach(), executor(program, ours, events).step(inputs, targets))
    assert_equal(eager, ours)


# Memory


def planned(graph: Graph, events: list[Event]) -> int:
    tiers = tuple(Tier(name, 0.0, 1e9, 0.0, 1e9) for name in ("one", "two"))
    device = Device("toy", flops_per_second=1e9, flops_per_joule=1e9, tiers=tiers)
    return replay(Problem(graph, device, 10**12), events).peak


def allocator_peak(call):
    """Most bytes of torch's allocator in use at once, above those before."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(profile_memory=True, use_kineto=True) as profiled:
        call()
    now = peak = 0
    for event in sorted(profiled.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("name", ["mlp", "resnet18", "tied", "autocast"])
def test_the_allocators_peak_is_the_planned_one(name):
    model, _, (inputs, targets), program = get(name)
    for kind, events in schedules(program.graph).items():
        if kind in ("nothing freed", "recomputation alone"):
            continue
        run = executor(program, model, events)
        run.step(inputs, targets)  # lets kernels set up what they keep for ever
        model.zero_grad()
        with PeakMeter(alive=(model, inputs, targets)) as meter:
            run.step(inputs, targets)
        model.zero_grad()
        peak = allocator_peak(lambda run=run: run.step(inputs, targets))
        model.zero_grad()
        # states of the generator, which the graph counts among its static bytes
        draws = sum(bool(code.random) for code in program.codes)
        states = RNG_STATE * (draws + 2 if draws else 0)
        assert meter.reading().peak_added <= planned(program.graph, events), kind
        assert peak <= planned(program.graph, events) + states, kind


def test_nothing_is_left_behind():
    model, _, (inputs, targets), program = get("resnet18")
    run = executor(program, model, recomputed(program.graph))
    with PeakMeter(alive=(model, inputs, targets)) as meter:
        run.step(inputs, targets)
        model.zero_grad()
        assert meter.reading().current_added == 0
    stores = [MemoryStore(), MemoryStore()]
    Executor(program.with_model(model), schedules(program.graph)["shuffled"], stores=stores).step(inputs, targets)
    assert all(store.held == 0 and store.written > 0 for store in stores)


# Stores


class LateStore:
    """Moves nothing before it must: shows that the executor waits before it reads, frees or replaces."""

    def __init__(self):
        self.jobs = {}

    def write(self, value, tensor):
        handle = [tensor, None, tensor.clone(memory_format=torch.preserve_format)]
        self.jobs[id(handle)] = "write"
        return handle

    def read(self, handle):
        self.wait(handle)
        handle[0] = torch.full_like(handle[1], 99)
        self.jobs[id(handle)] = "read"
        return handle[0]

    def wait(self, handle):
        job = self.jobs.pop(id(handle), None)
        if job == "write":
            assert torch.equal(handle[0], handle[2])  # unchanged since the transfer was begun
            handle[1] = handle[0].clone(memory_format=torch.preserve_format)
            handle[0] = None
        elif job == "read":
            handle[0].copy_(handle[1])
            handle[0] = None

    def drop(self, handle):
        assert id(handle) not in self.jobs
        handle[1] = None


@pytest.mark.parametrize("name", ["mlp", "encoder"])
def test_transfers_are_waited_for(name):
    model, loss_fn, (inputs, targets), program = get(name)
    for seed in range(3):
        eager, ours = copy.deepcopy(model), copy.deepcopy(model)
        events = shuffled(program.graph, np.random.default_rng(seed), 2, 0.3)
        torch.manual_seed(2)
        expected = loss_fn(eager(inputs), targets)
        expected.backward()
        torch.manual_seed(2)
        stores = [LateStore(), LateStore()]
        assert same(expected.detach(), Executor(program.with_model(ours), events, stores=stores).step(inputs, targets))
        assert_equal(eager, ours)
        assert not stores[0].jobs
        assert not stores[1].jobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_a_store_keeps_every_bit(dtype):
    store = MemoryStore()
    tensor = torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last)
    handle = store.write(0, tensor)
    assert store.held == tensor.numel() * tensor.element_size()
    back = store.read(handle)
    assert same(tensor, back)
    assert back.data_ptr() != tensor.data_ptr()
    store.drop(handle)
    assert store.held == 0
    assert same(torch.empty(0), store.read(store.write(0, torch.empty(0))))


# Failures


class Broken:
    """Fails at the n-th transfer."""

    def __init__(self, n):
        self.inner, self.left = MemoryStore(), n

    def _count(self):
        self.left -= 1
        if not self.left:
            raise OSError("no space left")

    def write(self, value, tensor):
        self._count()
        return self.inner.write(value, tensor)

    def read(self, handle):
        self._count()
        return self.inner.read(handle)

    def wait(self, handle):
        self.inner.wait(handle)

    def drop(self, handle):
        self.inner.drop(handle)


@pytest.mark.parametrize("n", [1, 9, 40])
def test_a_failed_step_leaves_everything_as_before(n):
    model, _, (inputs, targets), program = get("resnet18")
    functional.cross_entropy(model(inputs), targets).backward()
    before = copy.deepcopy(model)
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        b.grad = a.grad.clone()
    store = Broken(n)
    run = Executor(program.with_model(model), paged(program.graph), stores=[store])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(OSError, match="no space left"):
        run.step(inputs, targets)
    assert_equal(before, model)
    assert torch.equal(state, torch.get_rng_state())
    assert store.inner.held == 0
    store.left = -1  # repaired: the same executor goes on
    run.step(inputs, targets)


def test_random_numbers_are_given_back_after_a_failure():
    model, _, (inputs, targets), program = get("mlp")
    draws = next(i for i, code in enumerate(program.codes) if code.random)
    v = program.graph.ops[draws].outputs[0]
    events = resident(program.graph)
    at = events.index(compute(draws)) + 1
    run = Executor(program.with_model(model), [*events[:at], page_out(v), *events[at:]], stores=[Broken(1)])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(OSError, match="no space left"):
        run.step(inputs, targets)
    assert torch.equal(state, torch.get_rng_state())


def test_impossible_schedules_are_refused():
    *_, program = get("mlp")
    graph, events = program.graph, resident(program.graph)
    first = next(k for k, event in enumerate(events) if event.kind is Kind.FREE)
    with pytest.raises(ScheduleError, match="not in RAM"):
        Executor(program, [events[first], *events])
    with pytest.raises(ScheduleError, match="never executed"):
        Executor(program, events[:-4])
    kept = next(v for v, value in enumerate(graph.values) if value.keep)
    with pytest.raises(ScheduleError, match="at the end"):
        Executor(program, [*events, free(kept)])
    with pytest.raises(ScheduleError, match="cannot happen"):
        Executor(program, [events[0], page_in(graph.ops[0].outputs[0]), *events[1:]], stores=[MemoryStore()])
    with pytest.raises(ValueError, match="one for each tier"):
        Executor(program, paged(graph))
    with pytest.raises(ValueError, match="apply must be given"):
        Executor(program, events, apply=lambda name, parameter, gradient: None)


def test_what_must_not_run_twice_does_not():
    model, loss_fn, sample, _ = get("mlp")

    @torch.library.custom_op("poet_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(lambda x: torch.empty_like(x))
    twice.register_autograd(lambda ctx, gradient: gradient * 2)
    program = trace(model, lambda x, y: loss_fn(twice(x), y), sample, measure=False)
    i = next(i for i, op in enumerate(program.graph.ops) if "twice" in op.name)
    assert not program.graph.ops[i].recomputable
    events = resident(program.graph)
    with pytest.raises(ScheduleError, match="executed again"):
        Executor(
            program, [*events[: events.index(compute(i)) + 1], compute(i), *events[events.index(compute(i)) + 1 :]]
        )


def test_other_inputs_are_refused():
    model, _, (inputs, targets), program = get("mlp")
    run = Executor(program.with_model(model), resident(program.graph))
    with pytest.raises(SignatureError, match=r"input 0 is float32\[4, 8\]"):
        run.step(inputs[:4], targets)
    with pytest.raises(SignatureError, match="float64"):
        run.step(inputs.double(), targets)
    with pytest.raises(SignatureError, match="strides"):
        run.step(inputs.t().contiguous().t(), targets)
    with pytest.raises(SignatureError, match="nested"):
        run.step((inputs,), targets)
    with pytest.raises(SignatureError, match="must be a tensor"):
        run.step(inputs, 3)
    with pytest.raises(SignatureError, match=r"'0.weight'.*trace the model again"):
        Executor(program.with_model(copy.deepcopy(model).double()), resident(program.graph)).step(inputs, targets)


# What happens to gradients


@pytest.mark.parametrize("name", ["mlp", "tied"])
def test_static_gradients_are_added_at_once(name):
    model, loss_fn, sample, _ = get(name)
    eager, ours = copy.deepcopy(model), copy.deepcopy(model)
    program = trace(ours, loss_fn, sample, gradients="static", measure=False)
    parameters = set(model.parameters())
    assert program.graph.static.gradients == sum(p.numel() * 4 for p in parameters)
    assert sum(value.keep for value in program.graph.values) == 1  # the loss
    run = Executor(program, shuffled(program.graph, np.random.default_rng(0), 1, 0.3), stores=[MemoryStore()])
    for step in (lambda: loss_fn(eager(sample[0]), sample[1]).backward(), lambda: run.step(*sample)):
        torch.manual_seed(4)
        step()
        step()
    assert_equal(eager, ours)
    assert sorted(run.consumed) == sorted(n for n, _ in ours.named_parameters())


@pytest.mark.parametrize("name", ["mlp", "tied", "resnet18"])
def test_updates_in_the_backward_pass_equal_updates_after_it(name):
    model, loss_fn, sample, _ = get(name)
    eager, ours = copy.deepcopy(model), copy.deepcopy(model)
    program = trace(ours, loss_fn, sample, gradients="apply", optimizer_bytes_per_parameter=4.0, measure=False)
    assert program.graph.static.optimizer == 4 * sum(p.numel() for p in model.parameters())
    given = []

    def apply(name, parameter, gradient):
        given.append(name)
        parameter.sub_(gradient, alpha=0.1)

    run = Executor(program, recomputed(program.graph), apply=apply)
    torch.manual_seed(4)
    for _ in range(3):
        eager.zero_grad()
        loss_fn(eager(sample[0]), sample[1]).backward()
        with torch.no_grad():
            for parameter in eager.parameters():
                parameter.sub_(parameter.grad, alpha=0.1)
    torch.manual_seed(4)
    for _ in range(3):
        run.step(*sample)
    eager.zero_grad()
    assert_equal(eager, ours)
    assert sorted(given[: len(given) // 3]) == sorted(n for n, _ in ours.named_parameters())


def test_an_updated_parameter_is_not_read_again():
    model, loss_fn, sample, _ = get("mlp")
    program = trace(model, loss_fn, sample, gradients="apply", measure=False)
    events = [compute(i) for i in range(len(program.graph.ops))]
    reads = [any(program.externals[e].kind == "parameter" for _, e in code.externals) for code in program.codes]
    backward = [op.phase == "backward" for op in program.graph.ops]
    assert [op.recomputable for op in program.graph.ops] == [
        not (a and b) for a, b in zip(reads, backward, strict=True)
    ]
    with pytest.raises(ScheduleError, match="after the update"):
        Executor(program, [*events, compute(0)], apply=lambda name, parameter, gradient: None)
    with pytest.raises(ValueError, match="apply must be given"):
        Executor(program, events)


def test_a_context_of_autocast_around_the_step_changes_nothing():
    model, loss_fn, sample, program = get("mlp")
    eager, ours = copy.deepcopy(model), copy.deepcopy(model)
    run = executor(program, ours, resident(program.graph))
    torch.manual_seed(3)
    loss_fn(eager(sample[0]), sample[1]).backward()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(False):
        run.step(*sample)
    assert_equal(eager, ours)


def test_kept_values_that_arrive_last_are_waited_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    sample = torch.randn(3, 4), torch.randn(3, 1)
    program = trace(model, functional.mse_loss, sample, measure=False)
    kept = [v for v, value in enumerate(program.graph.values) if value.keep]
    events = [*resident(program.graph)]
    for v in kept:
        events += [page_out(v), free(v)]
    events += [page_in(v) for v in kept]
    functional.mse_loss(model(sample[0]), sample[1]).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    Executor(program, events, stores=[LateStore()]).step(*sample)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
