"""Claims are well formed, judge rightly both ways, and their parts compute what they say."""

import subprocess
import sys

import numpy as np
import pytest

from common_core.claims import Claim, Estimate
from xmesh_reshard.cases import multi_host_case, one_to_many_case
from xmesh_reshard.claims import CLAIMS, _bound, _broadcast, _pipeline, _refit, _tensors
from xmesh_reshard.claims._cases import at_best, made, spread
from xmesh_reshard.claims.trials import contents, count_wrong, parts_of
from xmesh_reshard.network import simulate
from xmesh_reshard.planning import plan
from xmesh_reshard.transports import execute_reference

BY_SLUG = {claim.id.split(".")[1]: claim for claim in CLAIMS}

GOOD: dict[str, dict[str, float]] = {
    "broadcast-beats": {
        "least": 1.0, "send_recv_most": 8.0, "send_recv_balanced_most": 8.0, "local_allgather_most": 4.0,
        "global_allgather_most": 1.9, "wide": 16.0, "send_recv_form": 0.0, "local_allgather_form": 0.01,
        "measured_least": 3.7, "measured_most": 7.5, "chain": 1.05, "measured_allgather_least": 1.0, "wrong": 0,
    },
    "meets-bound": {
        "planned": 1.0, "simulated": 1.0, "bound_off": 0.0, "naive_off": 0.0, "size_off": 0.0, "naive_most": 2.0,
        "size_most": 2.0,
    },
    "balance-and-order": {
        "balance_alone": 1, "order_alone": 4, "both_needed": 1, "both": 1.0, "neither_most": 2.0, "balance_most": 2.0,
        "order_most": 2.0, "measured_2": 1.9, "measured_3": 1.5, "measured_5": 1.9, "wrong": 0,
    },
    "eager-hides": {
        "off": 0.0, "least": 1.05, "gain": 1.6, "unet_gain": 1.59, "unet_blocking": 108, "unet_overlap": 95,
        "unet_eager": 68, "ideal_8_32": 117, "eager_8_32": 131, "overlap_8_32": 185, "blocking_8_32": 192,
        "measured_eager": 1.02, "measured_1f1b": 1.02, "measured_gain": 1.25, "model_gain": 1.26,
    },
    "weight-delay": {
        "gain_2_8": 1.15, "gain_4_16": 1.25, "gain_8_32": 1.29, "least": 1.04, "no_links": 1.06, "slow_links": 1.14,
        "eager_most": 1.15,
    },
    "fractional-split": {
        "off": 1e-5, "gap": 1e-5, "gain_2_3": 1.33, "gain_3_4": 1.5, "gain_3_5": 1.2, "gain_4_5": 1.6, "measured": 1.3,
        "wrong": 0,
    },
    "many-tensors-jointly": {
        "after_least": 1.1, "after_median": 1.4, "after_most": 2.0, "once_median": 1.0, "once_least": 0.95,
        "once_most": 1.1, "example": 1.5, "gap": 0.1, "boundaries": 6,
    },
    "refit": {
        "gap": 0.0097, "gap_most": 0.015, "bytes": 0.0, "gather": 1.5, "gather_least": 1.3, "points": 0.98,
        "points_small": 3.9, "points_ordered": 1.6, "simulated": 1.02, "seconds": 0.66,
    },
    "simulator-faithful": {
        "error": 0.1, "error_90": 0.1, "error_median": 0.05, "runs": 3, "within": 3, "wrong": 0,
    },
}  # fmt: skip


def verdict(claim: Claim, metrics: dict[str, float]) -> bool:
    return all(check.holds for check in claim.judge({k: Estimate.from_any(float(v)) for k, v in metrics.items()}))


def test_claims_are_those_of_the_package() -> None:
    assert sorted(BY_SLUG) == sorted(GOOD)
    for claim in CLAIMS:
        assert claim.package == "xmesh-reshard"
        assert claim.scales == ("quick", "full")
        assert claim.requires["matplotlib"] == "xmesh-reshard[claims]"
        assert claim.differs


def test_listing_the_claims_imports_nothing_heavy() -> None:
    heavy = {"torch", "matplotlib", "jax", "ray"}
    code = f"import sys, xmesh_reshard.claims; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("slug", list(GOOD))
def test_good_metrics_hold_and_fill_the_headline(slug: str) -> None:
    assert verdict(BY_SLUG[slug], GOOD[slug])
    assert BY_SLUG[slug].headline.format_map({k: Estimate.from_any(float(v)) for k, v in GOOD[slug].items()})


@pytest.mark.parametrize(
    ("slug", "change"),
    [
        ("broadcast-beats", {"least": 0.98}),
        ("broadcast-beats", {"send_recv_most": 7.8}),
        ("broadcast-beats", {"wide": 9.9}),
        ("broadcast-beats", {"send_recv_form": 0.03}),
        ("broadcast-beats", {"local_allgather_form": 0.03}),
        ("broadcast-beats", {"measured_most": 2.4}),
        ("broadcast-beats", {"chain": 1.11}),
        ("broadcast-beats", {"measured_allgather_least": 0.9}),
        ("broadcast-beats", {"wrong": 1}),
        ("meets-bound", {"planned": 1.002}),
        ("meets-bound", {"simulated": 1.002}),
        ("meets-bound", {"bound_off": 1e-6}),
        ("meets-bound", {"naive_off": 1e-6}),
        ("meets-bound", {"size_off": 1e-6}),
        ("balance-and-order", {"balance_alone": 0}),
        ("balance-and-order", {"order_alone": 0}),
        ("balance-and-order", {"both_needed": 0}),
        ("balance-and-order", {"both": 1.01}),
        ("balance-and-order", {"measured_2": 1.4}),
        ("balance-and-order", {"measured_3": 1.1}),
        ("balance-and-order", {"measured_5": 1.4}),
        ("balance-and-order", {"wrong": 1}),
        ("eager-hides", {"off": 0.5}),
        ("eager-hides", {"least": 1.0}),
        ("eager-hides", {"unet_gain": 1.2}),
        ("eager-hides", {"measured_eager": 1.2}),
        ("eager-hides", {"measured_1f1b": 1.2}),
        ("eager-hides", {"measured_gain": 1.1}),
        ("weight-delay", {"gain_2_8": 1.05}),
        ("weight-delay", {"gain_8_32": 1.05}),
        ("weight-delay", {"least": 0.99}),
        ("fractional-split", {"off": 0.01}),
        ("fractional-split", {"gap": 0.01}),
        ("fractional-split", {"gain_3_4": 1.4}),
        ("fractional-split", {"measured": 1.1}),
        ("fractional-split", {"wrong": 1}),
        ("many-tensors-jointly", {"after_least": 0.99}),
        ("many-tensors-jointly", {"after_median": 1.1}),
        ("many-tensors-jointly", {"example": 1.4}),
        ("refit", {"gap": 0.011}),
        ("refit", {"bytes": 0.01}),
        ("refit", {"gather_least": 1.04}),
        ("refit", {"points": 0.9}),
        ("refit", {"points_small": 2.0}),
        ("simulator-faithful", {"error": 0.21}),
        ("simulator-faithful", {"wrong": 1}),
    ],
)
def test_each_fault_is_noticed(slug: str, change: dict[str, float]) -> None:
    assert not verdict(BY_SLUG[slug], {**GOOD[slug], **change})


def test_other_methods_are_given_their_best_way() -> None:
    found = made("send_recv", multi_host_case(6))
    times = [simulate(found, in_flight=count).makespan for count in (1, 2, None)]
    assert at_best(found) == min(times) < max(times)
    case = one_to_many_case(2, 2, 1 << 20, local="inf")
    assert at_best(made("local_allgather", case)) == pytest.approx(2 * case.seconds)


def test_results_are_compared_bit_by_bit() -> None:
    case = multi_host_case(5, 64)
    whole = contents(case.transfers, 0)
    found = execute_reference(plan(case.transfers, case.topology), parts_of(case.transfers, whole))
    assert count_wrong(case.transfers, whole, found) == 0
    found[9]["x"].view(np.uint8).reshape(-1)[5] ^= 1
    del found[12]["x"]
    assert count_wrong(case.transfers, whole, found) == 2
    with pytest.raises(ValueError, match="smaller shapes"):
        contents(multi_host_case(1).transfers, 0)


def test_the_ablation_finds_cases_of_each_kind() -> None:
    metrics = _bound.run_ablation("quick", 0, "cpu").metrics
    # of the paper's nine: 2 needs balance, 3, 4, 6 and 9 order, 5 both
    assert [metrics[name] for name in ("balance_alone", "order_alone", "both_needed")] == [1, 4, 1]


def test_the_pipeline_claims_from_end_to_end() -> None:
    for slug in ("eager-hides", "weight-delay", "meets-bound"):
        claim = BY_SLUG[slug]
        outcome = claim.run("quick", 0, "cpu")
        metrics = outcome.estimates()
        assert claim.headline.format_map(metrics)
        assert all("<svg" in figure for figure in outcome.figures.values())
        assert all(check.holds for check in claim.judge(metrics)), [str(c) for c in claim.judge(metrics) if not c.holds]
    unet = _pipeline.run_eager("quick", 0, "cpu").metrics
    assert [unet[f"unet_{name}"] for name in ("blocking", "overlap", "eager")] == [108, 95, 68]


def test_threads_with_delays_are_as_long_as_the_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pipeline, "_TICK", 0.002)
    found = _pipeline._threads()
    assert found["model_gain"] == pytest.approx(49 / 39)  # 11 T + 2 c 8 against 11 T + 2 c 3
    assert min(found["measured_eager"], found["measured_1f1b"]) > 1  # sleeping takes at least as long


def test_splits_follow_their_closed_forms() -> None:
    metrics = _tensors.run_split("quick", 0, "cpu").metrics
    assert metrics["gain_2_3"] == pytest.approx(4 / 3, rel=1e-3)
    assert metrics["gain_4_5"] == pytest.approx(8 / 5, rel=1e-3)


def test_boundaries_are_those_of_their_seed() -> None:
    one, same, other = (_tensors.boundary(np.random.default_rng(seed)) for seed in (1, 1, 2))
    keys = [[(t.source.key(), t.target.key()) for t in case.transfers.values()] for case in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]
    assert _tensors._example() == pytest.approx(1.5, rel=1e-3)


def test_a_refit_counts_the_models_bytes() -> None:
    assert _refit._elements((2, 3, 4)) == 24
    assert _broadcast._bound("case 7") == 1.0
    assert spread({"a": 1.0, "b": 3.0, "c": 2.0})[::2] == (2.0, 3.0)
