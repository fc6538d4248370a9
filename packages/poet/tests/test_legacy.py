"""The original's graphs, against the sizes that its released code gives."""

import pytest

from poet import legacy
from poet.device import Device
from poet.problem import formulate

# operations, pairs of value and reader, bytes of the forward pass, bytes of the largest working set
RELEASED = {
    "linear": (27, 51, 6776, 3256),
    "vgg16_cifar": (81, 159, 2_449_488, 1_048_576),
    "resnet18_cifar": (133, 269, 2_437_712, 262_144),
    "resnet18": (127, 259, 28_487_232, 10_408_192),
    "resnet50": (335, 683, 127_373_888, 12_390_400),
    "bert": (195, 411, 379_062_272, 31_457_280),
}


def pairs(graph):
    return sum(len(set(op.inputs)) for op in graph.ops)


@pytest.mark.parametrize("name", RELEASED)
def test_sizes_are_those_of_the_release(name):
    graph = legacy.graph(name)
    assert (len(graph.ops), pairs(graph), graph.forward_bytes, graph.largest_working_set) == RELEASED[name]


def test_resnet18_cifar_takes_all_of_256_kib():
    assert legacy.graph("resnet18_cifar").largest_working_set == 256 * 1024


@pytest.mark.parametrize("name", legacy.names())
def test_gradients_form_a_chain_of_double_cost(name):
    graph = legacy.graph(name)
    forward = [op for op in graph.ops if op.phase != "backward"]
    backward = [op for op in graph.ops if op.phase == "backward"]
    assert len(backward) == len(forward) - 1
    assert [op.flops for op in backward] == [2 * op.flops for op in reversed(forward[:-1])]
    at = len(forward) - 1
    for op, layer in zip(backward, reversed(range(len(forward) - 1)), strict=True):
        assert op.inputs[:2] == (layer, layer + 1)
        assert op.inputs[2:] in ((at,), ())  # only the first gradient reads the loss alone
        assert graph.values[op.outputs[0]].size == graph.values[layer + 1].size
        at = op.outputs[0]


@pytest.mark.parametrize("name", legacy.names())
def test_what_is_kept_and_what_is_always_there(name):
    graph = legacy.graph(name)
    assert [value.name for value in graph.values if value.keep] == [graph.values[-1].name]
    assert graph.static.total == 0
    assert graph.ops[0].flops == 0
    assert graph.ops[0].recomputable
    assert any("chain" in note for note in graph.notes)


def test_bert_takes_the_wrong_residual():
    graph = legacy.graph("transformer")
    kinds = [op.kind for op in graph.ops]
    last_sum = max(i for i, kind in enumerate(kinds) if kind == "add")
    assert kinds[graph.ops[last_sum].inputs[0]] == "linear"
    assert any("residual" in note for note in graph.notes)


def test_cost_of_one_convolution_by_hand():
    first = legacy.graph("resnet18").ops[1]
    assert first.flops == 2 * 49 * 3 * 224 * 224 * 64 + 64 * 112 * 112  # the stride of 2 is ignored


def test_batch_multiplies_the_bytes_of_convolutional_networks():
    one, four = legacy.graph("resnet18_cifar"), legacy.graph("resnet18_cifar", batch=4)
    loss = next(i for i, op in enumerate(one.ops) if op.phase == "loss")
    for a, b in list(zip(one.values, four.values, strict=True))[:loss]:
        assert b.size == 4 * a.size
    assert four.values[loss].size == one.values[loss].size  # the loss has the classes' shape whatever the batch


def test_the_plain_step_takes_the_time_of_its_flops():
    problem = formulate(legacy.graph("linear"), Device.load("nrf52840"))
    flops = sum(op.flops for op in problem.graph.ops)
    assert problem.baseline_seconds == pytest.approx(flops / 6.3699e6, rel=1e-5)
    assert problem.baseline_cost == pytest.approx(flops / 5.8001e8, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "batch", "says"),
    [
        ("resnet34", 1, "no legacy graph 'resnet34': give one of linear"),
        ("resnet18", 0, "batch must be a positive integer, got 0"),
        ("resnet18", True, "batch must be a positive integer"),
        ("bert", 2, "ignores the batch size"),
    ],
)
def test_refuses(name, batch, says):
    with pytest.raises(ValueError, match=says):
        legacy.graph(name, batch)
