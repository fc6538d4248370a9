"""Saving and loading: exact round trips, and refusals."""

import io
import json
from typing import final

import numpy as np
import pytest

from hieropo.estimators import FlatOPO, GaussianOPO, GlobalOPO, HierOPO, OracleOPO
from hieropo.io import VERSION, FormatError, load, save


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
        ({"header": {"class": "TreeOPO"}}, "damaged: 'TreeOPO'"),
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
