"""Plausible mistakes are refused where they are made, in a sentence that says what to give instead."""

import re

import jaxtyping
import numpy as np
import pytest

import hieropo as ho
from hieropo.logistic import LogisticRows

EYE = np.eye(2)
PRIOR = ho.GaussianHierarchy.isotropic(2, 1.0, 0.5, 0.5)
TREE = ho.Tree.from_parents({"ann": "day", "bob": "day", "day": "all", "eve": "all"})
ON_TREE = ho.TreePrior.isotropic(TREE, 2, sigma_root=1.0, sigma_levels=[0.5, 0.2], sigma=0.5)
BINARY = ho.LogisticHierarchy.isotropic(2, sigma_q=1.0, sigma_0=0.5)
NOISE = ho.NoisePrior.isotropic(2, sigma_q=1.0, sigma_0=0.5, shape=1.0, scale=1.0)
MIXTURE = ho.MixtureHierarchy.known_centres([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [EYE, EYE], 0.5)
ESTIMATORS = [
    *((cls, (PRIOR,)) for cls in (ho.HierOPO, ho.FlatOPO, ho.GlobalOPO)),
    (ho.OracleOPO, (PRIOR, np.zeros(2))),
    (ho.TreeOPO, (ON_TREE,)),
    (ho.LogisticHierOPO, (BINARY,)),
    (ho.NoiseHierOPO, (NOISE,)),
    (ho.MixtureOPO, (MIXTURE,)),
]
NAMES = [cls.__name__ for cls, _ in ESTIMATORS]
STATS = ho.TaskStatistics.from_rows(EYE, [1.0, 0.0], ["ann", "bob"])


@pytest.fixture(autouse=True)
def _as_installed(monkeypatch):
    """Run without checks of annotations, which would refuse most of these arguments in other words."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def fitted(cls, arguments, **options):
    return cls(*arguments, **options).fit(EYE, [1.0, 0.0], ["ann", "bob"])


def test_a_certificate_is_of_one_task():
    policy, rng = fitted(ho.HierOPO, (PRIOR,)), np.random.default_rng(0)
    for several in (["ann", "bob"], np.array(["ann", "bob"]), ["ann"]):
        with pytest.raises(TypeError, match="give one label, and call once for each task"):
            policy.certificate(EYE, several, rng=rng)
    with pytest.raises(TypeError, match="strings on one side and integers"):
        policy.certificate(EYE, 1, rng=rng)
    with pytest.raises(TypeError, match="give one label"):
        policy.posterior(["ann", "bob"])
    scalar = policy.certificate(EYE, np.str_("ann"), rng=np.random.default_rng(1))
    assert scalar == policy.certificate(EYE, "ann", rng=np.random.default_rng(1))


DRAWS = {
    "certificate": lambda rng: fitted(ho.HierOPO, (PRIOR,)).certificate(EYE, "ann", rng=rng),
    "sample": lambda rng: fitted(ho.HierOPO, (PRIOR,)).sample(rng),
    "tree": lambda rng: fitted(ho.TreeOPO, (ON_TREE,)).sample(rng),
    "prior": lambda rng: PRIOR.sample(3, rng),
    "tree prior": lambda rng: ON_TREE.sample(rng),
    "mixture prior": lambda rng: MIXTURE.sample(3, rng),
    "mixture": lambda rng: ho.fit_mixture(STATS, 1, rng=rng),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("rng", [0, None, np.random.RandomState(0)], ids=["seed", "none", "legacy"])
def test_randomness_is_a_generator(draw, rng):
    with pytest.raises(TypeError, match=r"give a generator, np\.random\.default_rng\(seed\)"):
        draw(rng)


@pytest.mark.parametrize(("cls", "arguments"), ESTIMATORS, ids=NAMES)
def test_labels_of_another_kind_are_no_new_tasks(cls, arguments):
    policy = fitted(cls, arguments)
    for query in (policy.predict, policy.uncertainty, policy.lower_bound, policy.upper_bound, policy.to_action_dist):
        with pytest.raises(TypeError, match="strings on one side and integers"):
            query(EYE, [1])


@pytest.mark.parametrize(("cls", "arguments"), [e for e in ESTIMATORS if e[0] is not ho.TreeOPO])
def test_without_tasks_any_labels_are_new(cls, arguments):
    empty = cls(*arguments)
    np.testing.assert_array_equal(empty.lower_bound(EYE, [1]), empty.lower_bound(EYE, ["ann"]))


@pytest.mark.parametrize(("cls", "arguments"), ESTIMATORS, ids=NAMES)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "pointwise"}, ValueError, "says what a delta means; give delta too"),
        ({"alpha": 0.1, "kind": "pointwise"}, ValueError, "says what a delta means; give delta too"),
        ({"alpha": [0.1]}, TypeError, r"alpha is \[0.1\]; give one number"),
        ({"delta": "0.1"}, TypeError, "delta is '0.1'; give one number"),
    ],
)
def test_widths(cls, arguments, options, error, message):
    with pytest.raises(error, match=message):
        cls(*arguments, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ho.TreePrior.isotropic(TREE, 2, sigma_root=-1.0, sigma_levels=[0.5, 0.2], sigma=0.5),
        lambda: ho.TreePrior.isotropic(TREE, 2, sigma_root=1.0, sigma_levels=[0.5, -0.2], sigma=0.5),
        lambda: ho.LogisticHierarchy.isotropic(2, sigma_q=-1.0, sigma_0=0.5),
        lambda: ho.LogisticHierarchy.isotropic(2, sigma_q=1.0, sigma_0=-0.5),
        lambda: ho.NoisePrior.isotropic(2, sigma_q=1.0, sigma_0=-0.5, shape=1.0, scale=1.0),
        lambda: ho.fit_hyperparameters(STATS, sigma_q=-2.0),
        lambda: ho.fit_mixture(STATS, 1, rng=np.random.default_rng(0), sigma_q=-2.0),
    ],
)
def test_negative_standard_deviations(make):
    with pytest.raises(ValueError, match="a standard deviation must be >= 0"):
        make()


@pytest.mark.parametrize(("cls", "arguments"), ESTIMATORS, ids=NAMES)
def test_masked_actions_have_no_scores(cls, arguments):
    policy = fitted(cls, arguments)
    actions = np.array([[1.0, 0.0], [np.nan, np.inf], [0.0, 1.0]])
    mask = np.array([True, False, True])
    scores, plain = policy.uncertainty(actions, "ann", mask), policy.uncertainty(actions[mask], "ann")
    queries = [policy.lower_bound, policy.upper_bound]
    if isinstance(policy, ho.LogisticHierOPO):
        queries += [policy.lower_probability, policy.upper_probability, policy.mean_reward]
    pairs = [(getattr(scores, name), getattr(plain, name)) for name in ("mean", "task_var", "hyper_var", "var", "std")]
    pairs += [(query(actions, "ann", mask), query(actions[mask], "ann")) for query in queries]
    for masked, expected in pairs:
        assert np.isnan(masked[:, 1]).all()
        np.testing.assert_allclose(masked[:, mask], expected, rtol=1e-12)


def test_the_row_without_actions_is_named():
    mask = np.ones((5, 2), dtype=bool)
    mask[3] = False
    with pytest.raises(ValueError, match="row 3 has no available action"):
        fitted(ho.HierOPO, (PRIOR,)).predict(np.zeros((5, 2, 2)), "ann", mask)


def test_ragged_actions_are_to_be_padded():
    with pytest.raises(ValueError, match="pad to one number of actions and pass mask"):
        fitted(ho.HierOPO, (PRIOR,)).predict([[[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]], ["ann", "bob"])


def test_tables_of_mixed_columns():
    table = np.array([[1.0, 0], [0, True]], dtype=object)
    with pytest.raises(TypeError, match=re.escape(".to_numpy(float)")):
        ho.TaskStatistics.from_rows(table, [1.0, 0.0], ["ann", "bob"])


def test_scores_are_not_rewards():
    feedback = ho.LoggedFeedback(np.array([0, 1]), np.ones(2), np.full(2, 0.5))
    policy = fitted(ho.HierOPO, (PRIOR,))
    contexts = np.array([EYE, EYE])
    dist, scores = policy.to_action_dist(contexts, "ann"), policy.uncertainty(contexts, "ann")
    for estimate in (lambda q: ho.doubly_robust(feedback, dist, q), lambda q: ho.direct_method(dist, q)):
        with pytest.raises(TypeError, match=re.escape("give its means, .mean")):
            estimate(scores)
        assert np.isfinite(estimate(scores.mean).value)


def test_negative_actions():
    with pytest.raises(ValueError, match=r"actions\[1\] is -1; give positions in 0\.\.K-1"):
        ho.LoggedFeedback(np.array([0, -1]), np.ones(2), np.full(2, 0.5))


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: ho.fit_hyperparameters(EYE), "build it by TaskStatistics.from_rows"),
        (lambda: ho.fit_hyperparameters((EYE, np.ones(2), ["ann", "bob"])), "build it by TaskStatistics.from_rows"),
        (lambda: ho.fit_mixture(EYE, 2, rng=np.random.default_rng(0)), "build it by TaskStatistics.from_rows"),
        (lambda: ho.fit_logistic_hyperparameters((EYE, np.ones(2), ["a", "b"]), BINARY), "LogisticRows.from_rows"),
        (lambda: ho.fit_logistic_hyperparameters(STATS, BINARY), "LogisticRows.from_rows"),
        (
            lambda: ho.fit_logistic_hyperparameters(LogisticRows.from_rows(EYE, [0, 1], ["a", "b"]), PRIOR),
            "first the rows, then the prior",
        ),
        (lambda: ho.fit_tree_hyperparameters(ON_TREE, STATS), "first the statistics, then the prior"),
        (lambda: ho.fit_tree_hyperparameters(STATS, PRIOR), "first the statistics, then the prior"),
    ],
)
def test_fits_say_what_they_take(fit, message):
    with pytest.raises(TypeError, match=message):
        fit()


def test_features_that_a_flat_mean_cannot_have():
    rng = np.random.default_rng(0)
    free = rng.standard_normal((200, 5))
    features = free.copy()
    features[:, 2] = 0.0
    features[:, 4] = 2.0 * free[:, 0] - free[:, 3]
    tasks = rng.integers(0, 5, 200)
    fit = ho.fit_hyperparameters(ho.TaskStatistics.from_rows(features, rng.standard_normal(200), tasks))
    assert fit.status == "not_identified"
    assert "feature 2 is zero in every row and features 0, 3, 4 are collinear" in fit.message
    assert "sigma_q=1.0" in fit.message
    assert ho.fit_hyperparameters(ho.TaskStatistics.from_rows(free, rng.standard_normal(200), tasks)).trace


def test_one_task_does_not_tell_its_spread():
    rng = np.random.default_rng(0)
    stats = ho.TaskStatistics.from_rows(rng.standard_normal((50, 2)), rng.standard_normal(50), np.zeros(50, int))
    fit = ho.fit_hyperparameters(stats)
    assert fit.status == "not_identified"
    assert "two tasks with rows" in fit.message


def test_rewards_that_are_all_zero():
    rng = np.random.default_rng(0)
    stats = ho.TaskStatistics.from_rows(rng.standard_normal((50, 2)), np.zeros(50), rng.integers(0, 5, 50))
    assert ho.fit_hyperparameters(stats).status == "not_identified"  # and no warning, which would be an error


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "policy.npz"
    path.write_bytes(b"task,reward\nann,1.0\n")
    with pytest.raises(ho.FormatError, match=r"it is no \.npz archive") as refused:
        ho.load(path)
    assert "pickle" not in str(refused.value)
    np.savez(path, weights=np.zeros(3), bias=np.zeros(1))
    with pytest.raises(ho.FormatError, match="it lacks 'header' and holds weights, bias"):
        ho.load(path)


def test_levels_that_the_rows_see_only_together():
    rng = np.random.default_rng(0)
    features, rewards = rng.standard_normal((60, 2)), rng.standard_normal(60)
    alone = ho.TaskStatistics.from_rows(features, rewards, rng.choice(["ann"], 60))
    fit = ho.fit_tree_hyperparameters(alone, ON_TREE)
    assert fit.status == "not_identified"
    assert "only the sum of the covariances of depth 1 and 2" in fit.message
    for tasks in (["ann", "bob"], ["ann", "eve"]):  # two in a group; a task of depth one
        stats = ho.TaskStatistics.from_rows(features, rewards, rng.choice(tasks, 60))
        assert ho.fit_tree_hyperparameters(stats, ON_TREE).status != "not_identified"


@pytest.mark.parametrize("seed", range(3))
def test_ordinary_problems_converge_as_they_are(seed):
    rng = np.random.default_rng(seed)
    theta, tasks = rng.standard_normal(3) + 0.5 * rng.standard_normal((10, 3)), rng.integers(0, 10, 300)
    features = rng.standard_normal((300, 3))
    rewards = np.sum(features * theta[tasks], axis=1) + 0.5 * rng.standard_normal(300)
    stats = ho.TaskStatistics.from_rows(features, rewards, tasks)
    tree = ho.Tree.from_parents({i: ("even", "odd")[i % 2] for i in range(10)} | {"even": "all", "odd": "all"})
    prior = ho.TreePrior.isotropic(tree, 3, sigma_root=1.0, sigma_levels=[0.5, 0.5], sigma=0.5)
    ho.fit_hyperparameters(stats).unwrap()
    fit = ho.fit_tree_hyperparameters(stats, prior)
    assert fit.unwrap() is fit.prior
    best = ho.fit_tree_hyperparameters(stats, prior, tolerance=1e-12, max_iter=3000).log_evidence
    assert fit.log_evidence > best - 0.02  # nats: far below what the rows can tell


def test_representations_are_one_short_line():
    posterior = fitted(ho.HierOPO, (PRIOR,))
    feedback = ho.LoggedFeedback(np.zeros(500, int), np.ones(500), np.full(500, 0.5))
    everything = [
        *(arguments[0] for _, arguments in ESTIMATORS),
        *(fitted(cls, arguments).joint for cls, arguments in ESTIMATORS),
        *(STATS, TREE, feedback, LogisticRows.from_rows(EYE, [0, 1], ["a", "b"]), ho.fit_hyperparameters(STATS)),
        *(posterior.posterior("ann"), posterior.hyper_posterior),
    ]
    for thing in everything:
        text = repr(thing)
        assert text.startswith(type(thing).__name__ + "(")
        assert "\n" not in text
        assert len(text) < 160
        assert "array(" not in text
    assert repr(STATS) == "TaskStatistics(d=2, tasks=2, rows=2)"
    assert repr(TREE) == "Tree(nodes=5, tasks=3, height=2)"


def test_labels_are_shown_as_python_shows_them():
    with pytest.raises(KeyError, match=r"unknown task 'an'.*near: 'ann'"):
        fitted(ho.HierOPO, (PRIOR,)).posterior(np.str_("an"))
    assert repr(ho.Tree.flat(np.array(["ann", "bob"])).leaves) == "('ann', 'bob')"
