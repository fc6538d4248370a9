"""Saving and loading: exact round trips, and refusals."""

import io
import json
from typing import final

import numpy as np
import pytest

from hieropo.estimators import FlatOPO, GaussianOPO, GlobalOPO, HierOPO, OracleOPO
from hieropo.io import VERSION, FormatError, load, save
from hieropo.logistic import LogisticHierarchy
from hieropo.logistic_estimator import LogisticHierOPO
from hieropo.mixture import MixtureHierarchy
from hieropo.mixture_estimator import MixtureOPO
from hieropo.noise_estimator import NoiseHierOPO
from hieropo.tree import Tree, TreePrior
from hieropo.tree_estimator import TreeOPO
from hieropo.unknown_noise import NoisePrior


@pytest.mark.parametrize("make", [HierOPO, FlatOPO, GlobalOPO, lambda p, **o: OracleOPO(p, np.ones(3), **o)])
@pytest.mark.parametrize("options", [{"alpha": 0.3}, {"delta": 0.1, "kind": "paper"}])
def test_round_trip_is_exact(problem, tmp_path, make, options):
    p = problem(seed=1)
    est = make(p.prior, **options).fit(p.features, p.rewards, p.codes)
    save(est, tmp_path / "policy.npz")
    back = load(tmp_path / "policy.npz")
    assert type(back) is type(est)
    assert (back.alpha, back.delta, back.kind) == (est.alpha, est.delta, est.kind)
    phi = np.random.default_rng(0).uniform(-1, 1, (30, 4, 3))
    tasks = np.arange(30) % 8
    np.testing.assert_array_equal(back.lower_bound(phi, tasks), est.lower_bound(phi, tasks))
    assert back.log_marginal_likelihood() == est.log_marginal_likelihood()
    assert back.partial_fit(p.features, p.rewards, p.codes).statistics.n == 2 * est.statistics.n


@pytest.mark.parametrize(
    "labels",
    [[-(2**63), 0, 2**63 - 1], ["", "ünïcødé", "a b\tc\n"], ["1", "01", "001"], [7, 8, 9]],
)
def test_labels_round_trip(problem, tmp_path, labels):
    est = HierOPO(problem().prior).fit(np.eye(3), [1.0, 2.0, 3.0], labels)
    save(est, tmp_path / "policy.npz")
    assert load(tmp_path / "policy.npz").tasks == sorted(labels)


def test_an_unfitted_estimator_round_trips(problem, tmp_path):
    save(HierOPO(problem().prior), tmp_path / "policy.npz")
    assert load(tmp_path / "policy.npz").tasks == []


def test_saving_replaces_the_file(problem, tmp_path):
    path = tmp_path / "policy.npz"
    for tasks in (["a", "b", "c"], ["x", "y", "z"]):
        save(HierOPO(problem().prior).fit(np.eye(3), [1.0, 2.0, 3.0], tasks), path)
    assert load(path).tasks == ["x", "y", "z"]
    assert [file.name for file in tmp_path.iterdir()] == ["policy.npz"]


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(bytes(arrays.pop("header"))) | changes.pop("header", {})
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **(arrays | changes))
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": {"version": VERSION + 1}}, "upgrade hieropo"),
        ({"header": {"version": "one"}}, "format version one"),
        ({"header": {"format": "other"}}, "holds 'other'"),
        ({"header": {"class": "Other"}}, "damaged: unknown class 'Other'"),
        ({"header": {"delta": 7.0}}, "delta is 7.0"),
        ({"gram": np.arange(27.0).reshape(3, 3, 3)}, "gram is not symmetric"),
        ({"count": np.array([1.5, 1.0, 1.0])}, "count has dtype float64"),
        ({"header": {"sigma": -1.0}}, "sigma is -1.0"),
        ({"count": np.array([-1, 1, 1])}, "count is negative"),
        ({"gram": np.zeros((3, 2, 2))}, "damaged"),
        ({"Sigma_0": -np.eye(3)}, "not positive semi-definite"),
    ],
)
def test_damaged_and_newer_files_are_refused(problem, tmp_path, changes, message):
    path = tmp_path / "policy.npz"
    save(HierOPO(problem().prior).fit(np.eye(3), [1.0, 2.0, 3.0], [1, 2, 3]), path)
    rewrite(path, **changes)
    with pytest.raises(FormatError, match=message):
        load(path)


def test_foreign_files_are_refused(problem, tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"not a zip", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="not a file that hieropo saved"):
            load(path)
    np.savez(tmp_path / "arrays.npz", x=np.ones(3))
    with pytest.raises(FormatError, match="not a file that hieropo saved"):
        load(tmp_path / "arrays.npz")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.npz")


@final
class Mine(GaussianOPO):
    def __init__(self, prior):
        super().__init__(prior, 0.1, None, "simultaneous")


def test_other_classes_are_refused(problem, tmp_path):
    with pytest.raises(TypeError, match="cannot save a Mine"):
        save(Mine(problem().prior), tmp_path / "policy.npz")


def test_pickled_content_is_never_executed(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, header=np.array([{"format": "hieropo.posterior"}], dtype=object))
    with pytest.raises(FormatError, match="pickle"):
        load(path)


def test_a_truncated_file_is_refused(problem, tmp_path):
    path = tmp_path / "policy.npz"
    save(HierOPO(problem().prior), path)
    content = path.read_bytes()
    for size in (10, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            load(path)


def tree_policy(labels=("a", "b", "c"), **options):
    paths = {label: (("day", 1), ("day", 2), ())[i] for i, label in enumerate(labels)}
    tree = Tree.from_paths(paths)
    prior = TreePrior.isotropic(tree, 3, sigma_root=1.0, sigma_levels=[0.5, 0.3, 0.2], sigma=0.4)
    named = TreePrior(
        tree, prior.mean, prior.root_cov, prior.level_covs, prior.sigma, {labels[1]: np.diag([1.0, 2.0, 0.0])}
    )
    return TreeOPO(named, **options)


def mixture_policy(**options):
    rng = np.random.default_rng(3)
    prior = MixtureHierarchy(np.full(3, 1 / 3), rng.standard_normal((3, 3)), *(np.tile(np.eye(3), (3, 1, 1)),) * 2, 0.5)
    return MixtureOPO(prior, start=rng.standard_normal((3, 3)), **options)


def noise_policy(**options):
    return NoiseHierOPO(NoisePrior.isotropic(3, sigma_q=1.0, sigma_0=0.5, shape=2.0, scale=0.7), **options)


def logistic_policy(**options):
    return LogisticHierOPO(LogisticHierarchy.isotropic(3, sigma_q=1.0, sigma_0=0.5, mu_q=0.1), **options)


@pytest.mark.parametrize("options", [{"alpha": 0.3}, {"delta": 0.1, "kind": "pointwise"}])
@pytest.mark.parametrize("make", [tree_policy, mixture_policy, noise_policy, logistic_policy])
def test_the_other_estimators_round_trip_exactly(tmp_path, make, options):
    rng = np.random.default_rng(0)
    features, tasks = rng.uniform(-1, 1, (20, 3)), np.array(["a", "b", "c"])[np.arange(20) % 3]
    rewards = (rng.random(20) < 0.5).astype(float)
    path, phi = tmp_path / "policy.npz", rng.uniform(-1, 1, (4, 5, 3))
    for estimator in (make(**options), make(**options).fit(features, rewards, tasks)):
        save(estimator, path)
        back = load(path)
        assert type(back) is type(estimator)
        assert back.alpha == estimator.alpha
        assert back.tasks == estimator.tasks
        for task in ("a", "new"):
            np.testing.assert_array_equal(back.lower_bound(phi, task), estimator.lower_bound(phi, task))
        assert back.log_marginal_likelihood() == estimator.log_marginal_likelihood()
        for policy in (back, estimator):  # the width follows the data where it did
            policy.partial_fit(features, rewards, tasks)
        np.testing.assert_array_equal(back.upper_bound(phi, "b"), estimator.upper_bound(phi, "b"))


def test_a_tree_with_labels_of_every_kind_round_trips(tmp_path):
    policy = tree_policy(labels=(7, "7", -1))
    save(policy, tmp_path / "policy.npz")
    back = load(tmp_path / "policy.npz")
    assert isinstance(back, TreeOPO)
    tree = back.prior.tree
    assert tree.labels == policy.prior.tree.labels
    np.testing.assert_array_equal(tree.parent, policy.prior.tree.parent)
    root = TreePrior.isotropic(Tree.flat([1.5, 2.5]), 1, sigma_root=1.0, sigma_levels=[1.0], sigma=1.0)
    with pytest.raises(TypeError, match=r"node 1\.5"):
        save(TreeOPO(root), tmp_path / "policy.npz")


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (tree_policy, {"parent": np.array([-1, 0, 5, 1, 1, 2, 2])}, "damaged"),
        (tree_policy, {"parent": np.array([-1, 0])}, "does not describe a tree"),
        (tree_policy, {"nodes": np.array([99])}, "damaged"),
        (mixture_policy, {"weights": np.array([2.0, -1.0, 0.0])}, "weights"),
        (mixture_policy, {"start": np.full((3, 3), np.nan)}, "start"),
        (noise_policy, {"header": {"shape": -1.0}}, "shape must be positive"),
        (logistic_policy, {"codes": np.array([0, 0, 9])}, "damaged"),
        (logistic_policy, {"codes": np.array([-1, 0, 1])}, "codes is negative"),
        (logistic_policy, {"rewards": np.array([0.0, 2.0, 1.0])}, "rewards"),
    ],
)
def test_damaged_files_of_the_other_estimators_are_refused(tmp_path, make, changes, message):
    path = tmp_path / "policy.npz"
    save(make().fit(np.eye(3), [1.0, 0.0, 1.0], ["a", "b", "c"]), path)
    rewrite(path, **changes)
    with pytest.raises(FormatError, match=message):
        load(path)


def test_changed_bytes_are_refused_or_harmless(problem, tmp_path):
    path = tmp_path / "policy.npz"
    estimator = HierOPO(problem().prior).fit(np.eye(3), [1.0, 2.0, 3.0], ["a", "b", "c"])
    save(estimator, path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(changed))
        try:
            back = load(path)
        except FormatError:
            refused += 1
        else:  # a byte that says nothing, such as a date
            assert isinstance(back, HierOPO)
            np.testing.assert_array_equal(back.statistics.moment, estimator.statistics.moment)
            np.testing.assert_array_equal(back.prior.Sigma_0, estimator.prior.Sigma_0)
            assert (back.alpha, back.tasks) == (estimator.alpha, estimator.tasks)
    assert refused > 100


def test_another_class_than_expected_is_refused(tmp_path):
    save(noise_policy(), tmp_path / "policy.npz")
    assert load(tmp_path / "policy.npz", NoiseHierOPO).d == 3
    with pytest.raises(FormatError, match="holds a NoiseHierOPO, not a GaussianOPO"):
        load(tmp_path / "policy.npz", GaussianOPO)
