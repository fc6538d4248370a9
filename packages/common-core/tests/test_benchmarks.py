"""Rows of benchmarks: verdicts in the right direction, and files that say where they come from."""

import argparse
import json

import pytest

from common_core.benchmarks import SCHEMA, compare, line, row, save
from common_core.stats import Estimate


@pytest.mark.parametrize(("at_least", "ratio", "met"), [(False, 0.5, True), (False, 0.6, False), (True, 0.4, False)])
def test_a_goal_is_judged_in_its_direction(at_least, ratio, met):
    entry = row("x", 1.0, 2.0, "a peer", ratio, goal=0.5, at_least=at_least)
    assert entry["met"] is met
    assert entry.get("goal_is") == ("at least" if at_least else None)


def test_without_a_ratio_our_figure_is_judged():
    assert row("x", 3, None, "-", goal=4)["met"]
    assert row("x", 3, None, "-")["met"] is None


def test_intervals_are_kept_and_shown():
    entry = row("x", Estimate(2.0, 1.0, 3.0), 4.0, "a peer")
    assert entry["ours_interval"] == [1.0, 3.0]
    assert "2 [1, 3] against 4 s [a peer], ratio -" in line(entry)


def test_a_comparison_times_both():
    entry = compare("x", lambda: sum(range(20000)), lambda: sum(range(200)), "fewer", repeats=5, warmup=1)
    assert entry["ratio"].value > 1


def test_a_file_says_where_it_comes_from(tmp_path, capsys):
    args = argparse.Namespace(out=tmp_path / "r.json", device="cpu", quick=True)
    save("bench_x", args, [row("x", 1, 2, "p", 0.5)], "notes", package="some", versions=("numpy", "no-such-thing"))
    data = json.loads(args.out.read_text())
    assert data["schema"] == SCHEMA
    assert data["command"] == "python packages/some/benchmarks/bench_x.py --quick"
    assert list(data["versions"]) == ["numpy"]
    assert data["rows"][0]["name"] == "x"
    assert capsys.readouterr().out.startswith("x: 1 against 2 s [p]")
