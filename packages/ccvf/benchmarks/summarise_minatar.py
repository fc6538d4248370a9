"""Tables of the MinAtar benchmark, from its file.

python summarise_minatar.py [results/minatar.json] writes results/minatar_summary.json beside it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccvf.scores import AggregateScores, aggregate, normalise, probability_of_improvement
from common_core.benchmarks import SCHEMA, Row, row
from common_core.records import read_json, write_json_atomic

_SEED = 0


def columns(found: Mapping[str, Any]) -> dict[str, dict[tuple[str, float, int], float]]:
    """Mean returns of every policy: name to (game, fraction, seed) to return."""
    table: dict[str, dict[tuple[str, float, int], float]] = {}
    for run in found["runs"].values():
        setting = run["setting"]
        for policy, value in run["returns"].items():
            name = setting["method"] if policy == "greedy" else f"{setting['method']} {policy}"
            table.setdefault(name, {})[setting["game"], setting["fraction"], setting["seed"]] = value
    return table


def scores(found: Mapping[str, Any], fractions: Sequence[float]) -> dict[str, np.ndarray]:
    """Normalised scores of every policy that has all runs: seeds x (games and fractions).

    0 is a random policy, 1 the mean return of the last tenth of the log's episodes.
    """
    games = sorted({run["setting"]["game"] for run in found["runs"].values()})
    seeds = sorted({run["setting"]["seed"] for run in found["runs"].values()})
    logs = found["logs"]
    low = np.array([[logs[f"{g}/{s}"]["random"] for g in games] for s in seeds]).mean(0)
    high = np.array([[logs[f"{g}/{s}"]["behaviour"] for g in games] for s in seeds]).mean(0)
    result = {}
    for name, values in columns(found).items():
        cells = [[values.get((g, f, s)) for f in fractions for g in games] for s in seeds]
        if any(cell is None for line in cells for cell in line):
            continue
        result[name] = normalise(np.array(cells, float), np.tile(low, len(fractions)), np.tile(high, len(fractions)))
    return result


def table_of(found: Mapping[str, Any]) -> dict[str, dict[str, AggregateScores]]:
    """Aggregates of every policy for each fraction, and over all."""
    fractions = sorted({run["setting"]["fraction"] for run in found["runs"].values()})
    parts = {f"{fraction:g}": [fraction] for fraction in fractions} | {"all": fractions}
    rng = np.random.default_rng(_SEED)
    return {name: aggregate(scores(found, part), rng) for name, part in parts.items()}


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """What the benchmark was made to show, in sentences with figures."""
    tables = table_of(found)
    lines = []
    for part, table in tables.items():
        cql = {name: float(agg.iqm) for name, agg in table.items() if name.startswith("cql")}
        if cql:
            best = max(cql, key=lambda name: cql[name])
            lines.append(f"best weight of CQL on {part}: {best} (IQM {cql[best]:.3f})")
    every = tables["all"]
    rest = {name: float(agg.iqm) for name, agg in every.items() if not name.startswith("ccvl")}
    if "ccvl adaptive" in every and rest:
        best = max(rest, key=lambda name: rest[name])
        own = float(every["ccvl adaptive"].iqm)
        lines.append(f"aggregate IQM: adaptive CCVL {own:.3f}, best other at one setting {best} {rest[best]:.3f}")
        fractions = sorted({run["setting"]["fraction"] for run in found["runs"].values()})
        matrices = scores(found, fractions)
        rng = np.random.default_rng(_SEED)
        for name in sorted(rest):
            chance = probability_of_improvement(matrices["ccvl adaptive"], matrices[name], rng)
            lines.append(f"probability that adaptive CCVL beats {name}: {chance}")
    return lines


def summarise(found: Mapping[str, Any]) -> str:
    """The tables as text."""
    lines = []
    for part, table in table_of(found).items():
        lines.append(f"\nshare of the log: {part}; normalised IQM (0 random, 1 the end of the log) [95 %]")
        lines += [f"  {name:24} {agg.iqm}" for name, agg in sorted(table.items(), key=lambda kv: -float(kv[1].iqm))]
    return "\n".join([*lines, "", *verdicts(found)])


def rows_of(found: Mapping[str, Any]) -> list[Row]:
    """The goal, and the tables, as rows of results."""
    tables = table_of(found)
    every = {name: agg.iqm for name, agg in tables["all"].items()}
    rest = {name: iqm for name, iqm in every.items() if not name.startswith("ccvl")}
    best = max(rest, key=lambda name: float(rest[name]))
    own = every["ccvl adaptive"]
    rows = [row("all sizes: adaptive CCVL against the best at one setting", own, rest[best], best,
                float(own) / float(rest[best]), goal=1.0, unit="IQM", at_least=True)]  # fmt: skip
    for part, table in tables.items():
        size = "all sizes" if part == "all" else f"{float(part):.0%} of the log"
        for name, agg in sorted(table.items(), key=lambda kv: -float(kv[1].iqm)):
            rows.append(row(f"{size}: {name}", agg.iqm, None, "none", unit="IQM"))
    return rows


def main(argv: Sequence[str]) -> int:
    """Read the benchmark's file, write the summary, print the tables."""
    source = Path(argv[0]) if argv else Path(__file__).parent / "results" / "minatar.json"
    found = read_json(source, "repertory.ccvf.minatar/1")
    about, runs = found["environment"], [run["setting"] for run in found["runs"].values()]
    games, seeds = (sorted({run[name] for run in runs}) for name in ("game", "seed"))
    several = "s" if len(seeds) > 1 else ""
    notes = (
        f"{', '.join(games)}; {len(seeds)} seed{several}; logs of {runs[0]['frames']:,} frames; {runs[0]['updates']:,} "
        f"updates; {runs[0]['episodes']} episodes a policy in 16 games side by side. 0 is a random policy, 1 the mean "
        f"return at the end of the log; intervals: stratified bootstrap. {'; '.join(verdicts(found))}"
    )
    summary = {
        "schema": SCHEMA, "benchmark": "minatar_summary", "device": about["device"], "versions": about["versions"],
        "commit": about["commit"], "command": "python packages/ccvf/benchmarks/nightly_minatar.py",
        "rows": rows_of(found), "notes": notes,
    }  # fmt: skip
    write_json_atomic(source.with_name("minatar_summary.json"), summary)
    print(summarise(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
