"""Claims are well formed, judge rightly both ways, and their parts compute what they say."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from common_core.claims import Claim, Estimate
from dncc.claims import CLAIMS, _decomposition
from dncc.claims.experiments import MEMBERS, few_noisy_digits, grouped, measured_on, network

BY_SLUG = {claim.id.split(".")[1]: claim for claim in CLAIMS}

GOOD: dict[str, dict[str, float]] = {
    "decomposition-exact": {
        "split": 1e-16, "loss": 1e-16, "gradient": 1e-10, "detached": 1e-16, "single": 0.0, "kl_off": 0.1,
        "js_off": 0.2,
    },
    "lambda-trades": {
        "disagreement_least_step": 0.003, "ambiguity_least_step": 0.01, "member_least_step": 0.0, "member_0": 0.42,
        "member_100": 0.61, "disagreement_0": 0.03, "disagreement_100": 0.19, "ensemble_0": 0.42, "ensemble_90": 0.39,
        "ensemble_100": 0.4, "inside_less_0": -0.03, "inside_less_1": 0.01,
    },
    "shared-backbone": {
        "dncc_less_single_clean": -0.02, "dncc_less_heads_clean": -0.03, "dncc_less_separate_clean": -0.01,
        "of_separate": 0.45, "dncc_less_single_fresh": -0.01, "dncc_less_heads_fresh": 0.0,
        "dncc_less_separate_fresh": 0.04,
    },
    "collusion-guarded": {
        "joint_share": 0.4, "alone_share": 0.0, "joint_member": 1.7, "alone_member": 0.96, "guarded_share": 0.05,
        "guarded_against_joint": -0.06, "alone_fresh": 0.9, "joint_fresh": 0.95, "guarded_fresh": 0.87,
        "alone_clean": 0.39, "joint_clean": 0.36, "guarded_clean": 0.4,
    },
    "frontier-in-one-run": {
        "least_step": 0.01, "ensemble_apart": 0.02, "disagreement_apart": 0.02, "one_disagreement_0": 0.03,
        "one_disagreement_100": 0.18, "many_disagreement_0": 0.03, "many_disagreement_100": 0.17,
    },
}  # fmt: skip


def sure(metrics: dict[str, float]) -> dict[str, Estimate]:
    """Estimates whose intervals are points."""
    return {name: Estimate(float(v), low=float(v), high=float(v)) for name, v in metrics.items()}


def verdict(claim: Claim, metrics: dict[str, float]) -> bool:
    return all(check.holds for check in claim.judge(sure(metrics)))


def test_claims_are_those_of_the_package() -> None:
    assert sorted(BY_SLUG) == sorted(GOOD)
    for claim in CLAIMS:
        assert claim.package == "dncc"
        assert claim.scales == ("quick", "full")
        assert claim.differs


def test_listing_the_claims_imports_nothing_heavy() -> None:
    heavy = {"torch", "matplotlib", "sklearn", "torchmetrics"}
    code = f"import sys, dncc.claims; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("slug", list(GOOD))
def test_good_metrics_hold_and_fill_the_headline(slug: str) -> None:
    assert verdict(BY_SLUG[slug], GOOD[slug])
    assert BY_SLUG[slug].headline.format_map(sure(GOOD[slug]))


@pytest.mark.parametrize(
    ("slug", "change"),
    [
        ("decomposition-exact", {"split": 1e-8}),
        ("decomposition-exact", {"loss": 1e-8}),
        ("decomposition-exact", {"gradient": 1e-5}),
        ("decomposition-exact", {"detached": 1e-5}),
        ("decomposition-exact", {"single": 1e-8}),
        ("decomposition-exact", {"kl_off": 0.0}),
        ("decomposition-exact", {"js_off": 0.0}),
        ("lambda-trades", {"disagreement_least_step": -0.001}),
        ("lambda-trades", {"ambiguity_least_step": -0.001}),
        ("lambda-trades", {"member_least_step": -0.01}),
        ("lambda-trades", {"member_100": 0.41}),
        ("lambda-trades", {"inside_less_0": 0.01}),
        ("shared-backbone", {"dncc_less_single_clean": 0.01}),
        ("shared-backbone", {"dncc_less_heads_clean": 0.01}),
        ("shared-backbone", {"dncc_less_separate_clean": 0.01}),
        ("shared-backbone", {"of_separate": 0.6}),
        ("collusion-guarded", {"joint_share": 0.1}),
        ("collusion-guarded", {"alone_share": 0.1}),
        ("collusion-guarded", {"joint_member": 1.0}),
        ("collusion-guarded", {"guarded_share": 0.3}),
        ("collusion-guarded", {"guarded_against_joint": 0.01}),
        ("frontier-in-one-run", {"least_step": -0.01}),
        ("frontier-in-one-run", {"ensemble_apart": 0.1}),
        ("frontier-in-one-run", {"disagreement_apart": 0.1}),
    ],
)
def test_each_fault_is_noticed(slug: str, change: dict[str, float]) -> None:
    assert not verdict(BY_SLUG[slug], {**GOOD[slug], **change})


def test_the_decomposition_claim_holds_when_run() -> None:
    outcome = _decomposition.run_decomposition("quick", 1, "cpu")
    assert all(check.holds for check in BY_SLUG["decomposition-exact"].judge(outcome.estimates()))


def test_data_are_as_noisy_as_said_and_the_same_for_a_seed() -> None:
    data, again, other = (few_noisy_digits(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(data.y_val, again.y_val)
    assert not np.array_equal(data.y_train, other.y_train)
    assert data.x_train.shape == (300, 1, 8, 8)
    assert len(set(data.y_train.tolist())) == 10


@pytest.mark.parametrize(("kind", "members"), [("single", 1), ("shared", MEMBERS), ("separate", MEMBERS)])
def test_networks_of_a_seed_are_the_same_and_have_the_members_said(kind: str, members: int) -> None:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    one, two = network(kind, 1)(x), network(kind, 1)(x)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert one.shape == (members, 5, 10)
    assert torch.equal(before, torch.random.get_rng_state())


def test_groups_are_measured_as_ensembles_of_their_own() -> None:
    data, model = few_noisy_digits(0), network("shared", 0, 4)
    whole = measured_on(model, data, 0)
    parts = grouped(model, data, 0, 2)
    for part in ("train", "validation", "fresh", "clean"):
        mean = sum(getattr(found, part).ce for found in parts) / 2
        assert getattr(whole, part).ce == pytest.approx(mean, rel=1e-5)
        assert getattr(whole, part).ensemble_ce <= sum(getattr(found, part).ensemble_ce for found in parts) / 2 + 1e-6
    assert whole.fresh != whole.clean
    assert 0 <= parts[0].disagreement <= 1
