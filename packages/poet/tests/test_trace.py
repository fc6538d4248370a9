"""Tracing: what becomes an operation and a value, every kind of model against eager, and what cannot be traced."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from poet.executor import Executor
from poet.trace_call import TraceError
from poet.trace_drills import resident, shuffled
from poet.trace_store import MemoryStore
from poet.tracing import trace


class Model(nn.Module):
    """A module around a function of itself and the inputs."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def total(output):
    return output.sum()


def squares(output):
    return output.square().sum()


def linear(forward, **parts):
    return Model(forward, layer=nn.Linear(6, 6), **parts)


def same(a, b):
    if a is None or b is None:
        return a is b
    return torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype


def call(model, loss_fn, sample):
    if loss_fn is None:
        output = model(**sample) if isinstance(sample, dict) else model(sample)
        return output if isinstance(output, torch.Tensor) else output["loss"]
    inputs, targets = sample
    if isinstance(inputs, dict):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return loss_fn(output) if targets is None else loss_fn(output, targets)


def check(model, loss_fn, sample, **options):
    """Two steps of two schedules, each against eager, to the bit; returns the program."""
    program = trace(model, loss_fn, sample, repeats=1, **options)
    rng = np.random.default_rng(1)
    for events in (resident(program.graph), shuffled(program.graph, rng, 1, 0.2)):
        eager, ours = copy.deepcopy(model), copy.deepcopy(model)
        run = Executor(program.with_model(ours), events, stores=[MemoryStore()])
        torch.manual_seed(3)
        expected = []
        for _ in range(2):
            loss = call(eager, loss_fn, sample)
            loss.backward()
            expected.append(loss.detach())
        state = torch.get_rng_state()
        torch.manual_seed(3)
        found = [run.step(*((sample,) if loss_fn is None else sample)) for _ in range(2)]
        assert all(same(a, b) for a, b in zip(expected, found, strict=True))
        assert torch.equal(state, torch.get_rng_state())
        for (name, a), (_, b) in zip(eager.named_parameters(), ours.named_parameters(), strict=True):
            assert same(a, b), name
            assert same(a.grad, b.grad), name
        assert all(same(a, b) for a, b in zip(eager.buffers(), ours.buffers(), strict=True))
    return program


# What the graph says


def test_the_graph_of_a_perceptron():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    graph = trace(model, functional.mse_loss, (torch.randn(5, 4), torch.randn(5, 2)), measure=False).graph
    names = [op.name for op in graph.ops]
    # the chain rule by hand: no gradient of the input, and of each layer the gradients of weight and bias
    assert names == [
        *("0.addmm", "1.tanh", "2.addmm", "mse_loss", "ones_like", "mse_loss_backward"),
        *("2.mm", "2.mm:2", "2.sum", "1.tanh_backward", "0.mm", "0.sum"),
    ]
    assert [op.phase for op in graph.ops] == ["forward"] * 3 + ["loss"] + ["backward"] * 8
    by_name = dict(zip(names, graph.ops, strict=True))
    floats = {"0.addmm": 15, "1.tanh": 15, "2.addmm": 10, "mse_loss": 1, "2.mm": 15, "2.mm:2": 6, "0.mm": 12}
    for name, count in floats.items():
        (v,) = by_name[name].outputs
        assert graph.values[v].size == 4 * count, name
    assert by_name["0.addmm"].flops == 2 * 5 * 4 * 3
    assert by_name["1.tanh"].flops == 15
    keeps = [graph.values[v].name for v in range(len(graph.values)) if graph.values[v].keep]
    assert sorted(keeps) == ["0.mm", "0.sum", "2.mm:2", "2.sum", "mse_loss"]
    tanh = by_name["1.tanh"].outputs[0]
    assert [names[i] for i in graph.users[tanh]] == ["2.addmm", "2.mm:2", "1.tanh_backward"]
    assert graph.static.parameters == 4 * (15 + 8)
    assert graph.static.inputs == 4 * (20 + 10)
    assert (graph.static.gradients, graph.static.optimizer, graph.static.buffers) == (0, 0, 0)


def test_views_are_no_operations():
    model = linear(lambda self, x: self.layer(x).view(2, 12).t()[1:].unsqueeze(0).transpose(1, 2))
    graph = check(model, squares, (torch.randn(4, 6), None)).graph
    kinds = "+".join(op.kind for op in graph.ops)
    assert not any(view in kinds for view in ("aten.view", "aten.t.", "transpose", "unsqueeze", "detach", "slice.T"))


def test_writing_in_place_shares_memory_only_where_nobody_looks():
    norm = Model(
        lambda self, x: functional.relu(self.norm(x), inplace=True) * self.a, norm=nn.BatchNorm1d(6), a=parameter(6)
    )
    graph = check(norm, total, (torch.randn(4, 6), None)).graph
    fused = next(op for op in graph.ops if "native_batch_norm+relu" in op.name)
    # result, mean, deviation, running mean, running variance, count: the batch's count runs along
    sizes = sorted(graph.values[v].size for v in fused.outputs)
    assert sizes == [8, 24, 24, 24, 24, 96]
    seen = linear(lambda self, x: (lambda y: (lambda z: y.add_(1).sum() + z.sum() + y.sum())(y * 2))(self.layer(x)))
    kinds = [op.kind for op in check(seen, total, (torch.randn(4, 6), None)).graph.ops]
    assert "aten.add_.Tensor" in kinds  # by itself: the old content is read by the product


def test_unneeded_results_are_left_out_and_unneeded_draws_are_not():
    def forward(self, x):
        x.exp().sum()
        torch.rand(3)
        return self.layer(x)

    names = [op.name for op in check(linear(forward), total, (torch.randn(4, 6), None)).graph.ops]
    assert "Model.rand" in names
    assert not any("exp" in name for name in names)


def test_a_custom_operator_has_the_names_of_modules_in_the_backward_pass_too():
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    model.add_module("head", nn.Linear(6, 1))
    graph = trace(model, total, (torch.randn(4, 6), None), measure=False).graph
    assert {op.name.rpartition(".")[0] for op in graph.ops if op.phase == "backward"} >= {"body.0", "body.1", "head"}


def test_static_bytes():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4).requires_grad_(False))
    sample = torch.randn(5, 6), None
    trained = 6 * 4 + 4 + 8
    static = trace(
        model, total, sample, optimizer_bytes_per_parameter=8.0, gradients="static", measure=False
    ).graph.static
    assert static.parameters == 4 * (trained + 20)
    assert static.gradients == 4 * trained
    assert static.optimizer == 8 * trained
    states = 3 * 5056  # of the one operation that draws, before the step, and during a repetition
    assert static.buffers == 4 * 8 + 8 + states
    assert static.inputs == 4 * 30


# Models of every kind, against eager


def _visible(self, x):
    y = self.layer(x)
    z = y * 2
    return y.add_(1).sum() + z.sum()


def _slice(self, x):
    y = self.layer(x) * 2
    y[:, 0] = x[:, 0]
    return y


def _average(self, x):
    self.mean.mul_(0.9).add_(x.mean(0).detach(), alpha=0.1)
    return self.layer(x * self.mean)


def _rebound(self, x):
    self.mean = self.mean * 2
    return self.layer(x * self.mean)


def _exchanged(self, x):
    self.mean, self.other = self.other, self.mean
    return self.layer(x * self.mean)


def _data(self, x):
    self.layer.weight.data = self.layer.weight.data * 2
    return self.layer(x)


def _clamped(self, x):
    with torch.no_grad():
        self.layer.weight.clamp_(-0.1, 0.1)
    return self.layer(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].exp() * 2


OUTSIDE = torch.linspace(-1, 1, 6)
X = (4, 6)
MODELS = {
    "one gradient for two parameters": (
        lambda: Model(lambda s, x: (s.a + s.b) * x, a=parameter(4, 6), b=parameter(4, 6)),
        total,
        X,
    ),
    "an expanded gradient": (lambda: Model(lambda s, x: s.a + x, a=parameter(6)), total, X),
    "the loss is a parameter": (lambda: Model(lambda s, x: s.a, a=parameter()), lambda o: o, X),
    "a loss of one element": (lambda: Model(lambda s, x: s.a, a=parameter(1)), lambda o: o, X),
    "the loss is a view": (lambda: Model(lambda s, x: s.a * x, a=parameter(4, 6)), lambda o: o[1, 2], X),
    "a parameter without gradient": (lambda: linear(lambda s, x: s.layer(x), idle=parameter(3)), total, X),
    "a module used twice": (lambda: linear(lambda s, x: s.layer(torch.tanh(s.layer(x)))), squares, X),
    "statistics updated twice": (lambda: Model(lambda s, x: s.n(s.n(x).tanh()), n=nn.BatchNorm1d(6)), squares, X),
    "eval": (lambda: Model(lambda s, x: s.n(x), n=nn.BatchNorm1d(6)).eval(), squares, X),
    "instance norm": (
        lambda: Model(lambda s, x: s.n(x), n=nn.InstanceNorm1d(6, affine=True, track_running_stats=True)),
        squares,
        (4, 6, 5),
    ),
    "group norm": (lambda: Model(lambda s, x: s.n(x), n=nn.GroupNorm(2, 6)), squares, (4, 6, 5)),
    "frozen": (lambda: linear(lambda s, x: s.layer(s.k(x)), k=nn.Linear(6, 6).requires_grad_(False)), squares, X),
    "a transposed parameter": (lambda: Model(lambda s, x: x @ s.a, a=nn.Parameter(torch.randn(5, 6).t())), squares, X),
    "a written value is visible": (lambda: linear(_visible), total, X),
    "a slice is written": (lambda: linear(_slice), squares, X),
    "a buffer is written": (lambda: linear(_average, mean=torch.zeros(6)), squares, X),
    "a buffer is rebound": (lambda: linear(_rebound, mean=torch.ones(6)), squares, X),
    "buffers are exchanged": (lambda: linear(_exchanged, mean=torch.ones(6), other=torch.rand(6)), squares, X),
    "a parameter's data are replaced": (lambda: linear(_data), squares, X),
    "a parameter is clamped": (lambda: linear(_clamped), squares, X),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 2)), squares, X),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)), squares, X),
    "noise": (lambda: linear(lambda s, x: s.layer(x + torch.randn_like(x)) + torch.rand(6)), squares, X),
    "rrelu": (lambda: linear(lambda s, x: functional.rrelu(s.layer(x), training=True)), squares, X),
    "complex numbers": (lambda: linear(lambda s, x: torch.fft.rfft(s.layer(x)).conj().abs()), squares, X),
    "real views": (
        lambda: linear(lambda s, x: torch.view_as_real(torch.view_as_complex(s.layer(x).view(4, 3, 2)) * 1j)),
        squares,
        X,
    ),
    "an outer tensor and a literal": (
        lambda: linear(lambda s, x: s.layer(x * OUTSIDE) + torch.tensor([1.0] * 6)),
        squares,
        X,
    ),
    "an autograd function": (lambda: linear(lambda s, x: Doubled.apply(s.layer(x))), squares, X),
    "expand and reshape": (
        lambda: linear(lambda s, x: s.layer(x)[..., None].expand(4, 6, 3).reshape(4, 18)),
        squares,
        X,
    ),
    "chunks": (
        lambda: linear(
            lambda s, x: torch.cat([a * b for a, b in zip(s.layer(x).chunk(3, 1), x.split(2, 1), strict=True)], 1)
        ),
        squares,
        X,
    ),
    "topk": (lambda: linear(lambda s, x: s.layer(x).topk(2).values), squares, X),
    "bfloat16": (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)).bfloat16(), squares, (4, 6, torch.bfloat16)),
    "float64": (lambda: nn.Linear(6, 6).double(), squares, (4, 6, torch.float64)),
    "integer inputs": (
        lambda: Model(lambda s, x: s.e(x), e=nn.Embedding(9, 4, padding_idx=1, max_norm=1.0)),
        squares,
        (4, 6, torch.int64),
    ),
    "bag": (lambda: nn.EmbeddingBag(9, 4), squares, (4, 6, torch.int64)),
    "attention": (
        lambda: Model(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(6, 2, dropout=0.1)),
        squares,
        (3, 2, 6),
    ),
    "flash attention": (
        lambda: linear(lambda s, x: functional.scaled_dot_product_attention(s.layer(x), x, x, is_causal=True)),
        squares,
        (2, 2, 8, 6),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 3, 3, 2),
            nn.Conv2d(3, 2, 3),
            nn.MaxPool2d(2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        ),
        squares,
        (1, 2, 6, 6),
    ),
    "lstm": (
        lambda: Model(lambda s, x: s.r(x)[0][:, -1], r=nn.LSTM(5, 4, 2, batch_first=True, dropout=0.2)),
        squares,
        (2, 4, 5),
    ),
    "gru": (lambda: Model(lambda s, x: s.r(x)[0], r=nn.GRU(5, 4)), squares, (2, 4, 5)),
    "no elements": (lambda: linear(lambda s, x: torch.cat([s.layer(x), s.layer(x[:0])])), squares, X),
}


def draw(shape):
    dtype = torch.float32
    if isinstance(shape[-1], torch.dtype):
        *shape, dtype = shape
    return torch.randint(9, tuple(shape)) if dtype is torch.int64 else torch.randn(*shape).to(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_eager(name):
    torch.manual_seed(0)
    make, loss_fn, shape = MODELS[name]
    check(make(), loss_fn, (draw(shape), None))


@pytest.mark.parametrize("name", ["a buffer is rebound", "attention", "an outer tensor and a literal", "noise", "topk"])
def test_equal_to_eager_when_traced_for_real(name):
    torch.manual_seed(0)
    make, loss_fn, shape = MODELS[name]
    check(make(), loss_fn, (draw(shape), None), fake=False)


def test_kinds_of_samples():
    torch.manual_seed(0)
    x, y = torch.randn(4, 6), torch.randn(6)
    check(linear(lambda self, a, b: self.layer(a) + b), total, ((x, y), None))
    check(linear(lambda self, a, b: self.layer(a) + b), total, ({"a": x, "b": y}, None))
    check(linear(lambda self, a: self.layer(a["q"][0]) + a["q"][1]), total, (({"q": [x, 3.0]},), None))
    check(linear(lambda self, a, b: {"loss": functional.mse_loss(self.layer(a), b)}), None, {"a": x, "b": x * 2})
    check(linear(lambda self, a: self.layer(a).sum()), None, x)
    check(linear(lambda self, a: self.layer(a)), squares, (torch.randn(1, 6).expand(4, 6), None))
    check(linear(lambda self, a: self.layer(a[1:].relu())), squares, (torch.randn(9, 12)[2:6, 3:9], None))
    classes = torch.tensor([0, -100, 2, 1])
    check(nn.Linear(6, 3), lambda o, t: functional.cross_entropy(o, t, label_smoothing=0.1), (x, classes))


def test_shared_storage_of_parameters():
    torch.manual_seed(0)
    flat = torch.randn(10)
    model = Model(lambda self, x: x * self.a + self.b, a=nn.Parameter(flat[:6]), b=nn.Parameter(flat[4:]))
    program = trace(model, squares, (torch.randn(4, 6), None))
    x = torch.randn(4, 6)
    found = Executor(program, resident(program.graph)).step(x, None)
    ours = [p.grad for p in model.parameters()]
    model.zero_grad()
    loss = squares(model(x))
    loss.backward()
    assert same(found, loss.detach())
    assert all(same(a, p.grad) for a, p in zip(ours, model.parameters(), strict=True))


# The model afterwards


def test_tracing_leaves_no_trace():
    def forward(self, x):
        self.last = self.layer(x)
        self.count = getattr(self, "count", 0) + 1
        return functional.dropout(self.norm(self.last)) * torch.rand(6)

    model = linear(forward, norm=nn.BatchNorm1d(6))
    state = {name: (id(t), t.clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    for fake in (True, False):
        rng = torch.get_rng_state()
        trace(model, total, (torch.randn(4, 6, generator=torch.Generator()), None), fake=fake)
        assert torch.equal(rng, torch.get_rng_state())
        assert not hasattr(model, "last")
        assert not hasattr(model, "count")
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            assert id(tensor) == state[name][0]
            assert torch.equal(tensor, state[name][1])
            assert tensor.grad is None
    with pytest.raises(TraceError):
        trace(model, lambda o: o.sum().item(), (torch.randn(4, 6), None))
    assert all(id(t) == state[n][0] for n, t in model.named_parameters())
    assert not nn.modules.module._global_forward_pre_hooks


# What cannot be traced


class Wrapped(torch.Tensor):
    pass


FAILING = {
    "a branch on data": (
        lambda s, x: s.layer(x) if x.sum() > 0 else x,
        "_local_scalar_dense.* in module 'Model' looks at",
    ),
    "item": (lambda s, x: s.layer(x) * x.sum().item(), "looks at the data"),
    "a mask": (lambda s, x: s.layer(x)[x[:, 0] > 0], "nonzero.* looks at the data"),
    "a written input": (lambda s, x: s.layer(x.relu_()), "writes input 0 in place"),
    "numpy": (lambda s, x: s.layer(x) + torch.from_numpy(x.detach().numpy()), "in module 'Model' while tracing"),
    "checkpointing": (
        lambda s, x: checkpoint(s.layer, x, use_reentrant=False),
        "'layer' runs again .* remove the checkpointing",
    ),
    "a wrong shape": (lambda s, x: s.layer(x[:, 1:]), "in module 'layer' while tracing"),
    "a generator": (lambda s, x: s.layer(x) + torch.rand(6, generator=torch.Generator()), "generator of its own"),
    "a sparse tensor": (lambda s, x: torch.sparse.mm(x.to_sparse(), s.layer(x).t()), "dense"),
    "a subclass": (lambda s, x: s.layer(x).as_subclass(Wrapped) + 1, "Wrapped|subclass"),
    "a foreign parameter": (lambda s, x: s.layer(x) * FOREIGN, "requires grad and is not a parameter"),
    "another parameter": (
        lambda s, x: (setattr(s.layer, "weight", nn.Parameter(s.layer.weight.detach() * 2)), s.layer(x))[1],
        "replaces parameter 'layer.weight'",
    ),
    "a grown buffer": (
        lambda s, x: (setattr(s, "memory", torch.cat([s.memory, x])), s.layer(x))[1],
        "replaces buffer 'memory'",
    ),
    "resized memory": (
        lambda s, x: s.layer(x).detach().resize_(2, 12) + s.layer(x).view(2, 12),
        "resize_|replaces the memory",
    ),
}
FOREIGN = torch.ones(6, requires_grad=True)


@pytest.mark.parametrize("name", FAILING)
def test_a_clear_error(name):
    forward, message = FAILING[name]
    with pytest.raises(TraceError, match=message):
        trace(linear(forward, memory=torch.zeros(1, 6)), total, (torch.randn(4, 6), None))


def test_losses_that_cannot_be_trained():
    sample = torch.randn(4, 6), None
    with pytest.raises(TraceError, match=r"one number, got shape \[4, 6\]"):
        trace(nn.Linear(6, 6), lambda o: o, sample)
    with pytest.raises(TraceError, match="one number, got a float"):
        trace(nn.Linear(6, 6), lambda o: 1.0, sample)
    with pytest.raises(TraceError, match="does not depend on any parameter"):
        trace(nn.Linear(6, 6), lambda o: o.detach().sum(), sample)
    with pytest.raises(TraceError, match="does not depend on any parameter"):
        trace(nn.Linear(6, 6).requires_grad_(False), total, sample)


def test_models_that_cannot_be_traced():
    sample = torch.randn(4, 6), None
    with pytest.raises(TraceError, match="not initialised"):
        trace(nn.LazyLinear(3), total, sample)
    with pytest.raises(TraceError, match="meta device"):
        trace(nn.Linear(6, 3, device="meta"), total, sample)
    with pytest.raises(TraceError, match="sparse"):
        trace(nn.Embedding(9, 2, sparse=True), total, (torch.tensor([1, 2]), None))
    with pytest.raises(TraceError, match="only plain dense tensors"):
        trace(nn.Linear(6, 3), total, (torch.randn(4, 6).to_sparse(), None))
    hooked = nn.Linear(6, 3)
    hooked.weight.register_hook(lambda gradient: gradient * 2)
    with pytest.raises(TraceError, match="'weight' has hooks"):
        trace(hooked, total, sample)
    compiled = nn.Linear(6, 3)
    compiled._orig_mod = None
    with pytest.raises(TraceError, match=r"torch\.compile"):
        trace(compiled, total, sample)


def test_bad_arguments():
    sample = torch.randn(4, 6), None
    with pytest.raises((ValueError, TypeError), match="drop"):  # the second where types are checked at run time
        trace(nn.Linear(6, 3), total, sample, gradients="drop")
    with pytest.raises(ValueError, match="must be a pair"):
        trace(nn.Linear(6, 3), total, torch.randn(4, 6))
