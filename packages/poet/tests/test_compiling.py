"""Compiled steps: eager execution's results to the bit, within the limit, whatever a user does."""

import copy
import errno
import itertools
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from common_core.memory import PeakMeter
from poet import compiling, compiling_plan
from poet.compiling import CompiledStep, FallbackWarning, MemoryLimitError
from poet.compiling_guards import signature
from poet.compiling_memory import allocated_peak
from poet.compiling_plan import limit_of
from poet.compiling_updates import ByOptimizer, stale
from poet.device import Device, Tier
from poet.events import compute, free, page_in, page_out
from poet.graph import Graph, Op, Static, Value
from poet.program import Program
from poet.schedule import ScheduleError
from poet.stores import PageError
from poet.trace_call import TraceError
from poet.tracing import trace

FAST = Device("fast disk", tiers=(Tier("disk", 1e-9, 1e13, 1e-9, 1e13),))
BARE = Device("no disk")


class Block(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.body(x) + x)


def mlp() -> tuple[nn.Module, Callable[..., Tensor], tuple[Any, Any]]:
    layers = [layer for _ in range(4) for layer in (nn.Linear(32, 32), nn.GELU(), nn.Dropout(0.2))]
    model = nn.Sequential(*layers, nn.Linear(32, 1))
    return model, mse_loss, (torch.randn(128, 32), torch.randn(128, 1))


def tiny() -> tuple[nn.Module, Callable[..., Tensor], tuple[Any, Any]]:
    layers = [layer for _ in range(2) for layer in (nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2))]
    return nn.Sequential(*layers, nn.Linear(8, 1)), mse_loss, (torch.randn(12, 8), torch.randn(12, 1))


def resnet() -> tuple[nn.Module, Callable[..., Tensor], tuple[Any, Any]]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.MaxPool2d(2, stride=1), Block(8), Block(8), Block(8), Block(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    return model, cross_entropy, (torch.randn(4, 3, 24, 24), torch.randint(0, 10, (4,)))


def encoder() -> tuple[nn.Module, Callable[..., Tensor], tuple[Any, Any]]:
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 5))
    sample = torch.randn(4, 24, 32), torch.randint(0, 5, (4, 24))
    return model, lambda out, target: cross_entropy(out.flatten(0, 1), target.flatten()), sample


CASES = {"mlp": mlp, "resnet": resnet, "encoder": encoder}


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    return make()


def eager(model: nn.Module, loss_fn: Callable[..., Tensor], batch: tuple[Any, Any]) -> Tensor:
    loss = loss_fn(model(batch[0]), batch[1])
    loss.backward()
    return loss.detach()


def same_step(one: Callable[[], Tensor], other: Callable[[], Tensor], seed: int) -> None:
    """The same loss and random state from two steps that begin with the same one."""
    torch.manual_seed(seed)
    first, state = one(), torch.get_rng_state()
    torch.manual_seed(seed)
    second = other()
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def same_model(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            assert torch.equal(p.grad, q.grad), name
            assert p.grad.stride() == q.grad.stride(), name


@pytest.fixture
def quick(tmp_path):
    """`compile` on a machine whose disk is so fast that schedules use it, with short searches."""
    made: list[CompiledStep] = []

    def build(*args: Any, **options: Any) -> CompiledStep:
        made.append(compiling.compile(*args, **{"device": FAST, "time_limit": 1.0, "page_dir": tmp_path, **options}))
        return made[-1]

    yield build
    for step in made:
        step.close()


# The main promise


@pytest.mark.parametrize("share", ["60%", "40%"])
@pytest.mark.parametrize("case", CASES)
def test_equal_to_eager_and_within_the_limit(quick, case, share):
    model, loss_fn, batch = seeded(CASES[case])
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    step = quick(model, loss_fn, batch, ram=share, time_limit=1.5)
    assert torch.equal(state, torch.get_rng_state())
    same_model(model, twin)  # preparing leaves no trace
    for seed in range(3):
        with PeakMeter(alive=(model, batch)) as meter:
            same_step(partial(eager, twin, loss_fn, batch), partial(step, *batch), seed)
        same_model(model, twin)
        for parameter in itertools.chain(model.parameters(), twin.parameters()):
            parameter.grad = None
    report = step.report()
    assert report.limit < report.plain
    assert report.planned <= report.limit
    assert report.measured <= report.limit
    with PeakMeter(alive=(model, batch)) as meter:
        step(*batch)
    assert meter.reading().peak <= report.limit
    assert step.schedule.verify().ok
    assert report.recomputed + report.paged_in > 0


def test_without_tiers_it_recomputes_and_without_a_device_it_measures_one(quick):
    model, loss_fn, batch = seeded(mlp)
    bare = quick(model, loss_fn, batch, ram="60%", device=BARE)
    assert (bare.report().tiers, bare.report().paged_in) == ((), 0)
    assert quick(model, loss_fn, batch, ram="60%", tiers=()).report().tiers == ()
    measured = quick(model, loss_fn, batch, ram="100%", device=None)
    assert measured.report().tiers == ("disk",)


# What ram means


def test_percentages_are_of_what_is_beyond_the_fixed_bytes():
    ops = (Op("a", (), (0,)), Op("b", (0,), (1,)), Op("c", (0, 1), (2,), phase="backward"))
    values = Value("x", 100), Value("loss", 4, keep=True), Value("gradient", 16, keep=True)
    graph = Graph("g", ops, values, Static(parameters=1000))
    assert graph.resident_peak == 120
    assert limit_of("40%", graph) == 1000 + 20 + 40
    assert limit_of("100%", graph) == 1000 + graph.resident_peak
    assert limit_of("1KiB", graph) == limit_of(1024, graph) == 1024


def test_a_limit_that_nothing_keeps_is_explained(quick):
    model, loss_fn, batch = seeded(mlp)
    with pytest.raises(MemoryLimitError, match=r"cannot keep to 1.0 KiB.*give at least") as caught:
        quick(model, loss_fn, batch, ram="1KiB")
    assert isinstance(caught.value, ScheduleError)
    enough = int(str(caught.value).rpartition("ram=")[2].split()[0])
    report = quick(model, loss_fn, batch, ram=enough, device=FAST).report()
    assert report.measured <= enough


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ram": "much"}, ValueError, "expected bytes"),
        ({"ram": -1}, ValueError, "negative"),
        ({"ram": "50%", "margin": "some"}, ValueError, "expected bytes"),
        ({"ram": "50%", "gradients": "some"}, (ValueError, TypeError), "gradients"),
        ({"ram": "50%", "gradients": "apply"}, ValueError, "optimizer must be given"),
        ({"ram": "50%", "optimizer": print}, ValueError, "optimizer must be given for gradients='apply'"),
        ({"ram": "50%", "page_dir": "/no/such/folder"}, ValueError, "existing folder"),
        ({"ram": "50%", "codec": "none such"}, ValueError, "no codec 'none such'"),
        ({"ram": "50%", "tiers": ("tape",)}, ValueError, "no tier 'tape'"),
        ({"ram": "50%", "deadline": 0.5}, ValueError, "deadline"),
    ],
)
def test_bad_arguments(quick, options, error, text):
    model, loss_fn, batch = seeded(tiny)
    with pytest.raises(error, match=text):
        quick(model, loss_fn, batch, **options)


# Trying out


def test_what_measuring_shows_is_taken_off(quick, monkeypatch):
    model, loss_fn, batch = seeded(mlp)
    hidden = 30_000
    monkeypatch.setattr(compiling_plan, "allocated_peak", lambda run, device: allocated_peak(run, device) + hidden)
    report = quick(model, loss_fn, batch, ram="60%").report()
    assert report.tries > 1
    assert report.planned < report.measured <= report.limit


def test_a_limit_that_measuring_never_keeps(quick, monkeypatch):
    model, loss_fn, batch = seeded(mlp)
    peaks = itertools.count(10**6, 10**5)
    monkeypatch.setattr(compiling_plan, "allocated_peak", lambda run, device: (run(), next(peaks))[1])
    with pytest.raises(MemoryLimitError, match=r"schedules made for less did not help|cannot keep to .* left free"):
        quick(model, loss_fn, batch, ram="90%")


def test_gradients_that_arrive_last_are_waited_for(quick, monkeypatch):
    model, loss_fn, batch = seeded(tiny)
    twin = copy.deepcopy(model)
    solve = compiling_plan.solve

    def late(graph: Graph, *args: Any, **options: Any) -> Any:
        """A schedule that pages every gradient out, and in again as the last thing it does."""
        found = solve(graph, *args, **options)
        kept = [v for v, value in enumerate(graph.values) if value.keep]
        more = [event for v in kept for event in (page_out(v), free(v))] + [page_in(v) for v in kept]
        return replace(found, events=(*found.events, *more))

    monkeypatch.setattr(compiling_plan, "solve", late)
    step = quick(model, loss_fn, batch, ram="100%", margin=0)
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: (time.sleep(0.02), read(*args))[1])
    for seed in range(2):  # the second adds to what is there
        same_step(partial(eager, twin, loss_fn, batch), partial(step, *batch), seed)
        same_model(model, twin)


def test_a_margin_is_left_free(quick):
    model, loss_fn, batch = seeded(mlp)
    report = quick(model, loss_fn, batch, ram="80%", margin="10 KB").report()
    assert report.planned <= report.limit - 10_000


def test_allocated_peak_sees_temporaries_and_nested_profiles():
    def run() -> None:
        x = torch.zeros(1000)
        del x
        torch.zeros(500)

    cpu = torch.device("cpu")
    assert allocated_peak(run, cpu) == 4000
    with torch.autograd.profiler.profile(use_kineto=True):
        assert allocated_peak(run, cpu) == 4000


# Gradients


def test_gradients_add_up_as_in_eager_execution(quick):
    model, loss_fn, batch = seeded(resnet)
    twin = copy.deepcopy(model)
    step = quick(model, loss_fn, batch, ram="70%")
    for seed in range(3):
        same_step(partial(eager, twin, loss_fn, batch), partial(step, *batch), seed)
        same_model(model, twin)
    # the gradients that were there count as static bytes
    grads = sum(p.numel() * p.element_size() for p in model.parameters())
    assert step.schedule.problem.graph.static.gradients == grads
    with PeakMeter(alive=(model, batch, [p.grad for p in model.parameters()])) as meter:
        step(*batch)
    assert meter.reading().peak <= step.report().limit


def test_static_gradients(quick):
    model, loss_fn, batch = seeded(resnet)
    twin = copy.deepcopy(model)
    step = quick(model, loss_fn, batch, ram="50%", gradients="static")
    for seed in range(2):
        same_step(partial(eager, twin, loss_fn, batch), partial(step, *batch), seed)
        same_model(model, twin)
    assert set(step.consumed) == {name for name, _ in model.named_parameters()}
    with PeakMeter(alive=(model, batch, [p.grad for p in model.parameters()])) as meter:
        step(*batch)
    # the meter sees no workspace, and the plan counts the states of random generators as always there
    assert meter.reading().peak <= step.report().measured <= step.report().limit


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda ps: torch.optim.Adam(ps, lr=1e-2, foreach=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_in_the_backward_pass(quick, name):
    model, loss_fn, batch = seeded(resnet if name == "adam" else mlp)
    twin = copy.deepcopy(model)
    mine, other = OPTIMIZERS[name](list(model.parameters())), OPTIMIZERS[name](list(twin.parameters()))
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (mine, other)]
    step = quick(model, loss_fn, batch, ram="60%" if name == "adam" else "100%", gradients="apply", optimizer=mine)
    same_model(model, twin)

    def plain_step() -> Tensor:
        loss = eager(twin, loss_fn, batch)
        other.step()
        other.zero_grad()
        return loss

    for seed in range(3):
        same_step(plain_step, partial(step, *batch), seed)
        same_model(model, twin)
        for scheduler in schedulers:
            scheduler.step()
    states = [copy.deepcopy(o.state_dict()) for o in (mine, other)]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for key, a in states[0]["state"].items():
        b = states[1]["state"][key]
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in b), key
    static = step.schedule.problem.graph.static
    assert static.optimizer == sum(
        t.untyped_storage().nbytes() for s in mine.state.values() for t in s.values() if isinstance(t, Tensor)
    )
    with PeakMeter(alive=(model, batch, [list(s.values()) for s in mine.state.values()])) as meter:
        step(*batch)
    assert meter.reading().peak <= step.report().limit


def test_updates_by_a_function_and_frozen_parameters(quick):
    model, loss_fn, batch = seeded(tiny)
    model[0].requires_grad_(False)
    twin = copy.deepcopy(model)

    def descend(parameter: nn.Parameter, gradient: Tensor) -> None:
        parameter.sub_(gradient, alpha=0.1)

    step = quick(model, loss_fn, batch, ram="100%", gradients="apply", optimizer=descend)
    torch.manual_seed(1)
    step(*batch)
    torch.manual_seed(1)
    eager(twin, loss_fn, batch)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
                parameter.grad = None
    same_model(model, twin)
    model[3].weight.grad = torch.zeros(8, 8)
    with pytest.raises(RuntimeError, match="to be None"):
        step(*batch)


def test_optimizers_that_cannot_update_one_parameter_alone():
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="LBFGS looks at all"):
        ByOptimizer(torch.optim.LBFGS([parameter]))
    hooked = torch.optim.SGD([parameter], lr=0.1)
    hooked.register_step_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        ByOptimizer(hooked)

    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.param_groups[0]["lr"] *= 0.5

    with pytest.raises(ValueError, match="changes 'lr' of its group"):
        ByOptimizer(Counting([parameter], lr=0.1)).appetite(nn.ParameterList([parameter]))
    with pytest.raises(TypeError, match="or a function of a parameter"):
        compiling.compile(nn.Linear(1, 1), mse_loss, ram="1MB", gradients="apply", optimizer=torch.optim.SGD)  # type: ignore[arg-type]


def test_an_optimizers_appetite_is_exact():
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    appetite = ByOptimizer(optimizer).appetite(model)
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())
    numbers = sum(p.numel() for p in model.parameters())
    assert appetite.state == 2 * 4 * numbers + 4 * len(list(model.parameters()))  # two moments, one counter each
    assert appetite.scratch["0.weight"] >= 4 * 64 * 32  # the denominator


def test_operations_repeated_after_the_update_of_what_they_read_are_found():
    model, loss_fn, batch = seeded(tiny)
    program = trace(model, loss_fn, batch, gradients="apply", measure=False)
    once = list(range(len(program.graph.ops)))
    assert stale(program, [compute(i) for i in once]) == frozenset()
    assert stale(program, [compute(i) for i in [*once, 0]]) == {0}


# Signatures


def test_every_kind_of_call_has_its_schedule(quick):
    model, loss_fn, batch = seeded(tiny)
    twin = copy.deepcopy(model)
    step = quick(model, loss_fn, ram="100%")
    with pytest.raises(RuntimeError, match="no schedule yet"):
        step.report()

    def both(change: Callable[[nn.Module], Any], batch: tuple[Tensor, Tensor]) -> Any:
        change(model)
        change(twin)
        same_step(partial(eager, twin, loss_fn, batch), partial(step, *batch), 3)
        same_model(model, twin)
        for parameter in itertools.chain(model.parameters(), twin.parameters()):
            parameter.grad = None
        return step.schedule

    def rate(module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.5

    state = {name: torch.randn_like(t) for name, t in model.state_dict().items()}
    small = batch[0][:7], batch[1][:7]
    changes: list[tuple[Callable[[nn.Module], Any], tuple[Tensor, Tensor]]] = [
        (lambda m: m, batch),
        (lambda m: m, small),
        (lambda m: m, (batch[0].t().contiguous().t(), batch[1])),
        (lambda m: m.eval(), batch),
        (rate, batch),
        (lambda m: m.train(), batch),
        (lambda m: m[0].requires_grad_(False), batch),
        (lambda m: setattr(m[3], "weight", m[0].weight), batch),
        (lambda m: m.double(), (batch[0].double(), batch[1].double())),
    ]
    seen = [both(change, data) for change, data in changes]
    assert len({id(schedule) for schedule in seen}) == len(changes)
    again = both(lambda m: m.load_state_dict({k: v.double() for k, v in state.items()}), changes[-1][1])
    assert again is seen[-1]


def test_autocast_is_part_of_the_signature(quick):
    model, loss_fn, batch = seeded(tiny)
    twin = copy.deepcopy(model)
    step = quick(model, loss_fn, batch, ram="100%")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same_step(partial(eager, twin, loss_fn, batch), partial(step, *batch), 1)
    same_model(model, twin)


def test_signatures_tell_steps_apart():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.ones(3, 2)
    assert signature(model, (x, 1)) == signature(model, (x + 1, 1))
    assert signature(model, (x, 1)) != signature(model, (x, 1.0))
    assert signature(model, (x, 1)) != signature(model, (x, True))
    assert signature(model, ({"a": x}, 1)) != signature(model, ({"b": x}, 1))
    with pytest.raises(TypeError, match="set"):
        signature(model, ({1, 2},))


def test_models_that_return_their_loss_and_named_inputs(quick):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 1)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": mse_loss(self.line(x), y)}

    torch.manual_seed(0)
    model = Net()
    inputs = {"x": torch.randn(5, 4), "y": torch.randn(5, 1)}
    step = quick(model, None, inputs, ram="100%")
    assert torch.equal(step(inputs), model(**inputs)["loss"])
    with pytest.raises(ValueError, match=r"step\(inputs\)"):
        step(inputs, None)


# What is refused


class Looking(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def hooked(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 1))
    if kind == "parameter":
        model[0].weight.register_hook(lambda g: g)
    elif kind == "accumulated":
        model[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    else:
        getattr(model[0], f"register_{kind}_hook")(lambda *_: None)
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile in some releases of torch
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (partial(hooked, "forward"), "module '0' has a forward hook"),
        (partial(hooked, "forward_pre"), "a forward pre-hook"),
        (partial(hooked, "full_backward"), "a backward hook"),
        (partial(hooked, "full_backward_pre"), "a backward pre-hook"),
        (partial(hooked, "parameter"), "'0.weight' has a hook"),
        (partial(hooked, "accumulated"), "'0.weight' has a hook"),
        (lambda: nn.DataParallel(nn.Linear(32, 1)), "DataParallel, which exchanges gradients"),
        (lambda: nn.Sequential(torch.compile(nn.Linear(32, 1))), "'0' is compiled by torch.compile"),
        (lambda: Looking(32, 1), "looks at the data"),
    ],
)
def test_what_a_schedule_cannot_repeat_is_refused_or_runs_eagerly(quick, make, text):
    batch = torch.randn(8, 32), torch.randn(8, 1)
    model = make()
    with pytest.raises(TraceError, match=text):
        quick(model, mse_loss, batch, ram="100%")
    if type(model) is Looking:
        twin = copy.deepcopy(model)
        with pytest.warns(FallbackWarning, match=text):
            step = quick(model, mse_loss, batch, ram="100%", fallback=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            assert torch.equal(step(*batch), eager(twin, mse_loss, batch))
        same_model(model, twin)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.zero_grad()
        step = quick(model, mse_loss, ram="100%", gradients="apply", optimizer=optimizer, fallback=True)
        with pytest.warns(FallbackWarning):
            step(*batch)
        torch.optim.SGD(twin.parameters(), lr=0.1).step()
        twin.zero_grad()
        same_model(model, twin)


def test_hooks_that_only_compute_are_traced(quick):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is the old weight norm, with a hook, that is meant
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(32, 1)))
    batch = torch.randn(8, 32), torch.randn(8, 1)
    step = quick(model, mse_loss, batch, ram="100%")
    loss = step(*batch)
    expected = torch.autograd.grad(mse_loss(model(batch[0]), batch[1]), list(model.parameters()))
    assert torch.equal(loss, mse_loss(model(batch[0]), batch[1]))
    assert all(torch.equal(g, p.grad) for g, p in zip(expected, model.parameters(), strict=True) if p.grad is not None)


# What goes wrong while it runs


def test_a_full_disk_leaves_the_model_intact(quick, monkeypatch):
    model, loss_fn, batch = seeded(mlp)
    twin = copy.deepcopy(model)
    step = quick(model, loss_fn, batch, ram="40%")
    assert step.report().paged_out > 1
    state = torch.get_rng_state()

    def full(*_args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwritev", full)
        for _ in range(2):
            with pytest.raises(PageError, match=r"No space left.*are as before the step") as caught:
                step(*batch)
            assert caught.value.errno == errno.ENOSPC
    same_model(model, twin)
    assert torch.equal(state, torch.get_rng_state())
    same_step(partial(eager, twin, loss_fn, batch), partial(step, *batch), 1)
    same_model(model, twin)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_the_model_intact(quick, monkeypatch, error):
    model, loss_fn, batch = seeded(resnet)
    twin = copy.deepcopy(model)
    step = quick(model, loss_fn, batch, ram="100%")
    state = torch.get_rng_state()
    run = Program.run_op

    def interrupted(self: Any, i: int, *args: Any) -> None:
        if i == 20:
            raise error
        run(self, i, *args)

    with monkeypatch.context() as broken:
        broken.setattr(Program, "run_op", interrupted)
        with pytest.raises(error):
            step(*batch)
    same_model(model, twin)
    assert torch.equal(state, torch.get_rng_state())
    same_step(partial(eager, twin, loss_fn, batch), partial(step, *batch), 1)
    same_model(model, twin)


def test_one_step_at_a_time(quick):
    model, loss_fn, batch = seeded(tiny)
    again: list[CompiledStep] = []

    def nested(parameter: nn.Parameter, gradient: Tensor) -> None:
        again[0](*batch)

    again.append(quick(model, loss_fn, ram="100%", gradients="apply", optimizer=nested))
    with pytest.raises(RuntimeError, match="running already"):
        again[0](*batch)
    assert len(again[0].consumed) == 1


def test_a_step_needs_gradients_and_an_open_step(quick):
    model, loss_fn, batch = seeded(tiny)
    step = quick(model, loss_fn, ram="100%")
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are disabled"):
        step(*batch)
    with pytest.raises(ValueError, match=r"step\(inputs, targets\)"):
        step(batch)
    with step:
        step(*batch)
    with pytest.raises(RuntimeError, match="closed"):
        step(*batch)
    with pytest.raises(RuntimeError, match="no schedule"):
        step.report()


def test_the_report_is_readable(quick):
    model, loss_fn, batch = seeded(tiny)
    text = str(quick(model, loss_fn, batch, ram="100%").report())
    assert "limit" in text
    assert "0 recomputations, 0 page-outs, 0 page-ins" in text


def test_few_schedules_are_kept(quick, monkeypatch):
    monkeypatch.setattr(compiling, "_KEPT", 2)
    model, loss_fn, batch = seeded(tiny)
    step = quick(model, loss_fn, ram="100%")
    schedules = []
    for rows in (3, 4, 5, 5, 3):
        step(batch[0][:rows], batch[1][:rows])
        schedules.append(step.schedule)
        model.zero_grad()
    assert schedules[2] is schedules[3]
    assert schedules[4] is not schedules[0]
