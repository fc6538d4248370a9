"""A program on its own: pure operations, binding, other models, other graphs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from poet.graph import chain
from poet.program import SignatureError
from poet.trace_code import LayoutError
from poet.trace_layout import Layout, flat, kept, reader
from poet.tracing import trace


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 2))
    sample = torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 1, 0])
    return model, functional.cross_entropy, sample


def test_operations_are_pure():
    model, loss_fn, sample = small()
    before = copy.deepcopy(model)
    program = trace(model, loss_fn, sample, measure=False)
    externals = program.bind(*sample)
    copies = [t.clone() for t in externals]
    memory = {}
    for i, op in enumerate(program.graph.ops):
        program.run_op(i, memory, externals)
        first = {v: memory[v].clone() for v in op.outputs}
        inputs = {v: memory[v].clone() for v in op.inputs}
        storages = {v: memory[v].untyped_storage().data_ptr() for v in op.outputs}
        program.run_op(i, memory, externals)
        for v in op.outputs:
            assert torch.equal(memory[v], first[v])
            assert memory[v].untyped_storage().data_ptr() != storages[v] or memory[v].numel() == 0
        assert all(torch.equal(memory[v], t) for v, t in inputs.items())
    assert all(torch.equal(a, b) for a, b in zip(externals, copies, strict=True))
    assert sorted(memory) == list(range(len(program.graph.values)))
    for (_, a), (_, b) in zip(model.named_buffers(), before.named_buffers(), strict=True):
        assert torch.equal(a, b)
    loss = loss_fn(before(sample[0]), sample[1])
    loss.backward()
    assert torch.equal(program.loss.read(memory, externals), loss.detach())
    for gradient, parameter in zip(program.gradients, before.parameters(), strict=True):
        assert torch.equal(gradient.output.read(memory, externals), parameter.grad)
    names = {program.externals[m.external].name: m.output.read(memory, externals) for m in program.mutations}
    assert {name: t.tolist() for name, t in names.items()} == {name: t.tolist() for name, t in before.named_buffers()}


def test_values_do_not_share_storages():
    model, loss_fn, sample = small()
    program = trace(model, loss_fn, sample, measure=False)
    externals, memory = program.bind(*sample), {}
    for i in range(len(program.graph.ops)):
        program.run_op(i, memory, externals)
    pointers = [t.untyped_storage().data_ptr() for t in (*memory.values(), *externals)]
    assert len(set(pointers)) == len(pointers)
    for v, value in enumerate(program.graph.values):
        assert memory[v].untyped_storage().nbytes() == value.size
        assert program.bases[v].fits(memory[v])


def test_binding_checks_the_model_and_the_inputs():
    model, loss_fn, (inputs, targets) = small()
    program = trace(model, loss_fn, (inputs, targets), measure=False)
    other = copy.deepcopy(model)
    bound = program.with_model(other).bind(inputs, targets)
    storages = {p.untyped_storage().data_ptr() for p in other.parameters()}
    assert storages <= {t.untyped_storage().data_ptr() for t in bound}
    with pytest.raises(SignatureError, match="trace it again"):
        program.bind(inputs.to(memory_format=torch.channels_last), targets)
    with pytest.raises(SignatureError, match=r"'0\.weight' is now"):
        program.with_model(copy.deepcopy(model).to(memory_format=torch.channels_last)).bind(inputs, targets)
    with pytest.raises(SignatureError, match=r"train\(\) or eval\(\)"):
        program.with_model(copy.deepcopy(model).eval()).bind(inputs, targets)
    frozen = copy.deepcopy(model)
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(SignatureError, match="requires_grad changed"):
        program.with_model(frozen).bind(inputs, targets)
    baked = trace(model, lambda o, t, k: loss_fn(o, t) * k, (inputs, (targets, 3)), measure=False)
    baked.bind(inputs, (targets, 3))
    with pytest.raises(SignatureError, match="traced with 3, which is baked in"):
        baked.bind(inputs, (targets, 4))


def test_another_graph_must_have_the_same_operations():
    model, loss_fn, sample = small()
    program = trace(model, loss_fn, sample, measure=False)
    slower = replace(program.graph, ops=tuple(replace(op, seconds=1.0) for op in program.graph.ops))
    assert program.with_graph(slower).graph.ops[0].seconds == 1.0
    with pytest.raises(ValueError, match="same operations"):
        program.with_graph(chain("other", [1, 2]))


def test_a_wrong_stand_in_is_noticed_when_it_runs():
    @torch.library.custom_op("poet_tests::turned", mutates_args=())
    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.t().contiguous().t()

    turned.register_fake(lambda x: torch.empty_like(x))  # wrong: the strides are others
    turned.register_autograd(lambda ctx, gradient: gradient)
    model, sample = nn.Linear(3, 3), (torch.randn(4, 3), None)
    program = trace(model, lambda o: turned(o).square().sum(), sample, measure=False)
    externals, memory = program.bind(*sample), {}
    i = next(i for i, op in enumerate(program.graph.ops) if "turned" in op.name)
    for earlier in range(i):
        program.run_op(earlier, memory, externals)
    with pytest.raises(LayoutError, match="fake=False"):
        program.run_op(i, memory, externals)
    with pytest.raises(LayoutError, match="turned"):
        trace(model, lambda o: turned(o).square().sum(), sample, fake=True)
    program = trace(model, lambda o: turned(o).square().sum(), sample)  # traced again for real
    assert program.graph.ops[0].seconds is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
def test_layouts(dtype):
    whole = torch.arange(24).to(dtype).view(2, 3, 4).permute(2, 0, 1)
    layout = Layout.of(whole)
    assert layout.dense
    assert layout.whole(whole.untyped_storage().nbytes())
    assert kept(layout, layout.nbytes) is layout
    for part in (whole[1:], whole[:, :, ::2], whole[:1, None].expand(3, 5, 2, 3), whole.flatten()[3:9]):
        shown = Layout.of(part)
        if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            continue
        get = reader(shown, layout)
        assert torch.equal(get(whole), part)
        assert get(whole).data_ptr() == part.data_ptr()
        assert torch.equal(reader(shown, kept(shown, layout.nbytes))(flat(whole)), part)
    assert reader(layout, layout) is None
    assert not Layout.of(whole[:, :, ::2]).dense
    assert not Layout.of(whole[1:]).whole(layout.nbytes)


def test_layouts_of_other_types_on_the_same_storage():
    numbers = torch.randn(4, 6)
    complexes = torch.view_as_complex(numbers.view(4, 3, 2))
    base = Layout.of(numbers)
    for part in (complexes, complexes[1:], complexes.conj(), complexes.conj().imag, numbers.view(torch.int32)[2:]):
        found = reader(Layout.of(part), base)(numbers)
        assert torch.equal(found, part)
        assert (found.is_conj(), found.is_neg()) == (part.is_conj(), part.is_neg())
        assert found.untyped_storage().data_ptr() == numbers.untyped_storage().data_ptr()
    shifted = torch.randn(40)[8:32].view(4, 6)  # the storage begins earlier than it did while tracing
    assert torch.equal(
        reader(Layout.of(complexes[1:]), base)(shifted), torch.view_as_complex(shifted.view(4, 3, 2))[1:]
    )
