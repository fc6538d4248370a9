"""Analytic graphs: known sizes, derived backward passes, and what is refused."""

from collections import Counter
from functools import cache
from itertools import pairwise

import jaxtyping
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poet import legacy, zoo
from poet.graph import Graph
from poet.zoo import layers
from poet.zoo.tape import Tape, Training

# parameters as published, or as torchvision and transformers count them
PARAMETERS = [
    (lambda **o: zoo.resnet18(**o), 11_689_512),
    (lambda **o: zoo.resnet50(**o), 25_557_032),
    (lambda **o: zoo.resnet18(image=32, **o), 11_173_962),
    (lambda **o: zoo.resnet50(image=32, **o), 23_520_842),
    (lambda **o: zoo.vgg16(**o), 138_357_544),
    (lambda **o: zoo.bert(**o), 109_482_240 + 768 * 2 + 2),
    (lambda **o: zoo.gpt2("small", seq=32, **o), 124_439_808),
    (lambda **o: zoo.gpt2("medium", seq=32, **o), 354_823_168),
]


@cache
def loaded(name: str) -> Graph:
    return zoo.load(name)


def by_name(graph: Graph):
    return {op.name: op for op in graph.ops}


def names_of(graph: Graph, indices):
    return [graph.values[v].name for v in indices]


def signature(graph: Graph, prefix: str):
    """What a block's operations do and how large everything is, without names."""
    size = [value.size for value in graph.values]
    return [
        (op.kind, op.flops, op.phase, tuple(size[v] for v in op.inputs), tuple(size[v] for v in op.outputs))
        for op in graph.ops
        if op.name.startswith(prefix)
    ]


@pytest.mark.parametrize(("build", "count"), PARAMETERS)
def test_parameters(build, count):
    assert build().static.parameters == 4 * count


@pytest.mark.parametrize("name", [name for name in zoo.names() if name != "gpt2_medium"])
def test_every_parameter_has_a_gradient_in_every_mode(name):
    kept, static, applied = (zoo.load(name, gradients=mode) for mode in ("keep", "static", "apply"))
    loss = 4
    assert sum(value.size for value in kept.values if value.keep) == kept.static.parameters + loss
    assert static.static.gradients == static.static.parameters
    assert kept.static.gradients == applied.static.gradients == 0
    for graph in (static, applied):
        assert [value.size for value in graph.values if value.keep] == [loss]
    assert static.resident_peak <= kept.resident_peak


@pytest.mark.parametrize("name", zoo.names())
def test_everything_that_is_made_is_wanted(name):
    graph = loaded(name)
    for users, value in zip(graph.users, graph.values, strict=True):
        assert users or value.keep


@pytest.mark.parametrize("name", zoo.names())
def test_phases_come_in_order(name):
    phases = [op.phase for op in loaded(name).ops]
    at = phases.index("loss")
    assert phases == ["forward"] * at + ["loss"] + ["backward"] * (len(phases) - at - 1)


def test_optimizers_remember_what_they_should():
    for optimizer, states in (("sgd", 0), ("momentum", 1), ("adam", 2)):
        static = zoo.resnet18_cifar(optimizer=optimizer).static
        assert static.optimizer == states * static.parameters


def test_what_may_be_recomputed():
    kept, static, applied = (
        zoo.resnet18_cifar(gradients="keep"),
        zoo.resnet18_cifar(gradients="static"),
        zoo.resnet18_cifar(gradients="apply"),
    )
    assert all(op.recomputable for op in kept.ops)
    once = {op.kind for op in static.ops if not op.recomputable}
    assert once == {"conv.grad_weight", "linear.grad_weight", "batch_norm.backward"}
    once = {op.kind for op in applied.ops if not op.recomputable}
    assert once == {
        *("conv.grad_weight", "linear.grad_weight", "batch_norm.backward"),
        *("conv.grad_input", "linear.grad_input"),
    }


def test_weights_are_read_before_they_are_changed():
    for mode, first, second in (("keep", "weight", "input"), ("apply", "input", "weight")):
        order = [op.name for op in zoo.resnet18_cifar(gradients=mode).ops]
        assert order.index(f"layer1.0.conv1.grad_{first}") < order.index(f"layer1.0.conv1.grad_{second}")


def test_a_perceptron_by_hand():
    graph = zoo.mlp(batch=2, sizes=(4, 3, 5))
    steps = [(op.name, names_of(graph, op.inputs), names_of(graph, op.outputs), op.flops) for op in graph.ops]
    assert steps == [
        ("linear1", [], ["linear1"], 2 * 2 * 4 * 3),
        ("relu1", ["linear1"], ["relu1"], 6),
        ("linear2", ["relu1"], ["linear2"], 2 * 2 * 3 * 5),
        ("loss", ["linear2"], ["loss", "loss:log_probabilities"], 5 * 10),
        ("loss.backward", ["loss:log_probabilities"], ["loss.backward"], 3 * 10),
        ("linear2.grad_weight", ["relu1", "loss.backward"], ["linear2.grad_weight"], 60),
        ("linear2.grad_input", ["loss.backward"], ["linear2.grad_input"], 60),
        ("relu1.backward", ["relu1", "linear2.grad_input"], ["relu1.backward"], 6),
        ("linear1.grad_weight", ["relu1.backward"], ["linear1.grad_weight"], 48),  # its input is always there
    ]
    assert [value.size for value in graph.values] == [24, 24, 40, 4, 40, 40, (15 + 5) * 4, 24, 24, (12 + 3) * 4]
    assert graph.static.inputs == 2 * 4 * 4 + 2 * 8


@pytest.mark.property
@given(
    st.integers(1, 50),
    st.lists(st.integers(1, 60), min_size=2, max_size=6),
    st.sampled_from([1, 2, 4, 8]),
)
def test_closed_forms_of_perceptrons(batch, sizes, itemsize):
    graph = zoo.mlp(batch, sizes, itemsize=itemsize)
    hidden, classes = sum(sizes[1:-1]), sizes[-1]
    assert graph.forward_bytes == itemsize * (batch * (2 * hidden + 2 * classes) + 1)
    products = sum(a * b for a, b in pairwise(sizes))
    assert graph.static.parameters == itemsize * (products + hidden + classes)
    flops = sum(op.flops for op in graph.ops if op.kind.startswith("linear"))
    assert flops == 2 * batch * (3 * products - sizes[0] * sizes[1])  # the first layer's input wants no gradient


def test_gradients_of_a_value_with_several_users_are_summed():
    tape = Tape(Training())
    x = layers.linear(tape, "x", tape.input((1, 8)), 8)
    a, b, c = (layers.relu(tape, name, x) for name in "abc")
    total = layers.add(tape, "s2", layers.add(tape, "s1", a, b), c)
    graph = tape.finish("fan", layers.cross_entropy(tape, "loss", total))
    op = by_name(graph)
    assert names_of(graph, op["c.backward"].inputs) == ["c", "loss.backward"]
    assert names_of(graph, op["a.backward"].inputs) == ["a", "loss.backward"]  # a sum passes its gradient on as it is
    assert names_of(graph, op["b.backward.sum"].inputs) == ["c.backward", "b.backward"]
    assert names_of(graph, op["a.backward.sum"].inputs) == ["b.backward.sum", "a.backward"]
    assert names_of(graph, op["x.grad_weight"].inputs) == ["a.backward.sum"]
    assert Counter(o.kind for o in graph.ops)["sum"] == 2


def test_a_value_added_to_itself_has_twice_the_gradient():
    tape = Tape(Training())
    x = layers.linear(tape, "x", tape.input((1, 8)), 8)
    graph = tape.finish("doubled", layers.cross_entropy(tape, "loss", layers.add(tape, "twice", x, x)))
    assert names_of(graph, by_name(graph)["loss.backward.sum"].inputs) == ["loss.backward"]
    assert names_of(graph, by_name(graph)["x.grad_weight"].inputs) == ["loss.backward.sum"]


def test_a_gradient_may_be_part_of_several_sums():
    tape = Tape(Training())
    x, y = (layers.linear(tape, name, tape.input((1, 8)), 8) for name in "xy")
    z = layers.add(tape, "z", layers.relu(tape, "a", x), layers.relu(tape, "b", y))
    total = layers.add(tape, "t", layers.add(tape, "s", x, y), z)
    early = layers.add(tape, "u", layers.add(tape, "v", x, y), total)
    graph = tape.finish("shared", layers.cross_entropy(tape, "loss", early))
    sums = [op for op in graph.ops if op.kind == "sum"]
    assert len(sums) == 6 - 2  # x and y are used three times each, and every time but the first there is a sum


def test_gradients_of_residual_blocks():
    graph = zoo.resnet18_cifar()
    op = by_name(graph)
    inputs = names_of(graph, op["layer1.1.conv1.grad_input.sum"].inputs)
    assert inputs == ["layer1.1.relu.backward", "layer1.1.conv1.grad_input"]
    assert names_of(graph, op["layer1.0.relu.backward"].inputs) == ["layer1.0.relu", "layer1.1.conv1.grad_input.sum"]
    assert "conv1.grad_input" not in op  # nobody wants the gradient of the images


def test_the_output_layer_shares_the_embeddings_gradient():
    graph = zoo.gpt2("small", seq=16, vocabulary=100)
    op = by_name(graph)
    assert "head.grad_weight" in names_of(graph, op["embedding.grad_weight"].inputs)
    kept = {value.name for value in graph.values if value.keep}
    assert "embedding.grad_weight" in kept
    assert "head.grad_weight" not in kept


def test_queries_keys_and_values_are_views_of_one_storage():
    graph = zoo.gpt2("small", seq=16, vocabulary=100)
    op = by_name(graph)
    assert names_of(graph, op["block0.scores"].inputs) == ["block0.qkv"]
    joined = names_of(graph, op["block0.qkv.split.backward"].inputs)
    assert joined == ["block0.context.grad_second", "block0.scores.grad_second", "block0.scores.grad_first"]


def test_strides_count_in_flops():
    op = by_name(zoo.resnet18())
    assert op["conv1"].flops == 2 * 49 * 3 * 64 * 112 * 112
    assert op["layer2.0.conv1"].flops == 2 * 9 * 64 * 128 * 28 * 28
    assert op["layer2.0.skip"].flops == 2 * 64 * 128 * 28 * 28


def test_bytes_of_what_is_saved():
    graph = zoo.resnet18(batch=2)
    size = {value.name: value.size for value in graph.values}
    assert size["conv1.norm:statistics"] == 2 * 64 * 4
    assert size["maxpool:indices"] == 2 * 64 * 56 * 56 * 8
    norms = [op.name for op in graph.ops if op.kind == "batch_norm"]
    assert graph.static.buffers == sum(size[f"{name}:statistics"] + 8 for name in norms)
    assert zoo.bert(blocks=1, itemsize=2).static.parameters == zoo.bert(blocks=1).static.parameters // 2
    half = {value.name: value.size for value in zoo.bert(seq=16, blocks=1, itemsize=2).values}
    assert half["block0.norm1"] == 16 * 768 * 2
    assert half["block0.norm1:statistics"] == 2 * 16 * 4
    assert half["block0.softmax.dropout:mask"] == 12 * 16 * 16


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("resnet50", [f"layer3.{i}." for i in range(1, 6)]),
        ("resnet18", ["layer4.1."]),
        ("bert", [f"block{i}." for i in range(12)]),
        ("gpt2", [f"block{i}." for i in range(11)]),
    ],
)
def test_repeated_blocks_look_alike(name, alike):
    graph = loaded(name)
    first = signature(graph, alike[0])
    assert len(first) > 10
    for prefix in alike[1:]:
        assert signature(graph, prefix) == first


def test_batches_multiply_activations_and_flops_of_the_forward_pass():
    one, three = zoo.resnet18_cifar(1), zoo.resnet18_cifar(3)
    for a, b in zip(one.ops, three.ops, strict=True):
        if a.phase != "backward":
            assert b.flops == 3 * a.flops
    assert one.static.parameters == three.static.parameters


def test_the_corrected_small_network_still_needs_less_than_256_kib_an_operation():
    corrected, original = zoo.resnet18_cifar(gradients="static"), legacy.graph("resnet18_cifar")
    assert corrected.largest_working_set == 3 * 16 * 32 * 32 * 4 + 2 * 16 * 4  # backward of a batch norm
    assert original.largest_working_set == 4 * 16 * 32 * 32 * 4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: zoo.load("alexnet"), "no network 'alexnet': give one of mlp"),
        (lambda: zoo.mlp(0), "batch must be a positive integer, got 0"),
        (lambda: zoo.mlp(1, (3,)), "sizes must give"),
        (lambda: zoo.mlp(1, (3, 0)), r"sizes\[1\] must be a positive integer"),
        (lambda: zoo.vgg16(image=48), "multiple of 32, got 48"),
        (lambda: zoo.vgg16(classes=0), "classes must be a positive integer, got 0"),
        (lambda: zoo.resnet18(image=-1), "image must be a positive integer"),
        (lambda: zoo.bert(heads=7), "width must be a multiple of heads"),
        (lambda: zoo.bert(seq=513), "seq must be at most positions, 512, got 513"),
        (lambda: Training(gradients="drop"), "gradients must be one of keep, apply, static, got 'drop'"),
        (lambda: Training(optimizer="lion"), "optimizer must be one of sgd, momentum, adam, got 'lion'"),
        (lambda: zoo.mlp(itemsize=3), "itemsize must be 1, 2, 4 or 8 bytes, got 3"),
        (lambda: zoo.gpt2("huge"), "size must be one of small, medium"),
    ],
)
def test_refuses(call, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own messages
    with pytest.raises(ValueError, match=says):
        call()
