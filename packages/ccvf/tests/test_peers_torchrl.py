"""Steps of DQN and discrete CQL against torchrl: the same networks and batch give the same loss and gradient."""

import copy

import pytest
import torch

from ccvf.baselines import DQN, DiscreteCQL
from ccvf.batches import Batch
from ccvf.configs import CQLConfig, DQNConfig
from ccvf.value_learner import Drawn

pytestmark = pytest.mark.peer
ACTIONS, GAMMA, SIZE = 5, 0.97, 32
PLAIN = {"gamma": GAMMA, "huber": None, "clip_gradient": None, "hidden": (16, 16)}
PREFIX = "module.0.module.network."  # of the peer's names of parameters


def batch_of(shape):
    generator = torch.Generator().manual_seed(0)
    observations, following = (torch.rand(SIZE, *shape, generator=generator) for _ in range(2))
    if len(shape) == 3:
        observations, following = observations > 0.5, following > 0.5
    return Batch(
        observations=observations,
        actions=torch.randint(ACTIONS, (SIZE,), generator=generator),
        rewards=torch.randn(SIZE, generator=generator),
        next_observations=following,
        terminated=torch.rand(SIZE, generator=generator) < 0.3,
        steps=torch.ones(SIZE, dtype=torch.int64),
    )


class Plain(torch.nn.Module):
    """A network without the argument of the confidence, as the peer calls it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, observations):
        return self.network(observations, torch.ones(1))[:, 0]


def theirs(loss_class, learner, **options):
    """The peer's loss with the learner's networks."""
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import QValueModule
    from torchrl.objectives import HardUpdate, ValueEstimators

    network = Plain(copy.deepcopy(learner.online["q"]))
    module = TensorDictModule(network, in_keys=["observation"], out_keys=["action_value"])
    actor = TensorDictSequential(module, QValueModule(action_space="categorical"))
    loss = loss_class(actor, action_space="categorical", loss_function="l2", **options)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    HardUpdate(loss, value_network_update_interval=500)  # without one it warns
    targets = dict(learner.target["q"].named_parameters())
    with torch.no_grad():
        for name, value in loss.target_value_network_params.flatten_keys(".").items():
            value.copy_(targets[name.removeprefix(PREFIX)])
    return loss


def table(batch):
    """The batch as the peer takes it; some episodes are cut: done, and bootstrapped all the same."""
    from tensordict import TensorDict

    cut = torch.arange(SIZE) < 4
    following = {
        "observation": batch.next_observations,
        "reward": batch.rewards.unsqueeze(1),
        "terminated": batch.terminated.unsqueeze(1),
        "done": (batch.terminated | cut).unsqueeze(1),
    }
    return TensorDict({"observation": batch.observations, "action": batch.actions, "next": following}, [SIZE])


def ours(learner, batch):
    loss, metrics = learner.objective(
        Drawn(batch.observations, batch.actions, batch.rewards, batch.discounts(GAMMA), batch.next_observations)
    )
    loss.backward()
    return loss, metrics


def assert_same_gradients(learner, loss):
    gradients = {name: value.grad for name, value in loss.value_network_params.flatten_keys(".").items()}
    for name, parameter in learner.online["q"].named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[PREFIX + name], rtol=1e-5, atol=1e-7)


def with_other_target(learner, other):
    learner.target.load_state_dict(other.online.state_dict())
    return learner


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(6,), (10, 10, 4)])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_conservative_loss(shape, alpha):
    from torchrl.objectives import DiscreteCQLLoss

    learner = DiscreteCQL(shape, ACTIONS, CQLConfig(alpha=alpha, double=False, **PLAIN), generator=generator(0))
    batch = batch_of(shape)
    loss = theirs(DiscreteCQLLoss, learner)
    found = loss(table(batch))
    (found["loss_qvalue"] + alpha * found["loss_cql"]).backward()
    _, metrics = ours(learner, batch)
    torch.testing.assert_close(metrics["td"], found["loss_qvalue"].detach())
    torch.testing.assert_close(metrics["gap"], found["loss_cql"].detach())
    assert_same_gradients(learner, loss)


@pytest.mark.parametrize("shape", [(6,), (10, 10, 4)])
@pytest.mark.parametrize("double", [False, True])
def test_targets_of_another_network(shape, double):
    from torchrl.objectives import DQNLoss

    config = DQNConfig(double=double, **PLAIN)
    learner = with_other_target(*(DQN(shape, ACTIONS, config, generator=generator(seed)) for seed in (0, 1)))
    batch = batch_of(shape)
    loss = theirs(DQNLoss, learner, double_dqn=double, delay_value=True)
    found = loss(table(batch))["loss"]
    (0.5 * found).backward()  # theirs has no half
    mine, _ = ours(learner, batch)
    torch.testing.assert_close(mine, 0.5 * found)
    assert_same_gradients(learner, loss)


def test_the_peers_conservative_loss_ignores_its_target_network():
    """Why the test of the loss above has equal networks: remove this when the peer's release uses its own target."""
    from torchrl.objectives import DiscreteCQLLoss

    config = CQLConfig(double=False, **PLAIN)
    learner = with_other_target(*(DiscreteCQL((6,), ACTIONS, config, generator=generator(seed)) for seed in (0, 1)))
    batch = batch_of((6,))
    found = theirs(DiscreteCQLLoss, learner)(table(batch))["loss_qvalue"].detach()
    _, with_target = ours(learner, batch)
    learner.target.load_state_dict(learner.online.state_dict())
    _, without = ours(learner, batch)
    torch.testing.assert_close(found, without["td"])
    assert abs(found - with_target["td"]) > 1e-3
