"""Twenty shops log what they show and what it earns; learn one policy for each of them, together."""

import numpy as np

from hieropo import FlatOPO, GlobalOPO, HierOPO, TaskStatistics, fit_hyperparameters

D, ACTIONS, SHOPS, ROWS = 4, 5, 20, 600
rng = np.random.default_rng(0)

# The truth, which the learners do not see: shops resemble each other.
mean = rng.normal(size=D)
weights = mean + 0.5 * rng.normal(size=(SHOPS, D))

# The log: a shop, the features of the action that was taken, and a noisy reward.
shop = rng.integers(SHOPS, size=ROWS)
taken = rng.uniform(-0.5, 0.5, (ROWS, D))
reward = np.sum(taken * weights[shop], axis=1) + 0.5 * rng.normal(size=ROWS)

# The prior is learned from the log too, by its marginal likelihood.
stats = TaskStatistics.from_rows(taken, reward, shop)
fit = fit_hyperparameters(stats, structure="isotropic")
spread = fit.prior.Sigma_0[0, 0] ** 0.5
print(
    f"learned: shops spread by {spread:.2f} around their mean (truth 0.50), noise {fit.prior.sigma:.2f} (truth 0.50)\n"
)

# Fresh contexts: five actions each; what would each learner's choices lose?
actions = rng.uniform(-0.5, 0.5, (20_000, ACTIONS, D))
where = rng.integers(SHOPS, size=len(actions))
value = np.einsum("bkd,bd->bk", actions, weights[where])
rows = np.arange(len(actions))
print(f"{'learner':<20}{'mean suboptimality':>18}")
learners = {"together (HierOPO)": HierOPO, "each shop alone": FlatOPO, "all as one": GlobalOPO}
policies = {name: learner(fit.prior).fit_statistics(stats) for name, learner in learners.items()}
for name, policy in policies.items():
    loss = value.max(axis=1) - value[rows, policy.predict(actions, where)]
    print(f"{name:<20}{loss.mean():>18.4f}")

# How much can shop 3 lose? And a shop that opens tomorrow?
policy = policies["together (HierOPO)"]
here = value[where == 3]
true = np.mean(here.max(axis=1) - here[np.arange(len(here)), policy.predict(actions[where == 3], 3)])
certificate = policy.certificate(actions[where == 3][:200], 3, rng=rng, delta=0.05)
print(f"\nshop 3 loses {true:.4f}; from its data alone: {certificate.expected_suboptimality:.4f} expected,")
print(f"at most {certificate.quantile:.4f} with probability 0.95")
new = policy.new_task_posterior()
print("a new shop starts from the weights", np.round(new.mean, 2), "and not from zero")
