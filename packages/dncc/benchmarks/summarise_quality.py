"""The verdicts and the curves over lambda out of bench_quality's result: what fits a page."""

import json
from pathlib import Path

from common_core.records import write_json_atomic

RESULTS = Path(__file__).parent / "results"
SHOWN = ("single", "packed ensemble", "4 networks (deep ensemble)", "4 networks, lambda 0.9")


def shown(name: str) -> bool:
    """Whether a row stands on the page: goals, verdicts, heads that share features at each lambda, and four others."""
    method = name.rsplit(": ", 1)[-1]
    return name.startswith(("goal", "verdict")) or method.startswith("partition, lambda") or method in SHOWN


def main() -> None:
    """Write results/quality_summary.json."""
    whole = json.loads((RESULTS / "bench_quality.json").read_text(encoding="utf-8"))
    rows = [row for row in whole["rows"] if shown(row["name"])]
    write_json_atomic(RESULTS / "quality_summary.json", {**whole, "benchmark": "quality_summary", "rows": rows})


if __name__ == "__main__":
    main()
