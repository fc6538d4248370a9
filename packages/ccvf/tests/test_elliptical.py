"""The elliptical estimate against closed forms and a plain inverse."""

import numpy as np
import pytest
import torch

from ccvf.elliptical import EllipticalBonus, inverse_factor
from ccvf.transitions import Transitions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_of(observations, actions, n_actions=3):
    n = len(actions)
    following, never = np.roll(observations, -1, 0), np.zeros(n, bool)
    return Transitions.from_arrays(observations, actions, np.zeros(n), following, never, n_actions=n_actions)


def table(ridge):
    states = np.repeat(np.arange(4), [1, 4, 9, 2])
    actions = np.zeros(16, int)
    actions[-1] = 1
    bonus = EllipticalBonus(n_states=5, ridge=ridge, unseen=2).fit(log_of(states, actions), generator())
    return bonus(torch.arange(5)).double().numpy(), np.array([[1, 0, 0], [4, 0, 0], [9, 0, 0], [1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("ridge", [1e-12, 0.3, 1])
def test_one_hot_features_count(ridge):
    found, counts = table(ridge)
    np.testing.assert_allclose(found, np.minimum(1 / np.sqrt(counts + ridge), 2), rtol=1e-6)


def test_without_ridge_it_is_the_inverse_root_of_the_count():
    found, counts = table(1e-12)
    seen = counts > 0
    np.testing.assert_allclose(found[seen], 1 / np.sqrt(counts[seen]), rtol=1e-6)
    assert (found[~seen] == 2).all()


def test_given_features_against_a_plain_inverse():
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(80, 6)), rng.integers(3, size=80)
    mixing = torch.randn(6, 4, generator=generator(), dtype=torch.float64)
    bonus = EllipticalBonus(lambda x: torch.tanh(x.double() @ mixing), ridge=0.5, unseen=100)
    found = bonus.fit(log_of(observations, actions), generator())(torch.as_tensor(observations).float())
    phi = np.tanh(observations.astype(np.float32).astype(float) @ mixing.numpy())
    for action in range(3):
        own = phi[actions == action]
        inverse = np.linalg.inv(own.T @ own + 0.5 * np.eye(4))
        expected = np.sqrt(np.einsum("nf,fg,ng->n", phi, inverse, phi))
        np.testing.assert_allclose(found[:, action].numpy(), expected, rtol=1e-5)


def test_inverse_factors():
    gram = torch.randn(3, 7, 4, generator=generator(), dtype=torch.float64)
    gram = gram.mT @ gram
    inverse = inverse_factor(gram, 0.1)
    identity = torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.inv(gram + 0.1 * identity)
    torch.testing.assert_close(inverse.mT @ inverse, expected)
    assert bool((inverse.triu(1) == 0).all())


def test_random_features_have_length_one_and_logged_directions_cost_less():
    rng = np.random.default_rng(0)
    near = rng.normal(size=(300, 8))
    bonus = EllipticalBonus().fit(log_of(near, rng.integers(2, size=300)), generator())
    phi = bonus.features(torch.as_tensor(near).float())
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(300, dtype=torch.float64))
    values = bonus(torch.as_tensor(near).float())
    torch.testing.assert_close(values[:, 2], torch.ones(300))  # never logged: the whole length
    assert float(values[:, :2].max()) < 0.9


def test_more_data_never_raises_it():
    rng = np.random.default_rng(0)
    observations, actions = rng.random((200, 5, 5, 2)) < 0.4, rng.integers(3, size=200)
    data, x = log_of(observations, actions), torch.as_tensor(observations)
    phi = torch.randn(50, 16, generator=generator(), dtype=torch.float64)
    features = lambda o: o.reshape(len(o), -1).double() @ phi  # noqa: E731
    half, whole = (EllipticalBonus(features, unseen=9).fit(d, generator())(x) for d in (data.select(slice(100)), data))
    assert bool((whole <= half * (1 + 1e-6)).all())


def test_given_features_are_needed_again():
    data = log_of(np.zeros((4, 2)), np.zeros(4, int))
    features = lambda x: x.double() + 1  # noqa: E731
    tensors, extra = EllipticalBonus(features).fit(data, generator()).state()
    with pytest.raises(ValueError, match="same features"):
        EllipticalBonus().restore(tensors, extra)
    again = EllipticalBonus(features)
    again.restore(tensors, extra)
    assert again(torch.zeros(1, 2)).shape == (1, 3)
