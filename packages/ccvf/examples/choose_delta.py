"""Which confidence to deploy, from logs alone: fitted Q evaluation of every one, and the exact counterpart."""

import numpy as np
import torch

from ccvf import (
    Counts,
    FittedQEvaluation,
    TabularCCVL,
    choose_delta,
    empirical_returns,
    estimate_returns,
    gridworld_log,
    lava_world,
    train,
)

torch.set_num_threads(1)  # tensors are small
world = lava_world()
mdp, gamma = world.mdp, world.gamma
deltas = [0.01, 0.1, 0.5, 0.9, 1.0]

# Learn from one log, judge on another: on the same one, little conservatism looks best by construction.
learnt, held_out = (gridworld_log(world, "broad", 3000, np.random.default_rng(seed)) for seed in (0, 1))
values = TabularCCVL(gamma, alpha=0.3, deltas=deltas).fit(Counts.from_transitions(learnt, n_states=mdp.n_states))

# One network estimates what the greedy policy of every confidence is worth; here a table stands for the network.
evaluation = FittedQEvaluation(
    values, deltas, held_out.observation_shape, gamma=gamma, n_states=mdp.n_states, learning_rate=0.01, target_every=50
)
train(evaluation, held_out, updates=800, batch_size=256)
starts = held_out.observations() == int(mdp.initial.argmax())  # judged from the start, where it will be deployed
fitted = estimate_returns(evaluation, held_out, starts=starts)

# In the process that the log describes, the same is one linear system.
exact = empirical_returns(Counts.from_transitions(held_out, mdp.n_states), values, deltas, gamma, mdp.initial)

print("delta   fitted  exact in the log's process   in truth")
for k, delta in enumerate(deltas):
    truth = mdp.expected_return(values.policy(delta), gamma)
    print(f"{delta:<6g}  {fitted.value[k]:6.3f}  {exact.value[k]:6.3f}                       {truth:6.3f}")
print(f"chosen: {choose_delta(fitted):g} by the fit, {choose_delta(exact):g} by the exact estimates")
