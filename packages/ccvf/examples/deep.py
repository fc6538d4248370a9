"""A log of a learning agent, values at every confidence by one training, and returns of what each of them does.

Small sizes, to be run in under a minute on a CPU; make them larger for better policies.
"""

import tempfile
from pathlib import Path

import torch

from ccvf import (
    DQN,
    AdaptivePolicy,
    CCVLConfig,
    DeepCCVL,
    DQNConfig,
    FixedPolicy,
    Policy,
    ReplayOptions,
    collect_replay,
    evaluate,
    load_learner,
    make_vector,
    save_learner,
    train,
)

torch.set_num_threads(1)  # tensors are small
env, gamma = "CartPole-v1", 0.99

# Everything that a double DQN goes through while it learns, good and bad: 4,000 transitions.
stepper = make_vector(env, 8)
agent = DQN((4,), 2, DQNConfig(gamma=gamma, hidden=(64, 64), learning_rate=1e-3, target_period=100))
log = collect_replay(stepper, agent, 4000, ReplayOptions(warmup=500, frames_per_update=4), seed=0)
print(log.describe())

# One network, monotone in delta by construction; each update trains several confidences of every transition.
config = CCVLConfig(gamma=gamma, hidden=(64, 64), learning_rate=1e-3, target_period=100, confidences=4)
learner = DeepCCVL(log.observation_shape, log.n_actions, config)
history = train(learner, log, updates=600, batch_size=64)
print(f"\n{learner.updates} updates, loss {history.metrics[-1]['loss']:.3f}")

observations = torch.as_tensor(log.observations()[:5])
q = learner.q(observations, [0.01, 0.1, 1.0])  # (batch, confidences, actions)
print("values rise with delta:", bool((q.diff(dim=1) >= 0).all()))

with tempfile.TemporaryDirectory() as folder:
    save_learner(Path(folder, "learner.safetensors"), learner)
    learner, _ = load_learner(Path(folder, "learner.safetensors"))

policies: dict[str, Policy] = {f"delta {delta:g}": FixedPolicy(learner, delta) for delta in (0.01, 0.1, 1.0)}
policies["adaptive"] = AdaptivePolicy(learner, gamma=gamma)
print("\nreturns of 16 episodes of at most 200 steps")
for name, policy in policies.items():
    found = evaluate(policy, make_vector(env, 8), 16, seed=1, gamma=gamma, max_steps=200)
    print(f"{name:>10}: mean {found.returns.mean():.1f}, shortest {found.returns.min():.0f}")
