import os
import subprocess
import sys
import types

import numpy as np
import pytest

from common_core.seeding import Streams, numpy_rng, streams

PROGRAM = "from common_core.seeding import *; t = streams(7, 'a', 3); print(t.env('e'), t.numpy('n').integers(2**40))"


def test_streams_are_the_same_everywhere():
    # Golden: these numbers are a promise across platforms, Python versions and hash seeds.
    expected = f"{streams(7, 'a', 3).env('e')} {streams(7, 'a', 3).numpy('n').integers(2**40)}"
    assert expected == "2004442448 35108445914"
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected


def test_a_stream_begins_anew_at_every_call():
    tree = streams(0, "task")
    np.testing.assert_array_equal(tree.numpy("x").random(5), tree.numpy("x").random(5))
    np.testing.assert_array_equal(numpy_rng(0, "task", "x").random(5), tree.numpy("x").random(5))
    np.testing.assert_array_equal(tree.child("x").numpy().random(5), tree.numpy("x").random(5))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "a"), (1, "a")),
        ((0, "a"), (0, "b")),
        ((0, "a", "bc"), (0, "ab", "c")),
        ((0, "1"), (0, 1)),
        ((0, "a", ""), (0, "a")),
        ((0, "s1:b"), (0, "", "b")),
        ((0, "numpy"), (0,)),
    ],
)
def test_different_names_and_seeds_give_different_streams(one, other):
    assert numpy_rng(*one).integers(2**63) != numpy_rng(*other).integers(2**63)


def test_kinds_of_generators_do_not_share_numbers():
    tree = streams(3, "x")
    integers = {tree._integer(kind, ()) for kind in ("numpy", "torch", "jax", "env")}
    assert len(integers) == 4


def test_streams_are_uncorrelated():
    x = np.array([numpy_rng(0, "run", k).normal(size=400) for k in range(30)])
    correlation = (x @ x.T / 400)[np.triu_indices(30, 1)]
    # 435 correlations of standard deviation 1/20: the largest exceeds 6 deviations with probability below 1e-6.
    assert np.abs(correlation).max() < 6 / 20


def test_environment_seeds_fit_in_31_bits():
    seeds = {streams(0).env(k) for k in range(200)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.peer
def test_torch_generators():
    import torch

    a, b, c = (torch.rand(3, generator=streams(0).torch(name)) for name in ("x", "x", "y"))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_jax_keys_get_32_bits(monkeypatch):
    stub = types.ModuleType("jax")
    stub.random = types.SimpleNamespace(key=lambda seed: ("key", seed))
    monkeypatch.setitem(sys.modules, "jax", stub)
    kind, seed = streams(0).jax("x")
    assert kind == "key"
    assert 0 <= seed < 2**32
    assert seed != streams(0).jax("y")[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.5,), TypeError, "seed=1.5 is float"),
        ((True,), TypeError, "bool"),
        ((-1,), ValueError, "negative"),
        ((0, 1.5), TypeError, "stream name 1.5"),
    ],
)
def test_bad_seeds_and_names_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Streams(*arguments)


def test_repr_and_numpy_integers():
    assert repr(streams(np.int64(3), "a", np.int32(2))) == "Streams(3, 'a', 2)"
