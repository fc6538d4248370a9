"""Two logs of one gridworld, one exact solution each, and a policy that finds out how much of it to believe."""

import numpy as np

from ccvf import AdaptivePolicy, Counts, TabularCCVL, evaluate, gridworld_log, lava_world, make_vector, u_grid

world = lava_world()  # 7 x 7, a bar of lava between start and goal, a tenth of the steps go astray
mdp, gamma = world.mdp, world.gamma
best = mdp.expected_return(mdp.optimal(gamma).policy, gamma)
deltas = (1e-4, 0.01, 0.1, 0.5, 1.0)

# A value at confidence delta is meant as a lower bound that fails with probability at most delta. Small: believe only
# what was seen often; 1: believe the log as it is. All of them are solved for at once.
solver = TabularCCVL(gamma, alpha=0.3, deltas=sorted({*u_grid(), *deltas}))

logs = {
    "narrow": gridworld_log(world, 0.1, 500, np.random.default_rng(0)),  # a tenth of the actions random
    "broad": gridworld_log(world, "broad", 3000, np.random.default_rng(0)),  # all of them random
}
print("discounted return, share of the optimal policy's")
for name, log in logs.items():
    values = solver.fit(Counts.from_transitions(log, n_states=mdp.n_states))
    fixed = [mdp.expected_return(values.policy(delta), gamma) / best for delta in deltas]

    # The belief over delta is moved by how badly the values at each predict what happens; it starts knowing nothing.
    policy = AdaptivePolicy(values, gamma=gamma)
    played = evaluate(policy, make_vector("gridworld:lava", 16), 160, seed=0, gamma=gamma)
    adaptive = played.discounted.mean() / best
    columns = ", ".join(f"delta {delta:g}: {share:.2f}" for delta, share in zip(deltas, fixed, strict=True))
    print(f"{name:>6}: {columns}; adaptive: {adaptive:.2f}")

    chosen = float(np.exp(-(policy.diagnostics.mean_u.mean() ** 2)))
    print(f"        the belief ended around delta {chosen:.2g}, knowing {policy.diagnostics.transitions} transitions")
