"""Claims are well formed, judge rightly both ways, and their parts compute what they say."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ccvf.claims import CLAIMS, _bounds, _gridworld, _minatar
from common_core.claims import Claim, Estimate

BY_SLUG = {claim.id.split(".")[1]: claim for claim in CLAIMS}

GOOD: dict[str, dict[str, float]] = {
    "valid-bounds": {
        f"{name}_{what}": 0.02
        for name in ("box", "sum", "chain_box", "chain_sum", "chain_product")
        for what in ("margin", "possible", "share")
    } | {"small_margin": -0.9, "small_possible": -0.8, "small_share": 0.0},
    "no-fixed-confidence": {
        "regret": 0.2, "narrow_best": 0.99, "narrow_none": 0.7, "narrow_most": 0.5, "broad_best": 0.84,
        "broad_none": 0.8, "broad_most": 0.0,
    },
    "adaptation-recovers": {
        f"{case.name}_{what}": value
        for case in _gridworld.CASES
        for what, value in (("adaptive", 0.95), ("best", 0.98), ("paper", 0.9))
    } | {"adaptive_regret": 0.03, "fixed_regret": 0.1, "paper_regret": 0.08, "trapped": 0.0, "saved": 0.07},
    "beats-fixed-cql": {
        "ccvl": 1.0, "ccvl_small": 0.8, "ccvl_large": 1.2, "gain": 0.2, "best_cql": 0.8, "best_weight": 1.0,
        "cql_0_small": 0.1, "cql_0_large": 0.7, "cql_1_small": 0.7, "cql_1_large": 0.9,
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
        assert claim.package == "ccvf"
        assert "full" in claim.scales
        assert claim.differs


def test_listing_the_claims_imports_nothing_heavy() -> None:
    heavy = {"torch", "matplotlib", "scipy", "gymnasium", "minatar"}
    code = f"import sys, ccvf.claims; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("slug", list(GOOD))
def test_good_metrics_hold_and_fill_the_headline(slug: str) -> None:
    assert verdict(BY_SLUG[slug], GOOD[slug])
    assert BY_SLUG[slug].headline.format_map(sure(GOOD[slug]))


@pytest.mark.parametrize(
    ("slug", "change"),
    [
        ("valid-bounds", {"box_possible": -0.01}),
        ("valid-bounds", {"chain_sum_possible": -0.01}),
        ("valid-bounds", {"small_possible": 0.1}),
        ("no-fixed-confidence", {"regret": 0.01}),
        ("no-fixed-confidence", {"narrow_none": 0.98}),
        ("no-fixed-confidence", {"broad_most": 0.8}),
        ("adaptation-recovers", {"broad_adaptive": 0.5}),
        ("adaptation-recovers", {"saved": -0.01}),
        ("beats-fixed-cql", {"gain": -0.01}),
    ],
)
def test_a_figure_that_contradicts_the_claim_makes_it_fall_short(slug: str, change: dict[str, float]) -> None:
    assert not verdict(BY_SLUG[slug], GOOD[slug] | change)


def test_the_regret_of_one_confidence_is_that_of_the_best_compromise() -> None:
    shares = np.array([[[1.0, 0.8, 0.2], [0.1, 0.7, 0.9]]])  # one run, two cases, three confidences
    assert _gridworld.regret_of_one(shares) == pytest.approx(0.2)


def test_rich_rewards_scale_the_log_and_the_world_alike() -> None:
    poor, rich = (_gridworld.made(case, 0, 0) for case in _gridworld.CASES[:2])
    rewards = rich[0].expected_reward
    assert rewards.max() == pytest.approx(30 * poor[0].expected_reward.max())
    assert rich[1].rewards.max() == 30.0
    # thirty times the rewards and thirty times alpha are the same policies
    assert np.array_equal(
        _gridworld.fixed_shares(poor[0], poor[1], 0.1),
        _gridworld.fixed_shares(poor[0], _scaled(poor[1], 30.0), 3.0),
    )


def _scaled(log: Any, factor: float) -> Any:
    import dataclasses

    return dataclasses.replace(log, rewards=log.rewards * np.float32(factor))


def test_the_chain_and_the_branching_process_have_known_values() -> None:
    assert _bounds.chain().optimal(0.8).v[0] == pytest.approx(0.5 * (1 + 0.8 + 0.64))
    assert _bounds.branching().optimal(0.8).v == pytest.approx(np.full(10, 0.5 / 0.2))


@pytest.mark.parametrize("slug", ["valid-bounds", "no-fixed-confidence"])
def test_a_quick_run_gives_figures_and_is_the_same_again(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(_gridworld._FIXED, "quick", 3)
    monkeypatch.setitem(_bounds._SETS, "quick", 15)
    first, second = (BY_SLUG[slug].run("quick", 3, "cpu") for _ in range(2))
    assert dict(first.estimates()) == dict(second.estimates())
    assert first.figures == second.figures


def test_the_learner_of_the_deep_claim_adapts_and_the_others_are_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from ccvf.adaptive import AdaptivePolicy
    from ccvf.policies import FixedPolicy
    from ccvf.transitions import Transitions

    monkeypatch.setattr(_minatar, "_UPDATES", 2)
    monkeypatch.setattr(_minatar, "_BONUS_UPDATES", 2)
    rng = np.random.default_rng(0)
    seen = rng.random((40, 10, 10, 4)) < 0.1
    log = Transitions.from_arrays(seen[:-1], rng.integers(3, size=39), rng.random(39), seen[1:], rng.random(39) < 0.1)
    assert isinstance(_minatar.learnt("ccvl", log, 0, "cpu"), AdaptivePolicy)
    assert isinstance(_minatar.learnt("0.1", log, 0, "cpu"), FixedPolicy)
