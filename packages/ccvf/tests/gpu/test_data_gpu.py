import numpy as np
import pytest
import torch

from ccvf.baselines import DQN
from ccvf.collecting import ReplayOptions, collect_replay
from ccvf.configs import DQNConfig
from ccvf.environments import make_vector
from ccvf.sampling import Sampler
from ccvf.transitions import Transitions

pytestmark = pytest.mark.gpu


def log(size=500):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, size=(size + 1, 8, 8)).astype(np.uint8)
    return Transitions.from_arrays(
        frames[:-1], rng.integers(4, size=size), rng.normal(size=size), frames[1:], np.arange(size) % 9 == 8
    )


@pytest.mark.parametrize("resident", [True, False, "auto"])
@pytest.mark.parametrize("shuffle", ["with-replacement", "epochs"])
def test_batches_on_the_device_are_those_of_the_host(resident, shuffle):
    near = Sampler(log(), 64, torch.Generator().manual_seed(0), shuffle=shuffle)
    far = Sampler(log(), 64, torch.Generator().manual_seed(0), "cuda", shuffle=shuffle, resident=resident)
    for _ in range(20):
        left, right = near.next(), far.next()
        for name in vars(left):
            assert getattr(right, name).is_cuda
            assert torch.equal(getattr(left, name), getattr(right, name).cpu())


def test_a_generator_on_the_device_goes_on_exactly():
    first = Sampler(log(), 64, torch.Generator("cuda").manual_seed(3), "cuda")
    first.next()
    tensors, extra = first.state()
    again = Sampler(log(), 64, torch.Generator("cuda"), "cuda")
    again.restore(tensors, extra)
    assert torch.equal(first.next().observations, again.next().observations)


@pytest.mark.parametrize("resident", [True, False])
def test_a_learner_on_the_device_is_logged(resident):
    pytest.importorskip("minatar")
    stepper = make_vector("minatar:breakout", 8)
    config = DQNConfig(learning_rate=1e-3, target_period=100)
    learner = DQN(stepper.observation_shape, stepper.n_actions, config, device="cuda")
    data = collect_replay(stepper, learner, 4000, ReplayOptions(warmup=500, parts=4), resident=resident)
    assert len(data) == 4000
    assert learner.updates == (4000 - 500) // 4
    np.testing.assert_array_equal(data.linked, ~data.last)
