from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import render_results

BENCHMARK: dict[str, Any] = {
    "schema": "repertory.benchmark/1",
    "benchmark": "fit-cpu",
    "device": {"kind": "cpu", "name": "Calculator 7"},
    "versions": {"scipy": "1.13", "numpy": "2.0"},
    "rows": [
        {
            "name": "n=1e6 | d=16",
            "ours": 0.0012345,
            "peer": 0.5,
            "ratio": {"value": 0.0024690, "low": 0.002, "high": 0.003, "n": 20},
            "unit": "s",
        },
        {"name": "memory", "ours": 2048, "peer": None, "unit": "MiB"},
    ],
    "notes": "One thread.",
}
CLAIM = {
    "id": "gact.helps",
    "statement": "It helps.",
    "paper": "0.05",
    "differs": "",
    "reason": "",
    "headline": "0.045 against 0.090",
}
CLAIMS = {
    "schema": "repertory.results/1",
    "settings": {"scale": "full", "seed": 0},
    "environment": {"device": {"name": "Calculator 7"}, "versions": {"numpy": "2.0"}},
    "claims": [
        CLAIM | {"verdict": "falls short"},
        CLAIM | {"id": "gact.other", "verdict": "could not run", "reason": "install gact[claims]", "headline": ""},
    ],
}
PAGE = "# Page\n\n<!-- results:begin fit-cpu -->\nold\n<!-- results:end -->\n\nAfter.\n"


@pytest.fixture
def root(workspace: Path) -> Path:
    results = workspace / "packages" / "gact" / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "fit-cpu.json").write_text(json.dumps(BENCHMARK), encoding="utf-8")
    (results / "claims-full.json").write_text(json.dumps(CLAIMS), encoding="utf-8")
    (workspace / "README.md").write_text(PAGE, encoding="utf-8")
    return workspace


def test_a_benchmark_becomes_a_table(root: Path) -> None:
    assert render_results.main([], root) == 0
    assert (root / "README.md").read_text("utf-8").splitlines() == [
        "# Page",
        "",
        "<!-- results:begin fit-cpu -->",
        "",
        "|  | ours | peer | ours / peer |",
        "|---|---|---|---|",
        "| n=1e6 \\| d=16 | 1.23 ms | 500 ms | 0.00247 [0.00200, 0.00300] |",
        "| memory | 2048 MiB |  |  |",
        "",
        "Measured on Calculator 7, numpy 2.0, scipy 1.13. One thread.",
        "",
        "<!-- results:end -->",
        "",
        "After.",
    ]


def test_claims_become_a_table(root: Path) -> None:
    data = render_results.lookup("gact/claims-full", render_results.result_files(root))
    assert render_results.render(data, "claims") == [
        "| claim | verdict | ours | the paper | what differs |",
        "|---|---|---|---|---|",
        "| It helps. | falls short | 0.045 against 0.090 | 0.05 |  |",
        "| It helps. | could not run | install gact[claims] | 0.05 |  |",
        "",
        "Measured on Calculator 7, numpy 2.0. Scale full, seed 0.",
    ]


def test_check_finds_a_figure_written_by_hand_and_writes_nothing(root: Path, capsys) -> None:
    assert render_results.main(["--check"], root) == 1
    assert capsys.readouterr().err.startswith("README.md:4: differs from the committed results")
    assert (root / "README.md").read_text("utf-8") == PAGE
    render_results.main([], root)
    assert render_results.main(["--check"], root) == 0
    file = root / "README.md"
    file.write_text(file.read_text("utf-8").replace("1.23 ms", "1.13 ms"), encoding="utf-8")
    assert render_results.main(["--check"], root) == 1
    assert "README.md:7:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- results:begin fit-cuda -->\n<!-- results:end -->", "no result is called 'fit-cuda'; near it: "),
        (
            "<!-- results:begin zq -->\n<!-- results:end -->",
            "no result is called 'zq'; there are: claims-full, fit-cpu, gact/",
        ),
        ("<!-- results:begin fit-cpu -->\n", "the block fit-cpu has no line"),
        (
            "<!-- results:begin fit-cpu -->\n<!-- results:begin fit-cpu -->\n<!-- results:end -->",
            "the block fit-cpu has",
        ),
    ],
)
def test_a_wrong_block_is_named_and_the_page_left(root: Path, capsys, page: str, message: str) -> None:
    (root / "README.md").write_text(page, encoding="utf-8")
    assert render_results.main([], root) == 1
    assert f"README.md:1: {message}" in capsys.readouterr().err
    assert (root / "README.md").read_text("utf-8") == page


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("claims-full gact.helps", "0.045 against 0.090 (falls short)"),
        ("claims-full gact.other", "could not run: install gact[claims]"),
        ("fit-cpu n=1e6 | d=16", "0.00247 [0.00200, 0.00300]"),
        ("fit-cpu memory", "2048 MiB"),
    ],
)
def test_one_figure_can_stand_in_a_line(root: Path, marker: str, text: str) -> None:
    page = f"| gact | <!-- result {marker} -->old<!-- /result --> | and <!-- result {marker} --><!-- /result --> |"
    (root / "README.md").write_text(page, encoding="utf-8")
    assert render_results.main([], root) == 0
    filled = f"<!-- result {marker} -->{text}<!-- /result -->"
    assert (root / "README.md").read_text("utf-8") == f"| gact | {filled} | and {filled} |"
    assert render_results.main(["--check"], root) == 0


def test_a_figure_that_does_not_exist_is_named(root: Path, capsys) -> None:
    page = "first\n<!-- result claims-full gact.help -->old<!-- /result -->"
    (root / "README.md").write_text(page, encoding="utf-8")
    assert render_results.main([], root) == 1
    assert "README.md:2: claims-full has no entry 'gact.help'; near it: gact.helps" in capsys.readouterr().err
    assert (root / "README.md").read_text("utf-8") == page


def test_markers_inside_code_are_left_alone(root: Path) -> None:
    page = f"```\n{PAGE}```\n"
    (root / "README.md").write_text(page, encoding="utf-8")
    assert render_results.main([], root) == 0
    assert (root / "README.md").read_text("utf-8") == page


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"schema": "repertory.benchmark/2"}, "has the schema 'repertory.benchmark/2'"),
        ([], "has the schema None"),
        ({"schema": "repertory.benchmark/1", "rows": [{"name": "a"}]}, "is incomplete (KeyError: 'ours')"),
    ],
)
def test_foreign_and_incomplete_results_are_refused(data: Any, message: str) -> None:
    with pytest.raises(render_results.ResultsError) as refused:
        render_results.render(data, "fit-cpu")
    assert message in str(refused.value)


def test_a_name_that_two_packages_use_needs_its_package(root: Path) -> None:
    other = root / "packages" / "poet" / "benchmarks" / "results"
    other.mkdir(parents=True)
    (other / "fit-cpu.json").write_text(json.dumps(BENCHMARK), encoding="utf-8")
    files = render_results.result_files(root)
    assert "fit-cpu" not in files
    assert files["poet/fit-cpu"] == other / "fit-cpu.json"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (-0.5, "-0.500"), (999.6, "1000"), (1e7, "1.00e+07"), (1e-5, "1.00e-05"), (float("inf"), "inf")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert render_results.number(value) == text


def test_times_take_the_prefix_that_suits_them() -> None:
    assert [render_results.quantity(t, "s") for t in (2.0, 3e-6, 5e-12)] == ["2.00 s", "3.00 µs", "0.00500 ns"]


def test_the_pages_of_this_repository_quote_its_results() -> None:
    assert render_results.main(["--check"]) == 0
