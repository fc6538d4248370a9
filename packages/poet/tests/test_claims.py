"""Claims are well formed, judge rightly both ways, and their parts compute what they say."""

import subprocess
import sys
from math import inf

import pytest
import torch

from common_core.claims import Claim, Estimate
from poet.claims import CLAIMS, _certified, _exact, _joint, _verified
from poet.claims._cases import CLASSICAL, DEVICES, broken, gap, overhead, problem_of, step_of
from poet.claims.models import MODELS
from poet.device import Device
from poet.explain import floor_ram
from poet.schedule import Limits
from poet.solving import solve_problem

BY_SLUG = {claim.id.split(".")[1]: claim for claim in CLAIMS}

GOOD: dict[str, dict[str, float]] = {
    "joint-beats-each": {
        "worst": 0.0, "best": 7.0, "proved": 5.0, "broken": 0, "resnet_tight": 6.0, "resnet_loose": 0.0,
        "vgg_tight": 1.0, "vgg_loose": 0.0,
    },
    "energy-saving": {
        "least": 0.0, "most": 48.0, "best": 10.0, "broken": 0, "m4f_most": 42.0, "m4f_best": 10.0, "a72_most": 48.0,
        "a72_best": 0.1,
    },
    "certified": {
        "linear_50_gap": 0.0, "linear_55_gap": 0.0, "resnet_60_gap": 0.001, "resnet_40_gap": 0.001,
        "resnet_40_overhead": 0.16, "resnet_40_seconds": 4.0, "bert_least_overhead": 0.24,
        "resnet50_least_overhead": 0.16, "broken": 0,
    },
    "exact-training": {"different": 0, "peak_of_limit": 0.98, "recomputed": 5, "paged": 7},
    "fits-cortex-m": {
        "resnet": 196736, "original": 262144, "resnet_peak": 262144, "original_fits": 1, "bert_128": 4.7e6,
        "bert_512": 3.7e7, "original_bert": 3.1e7, "broken": 0, "original_kib": 256, "resnet_kib": 192,
        "resnet_static_kib": 1386, "bert_128_mib": 4.5, "bert_512_mib": 36, "original_bert_mib": 30,
        "bert_static_mib": 835,
    },
    "verified": {
        "schedules": 6, "broken": 0, "disagreement": 0, "mutants": 33, "accepted": 0, "bounds": 3, "above": -0.01,
        "small": 4, "missed": 0.0, "beaten": 0.0, "overstated": 0.0,
    },
}  # fmt: skip


def verdict(claim: Claim, metrics: dict[str, float]) -> bool:
    return all(check.holds for check in claim.judge({k: Estimate.from_any(float(v)) for k, v in metrics.items()}))


def test_claims_are_the_six_of_the_package() -> None:
    assert list(BY_SLUG) == list(GOOD)
    for slug, claim in BY_SLUG.items():
        assert claim.package == "poet"
        assert claim.scales == ("quick", "full")
        if slug != "verified":
            assert claim.requires["matplotlib"] == "repertory-poet[claims]"
            assert (
                "nergy is modelled" in claim.differs
                or slug in ("certified", "exact-training", "fits-cortex-m")
                or ("modelled energy" in claim.differs)
            )
    for slug in ("joint-beats-each", "energy-saving", "certified"):
        assert "modelled energy" in BY_SLUG[slug].headline.replace("plain step's modelled", "modelled")


def test_listing_the_claims_imports_nothing_heavy() -> None:
    heavy = {"torch", "matplotlib", "ortools", "cvxpy", "highspy"}
    code = f"import sys, poet.claims; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("slug", list(GOOD))
def test_good_metrics_hold_and_fill_the_headline(slug: str) -> None:
    assert verdict(BY_SLUG[slug], GOOD[slug])
    assert BY_SLUG[slug].headline.format_map({k: Estimate.from_any(float(v)) for k, v in GOOD[slug].items()})


@pytest.mark.parametrize(
    ("slug", "change"),
    [
        ("joint-beats-each", {"worst": 1e-9}),
        ("joint-beats-each", {"resnet_loose": 6.1}),
        ("joint-beats-each", {"vgg_loose": 1.1}),
        ("joint-beats-each", {"broken": 1}),
        ("energy-saving", {"least": -1e-6}),
        ("energy-saving", {"most": 34.9}),
        ("energy-saving", {"broken": 1}),
        ("certified", {"resnet_40_gap": 0.051}),
        ("certified", {"linear_50_gap": 0.002}),
        ("certified", {"bert_least_overhead": 0.26}),
        ("certified", {"resnet50_least_overhead": 0.26}),
        ("certified", {"broken": 1}),
        ("exact-training", {"different": 1}),
        ("exact-training", {"peak_of_limit": 1.001}),
        ("exact-training", {"recomputed": 0}),
        ("exact-training", {"paged": 0}),
        ("fits-cortex-m", {"resnet": 262145}),
        ("fits-cortex-m", {"original": 262145}),
        ("fits-cortex-m", {"original_fits": 0}),
        ("fits-cortex-m", {"bert_128": 262143}),
        ("fits-cortex-m", {"bert_512": 1e6}),
        ("verified", {"broken": 1}),
        ("verified", {"accepted": 1}),
        ("verified", {"disagreement": 1}),
        ("verified", {"above": 1e-6}),
        ("verified", {"missed": 1e-3}),
        ("verified", {"beaten": 1e-6}),
        ("verified", {"overstated": 1e-6}),
    ],
)
def test_each_fault_is_noticed(slug: str, change: dict[str, float]) -> None:
    assert not verdict(BY_SLUG[slug], {**GOOD[slug], **change})


def test_limits_go_from_the_floor_to_the_plain_peak() -> None:
    graph = step_of("resnet")
    low, high = problem_of(graph, "m4f", 0.0), problem_of(graph, "m4f", 1.0)
    assert low.limit == floor_ram(low) == graph.static.total + graph.largest_working_set
    assert high.ram == graph.resident_peak
    assert {Device.load(name).name for name in DEVICES.values()} == set(DEVICES.values())


def test_broken_rules_are_counted() -> None:
    problem = problem_of(step_of("resnet"), "m4f", 0.3)
    events = CLASSICAL["paging"](problem).events
    assert events is not None
    assert broken(problem, events) == broken(problem, None) == 0
    assert broken(problem, events[1:]) > 0
    assert broken(problem.with_ram(problem.limit // 2), events) > 0


def test_the_joint_search_is_never_behind_what_it_starts_from() -> None:
    trio = _joint.three("resnet", "m4f", 0.9, 0.4, 0)
    assert trio.lead >= 0
    assert trio.proved <= trio.lead + 1e-9  # a bound on each alone is not above it
    assert trio.broken == 0
    assert trio.paging.overhead >= trio.joint.overhead >= trio.joint.least >= 0


def test_what_does_not_fit_has_an_infinite_overhead() -> None:
    problem = problem_of(step_of("resnet"), "m4f", 0.0)
    nothing = solve_problem(problem.with_ram(problem.limit - 1), Limits(1.0))
    assert overhead(nothing) == gap(nothing) == inf
    way = _joint.find(nothing.problem, Limits(1.0))
    assert way.overhead == inf
    assert way.events is None


def test_certified_cases_are_those_of_the_original() -> None:
    schedule = _certified.schedule("linear_50", 2.0, 0)
    assert schedule.problem.limit == schedule.problem.graph.forward_bytes // 2 == 3388
    assert schedule.problem.deadline == 2 * schedule.problem.baseline_seconds
    assert overhead(schedule) == pytest.approx(1.0895, abs=1e-4)  # proved optimal by branch and bound


def test_spoilt_schedules_are_told_from_good_ones() -> None:
    import numpy as np

    problem = problem_of(step_of("resnet"), "m4f", 0.3)
    events = CLASSICAL["paging"](problem).events
    assert events is not None
    assert _verified._mutants_accepted(problem, events, 20, np.random.default_rng(0)) == (0, 21)


def test_two_claims_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_verified, "_SMALL", {"quick": 1})
    for slug in ("fits-cortex-m", "verified"):
        claim = BY_SLUG[slug]
        outcome = claim.run("quick", 0, "cpu")
        metrics = outcome.estimates()
        assert claim.headline.format_map(metrics)
        assert all("<svg" in figure for figure in outcome.figures.values())
        assert all(check.holds for check in claim.judge(metrics)), [str(c) for c in claim.judge(metrics) if not c.holds]


def test_training_within_a_limit_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ("perceptron", {"width": 16, "batch": 128}, (("60%", _exact._RECOMPUTE), ("50%", _exact._BOTH)))
    monkeypatch.setattr(_exact, "_CASES", {"quick": (case,)})
    metrics = _exact.run_exact("quick", 0, "cpu").metrics
    assert metrics["different"] == 0
    assert float(metrics["peak_of_limit"]) <= 1
    assert float(metrics["recomputed"]) >= 1


def test_a_difference_of_one_bit_is_seen() -> None:
    a = [torch.tensor([1.0, 2.0]), torch.tensor(3)]
    b = [torch.nextafter(a[0], torch.tensor(9.0)), torch.tensor(3)]
    assert _exact._differing(a, a) == 0
    assert _exact._differing(a, b) == 1


@pytest.mark.parametrize("name", list(MODELS))
def test_models_train(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, loss_fn, (inputs, targets) = MODELS[name](batch=2, depth=1)
        loss_fn(model(inputs), targets).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(isinstance(module, torch.nn.Dropout) for module in model.modules())
