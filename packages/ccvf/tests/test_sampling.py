import numpy as np
import pytest
import torch

from ccvf.sampling import Sampler, generator_state, restore_generator
from ccvf.transitions import Transitions


def log(size=20, dtype=np.uint8, shape=(2, 2)):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 2, size=(size + 1, *shape)).astype(dtype)
    ends = np.arange(size) % 7 == 6
    return Transitions.from_arrays(
        frames[:-1], np.arange(size) % 3, np.arange(size, dtype=float), frames[1:], ends & (np.arange(size) % 2 == 0),
        ends & (np.arange(size) % 2 == 1), n_actions=3,
    )  # fmt: skip


def equal(left, right):
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in left.__dataclass_fields__)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_a_batch_holds_the_rows_of_the_log(dtype):
    data = log(dtype=dtype)
    batch = Sampler(data, 4, torch.Generator()).take(torch.tensor([3, 0, 6, 3]))
    rows = np.array([3, 0, 6, 3])
    np.testing.assert_array_equal(batch.observations.numpy(), data.observations(rows))
    np.testing.assert_array_equal(batch.next_observations.numpy(), data.next_observations(rows))
    assert batch.observations.numpy().dtype == dtype
    assert batch.actions.tolist() == data.actions[rows].tolist()
    assert batch.rewards.tolist() == [3.0, 0.0, 6.0, 3.0]
    assert batch.terminated.tolist() == data.terminated[rows].tolist()
    assert batch.steps.tolist() == [1] * 4
    assert batch.rewards.dtype == torch.float32


def test_dtypes_that_torch_lacks_are_widened():
    assert Sampler(log(dtype=np.uint16), 2, torch.Generator()).next().observations.dtype == torch.int64
    assert Sampler(log(dtype=np.float64), 2, torch.Generator()).next().observations.dtype == torch.float32


def test_stacked_frames_are_put_together():
    frames = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    index = np.array([[0, 0, 1], [0, 1, 2], [1, 2, 3]])
    flags = np.zeros(3, bool)
    data = Transitions(frames, index, index + 1, np.zeros(3, int), np.zeros(3), flags, flags, np.zeros(3, int),
                       np.ones(3, int), 1)  # fmt: skip
    batch = Sampler(data, 3, torch.Generator()).take(torch.arange(3))
    assert batch.observations.shape == (3, 3, 2, 2)
    np.testing.assert_array_equal(batch.observations.numpy(), data.observations())
    np.testing.assert_array_equal(batch.next_observations.numpy(), data.next_observations())


def generators(kind, seed):
    return torch.Generator().manual_seed(seed) if kind == "torch" else np.random.default_rng(seed)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("shuffle", ["with-replacement", "epochs"])
def test_going_on_from_a_state_gives_the_same_batches(kind, shuffle):
    first = Sampler(log(), 6, generators(kind, 5), shuffle=shuffle)
    for _ in range(4):
        first.next()
    tensors, extra = first.state()
    expected = [first.next() for _ in range(7)]
    again = Sampler(log(), 6, generators(kind, 99), shuffle=shuffle)
    again.restore(tensors, extra)
    assert all(equal(again.next(), batch) for batch in expected)
    assert not equal(expected[0], expected[1])


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_every_epoch_has_each_row_once_across_batches(kind):
    sampler = Sampler(log(20), 6, generators(kind, 0), shuffle="epochs")
    drawn = torch.cat([sampler.next().rewards for _ in range(10)]).reshape(3, 20)
    assert (drawn.sort(1).values == torch.arange(20.0)).all()
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_draws_are_uniform(kind):
    sampler = Sampler(log(20), 100, generators(kind, 0))
    counts = torch.bincount(torch.cat([sampler.next().rewards for _ in range(200)]).long(), minlength=20)
    # Each of 20 counts is binomial(20000, 1/20); |z| > 5 somewhere has probability below 20 * 6e-7 = 1.2e-5.
    assert (counts - 1000).abs().max() < 5 * np.sqrt(20000 * 0.05 * 0.95)


def test_host_memory_gives_the_same_batches_as_the_device():
    near, far = (Sampler(log(), 6, torch.Generator().manual_seed(3), resident=r) for r in (True, False))
    assert all(equal(near.next(), far.next()) for _ in range(3))


def test_states_of_other_kinds_are_refused():
    tensors, extra = Sampler(log(20), 6, torch.Generator()).state()
    with pytest.raises(ValueError, match="20 transitions"):
        Sampler(log(19), 6, torch.Generator()).restore(tensors, extra)
    with pytest.raises(ValueError, match="epochs"):
        Sampler(log(20), 6, torch.Generator(), shuffle="epochs").restore(tensors, extra)
    with pytest.raises(ValueError, match="kind torch, and this one is PCG64"):
        Sampler(log(20), 6, np.random.default_rng()).restore(tensors, extra)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_every_numpy_generator_goes_through_json(kind):
    import json

    generator = np.random.Generator(kind(1))
    generator.random(5)
    tensors, extra = generator_state(generator)
    expected = generator.random(5)
    other = np.random.Generator(kind(2))
    restore_generator(other, tensors, json.loads(json.dumps(extra)))
    np.testing.assert_array_equal(other.random(5), expected)


def test_unfit_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        Sampler(log(), 0, torch.Generator())
    with pytest.raises(ValueError, match="at least 1"):
        Sampler(log().select(slice(0, 0)), 4, torch.Generator())
    with pytest.raises(ValueError, match="with-replacement"):
        Sampler(log(), 1, torch.Generator(), shuffle="once")
