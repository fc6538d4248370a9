"""Measuring a program: real bytes and workspaces, plausible durations, and a model that is left alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from poet.measure import measure
from poet.tracing import trace


def traced(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Dropout(0.5), nn.BatchNorm1d(40), nn.Linear(40, 3))
    sample = torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0])
    return model, sample, trace(model, functional.cross_entropy, sample, **options)


def test_sizes_are_those_of_the_tensors():
    _, sample, program = traced(measure=False)
    graph = measure(program, *sample, repeats=1)
    externals, memory = program.bind(*sample), {}
    for i in range(len(graph.ops)):
        program.run_op(i, memory, externals)
    assert [value.size for value in graph.values] == [
        memory[v].untyped_storage().nbytes() for v in range(len(graph.values))
    ]
    assert all(op.seconds is not None and op.seconds > 0 for op in graph.ops)
    assert [(op.inputs, op.outputs) for op in graph.ops] == [(op.inputs, op.outputs) for op in program.graph.ops]
    assert graph.static == program.graph.static
    assert graph.notes[-1].startswith("seconds and bytes measured")


def test_a_workspace_is_what_an_operator_allocates_beside_its_results():
    @torch.library.custom_op("poet_tests::greedy", mutates_args=())
    def greedy(x: torch.Tensor) -> torch.Tensor:
        first = torch.zeros(1000)  # 4000 bytes
        result = x * 2
        second = torch.zeros(500)  # 2000 bytes
        return result + 0 * (first.sum() + second.sum())

    greedy.register_fake(lambda x: torch.empty_like(x))
    greedy.register_autograd(lambda ctx, gradient: gradient * 2)
    sample = torch.randn(4, 6), None
    graph = trace(nn.Linear(6, 6), lambda o: greedy(o).sum(), sample, repeats=1).graph
    op = next(op for op in graph.ops if "greedy" in op.name)
    product = 4 * 6 * 4
    # at most: both vectors, the product, the results of sum, their sum (0-dimensional), and one of the scaled sums
    assert 6000 + product <= op.workspace <= 6000 + product + 32
    assert next(op for op in graph.ops if "addmm" in op.name).workspace == 0


def test_measuring_leaves_everything_as_it_was():
    model, sample, program = traced(measure=False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measure(program, *sample, repeats=2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_the_estimate_without_measuring_is_close():
    _, _, estimated = traced(measure=False)
    _, _, measured = traced(repeats=1)
    sizes = zip(estimated.graph.values, measured.graph.values, strict=True)
    assert all(a.size <= b.size for a, b in sizes)
    assert [op.seconds for op in estimated.graph.ops] == [None] * len(estimated.graph.ops)
    assert [op.flops for op in estimated.graph.ops] == [op.flops for op in measured.graph.ops]


def test_repeats_must_be_positive():
    _, sample, program = traced(measure=False)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        measure(program, *sample, repeats=0)
