"""Write the figures that pages quote, from the committed JSON, between the markers of each page.

A page holds `<!-- results:begin ID -->` and `<!-- results:end -->`, each on a line of its own; what stands between is
replaced by a table made from the file `ID.json` in packages/*/benchmarks/results/. Within a line,
`<!-- result ID ENTRY --><!-- /result -->` holds one figure: the headline of a claim or the ratio of a row. With
`--check` nothing is written, and a page that differs from its JSON is an error: no figure is written by hand.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workspace import ROOT, Finding, read_json, report

BENCHMARK, CLAIMS = "repertory.benchmark/1", "repertory.results/1"
BEGIN = re.compile(r"^<!-- results:begin (?P<id>[^\s>]+) -->$")
INLINE = re.compile(r"<!-- result (?P<id>\S+) (?P<entry>[^>]+?) -->.*?<!-- /result -->")
END = "<!-- results:end -->"
PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


class ResultsError(ValueError):
    """Results that cannot be rendered; the message says why."""


def number(value: float) -> str:
    """Return a number with three significant digits, without an exponent where that is readable.

    Example:
        >>> number(0.012345), number(12345.6), number(1.0)
        ('0.0123', '12346', '1.00')
    """
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:.{max(digits, 0)}f}"


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit; times in the prefix that suits them.

    Example:
        >>> quantity(0.00123, "s"), quantity(2048, "B")
        ('1.23 ms', '2048 B')
    """
    if unit == "s" and value > 0:
        scale, prefix = next((entry for entry in PREFIXES if value >= entry[0]), PREFIXES[-1])
        return f"{number(value / scale)} {prefix}s"
    return f"{number(value)} {unit}".strip()


def estimate(value: Any) -> str:
    """Return an estimate, given as a number or as an object with `value`, `low` and `high`, with its interval."""
    if not isinstance(value, Mapping):
        return number(float(value))
    low, high = value.get("low"), value.get("high")
    text = number(float(value["value"]))
    return text if low is None or high is None else f"{text} [{number(float(low))}, {number(float(high))}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; vertical bars in cells are escaped."""
    escaped = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def device_text(device: Any) -> str:
    """Return a device in words."""
    if isinstance(device, Mapping):
        return str(device.get("name") or device.get("kind") or "unknown device")
    return str(device)


def footnote(device: Any, versions: Mapping[str, Any], notes: str) -> str:
    """Return the line under a table: where it was measured, with what, and remarks."""
    parts = [device_text(device), *(f"{name} {version}" for name, version in sorted(versions.items()))]
    return f"Measured on {', '.join(parts)}." + (f" {notes.rstrip('.')}." if notes else "")


def side(row: Mapping[str, Any], name: str, who: str | None = None) -> str:
    """Return one side of a comparison: its figure, its interval where it has one, and who it is."""
    if row[name] is None:
        return "–"
    text = quantity(float(row[name]), row.get("unit", ""))
    if row.get(f"{name}_interval") is not None:
        low, high = row[f"{name}_interval"]
        text += f" [{number(float(low))}, {number(float(high))}]"
    return f"{text} ({who})" if who else text


def goal(row: Mapping[str, Any]) -> str:
    """Return the goal of a ratio, and whether it was met."""
    if row.get("goal") is None:
        return ""
    sign = "≥" if row.get("goal_is") == "at least" else "≤"
    return f"{sign} {number(float(row['goal']))}, {'met' if row['met'] else 'missed'}"


def render_benchmark(data: Mapping[str, Any]) -> list[str]:
    """Return the table of a benchmark: ours, the peer, the ratio with its interval and, where there are any, goals."""
    who = {row.get("peer_name") for row in data["rows"] if row.get("peer") is not None}
    alone = who.pop() if len(who) == 1 else None
    head = ["", "ours", f"peer: {alone}" if alone else "peer", "ours / peer", "goal"]
    rows = [
        [str(row["name"]), side(row, "ours"),
         "" if row.get("peer") is None else side(row, "peer", None if alone else row.get("peer_name")),
         "" if row.get("ratio") is None else estimate(row["ratio"]), goal(row)]
        for row in data["rows"]
    ]  # fmt: skip
    used = [k for k in range(len(head)) if k < 2 or any(cells[k] for cells in rows)]
    lines = table([head[k] for k in used], [[cells[k] for k in used] for cells in rows])
    return [*lines, "", footnote(data["device"], data["versions"], data.get("notes", ""))]


def render_claims(data: Mapping[str, Any]) -> list[str]:
    """Return the table of a run of claims: verdict, our figure, the paper's figure."""
    rows = []
    for claim in data["claims"]:
        ours = claim["headline"] if claim["verdict"] != "could not run" else claim["reason"]
        rows.append([claim["statement"], claim["verdict"], ours, claim["paper"], claim["differs"]])
    settings, environment = data["settings"], data["environment"]
    notes = f"Scale {settings['scale']}, seed {settings['seed']}"
    lines = table(["claim", "verdict", "ours", "the paper", "what differs"], rows)
    return [*lines, "", footnote(environment["device"], environment["versions"], notes)]


def render(data: Any, name: str) -> list[str]:
    """Return the lines that stand for a result file.

    Raises:
        ResultsError: The file has another schema or lacks a field.
    """
    schema = data.get("schema") if isinstance(data, Mapping) else None
    renderers = {BENCHMARK: render_benchmark, CLAIMS: render_claims}
    if schema not in renderers:
        raise ResultsError(f"{name} has the schema {schema!r}; {' and '.join(renderers)} can be rendered")
    try:
        return renderers[schema](data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(f"{name} is incomplete ({type(error).__name__}: {error})") from error


def render_entry(data: Any, name: str, entry: str) -> str:
    """Return one figure of a result file: the headline of a claim, or the ratio (else our figure) of a row.

    Raises:
        ResultsError: There is no such entry.
    """
    render(data, name)  # refuses foreign and incomplete files
    claims = data["schema"] == CLAIMS
    entries = {item["id" if claims else "name"]: item for item in data["claims" if claims else "rows"]}
    if entry not in entries:
        raise ResultsError(f"{name} has no entry {entry!r}; {near(entry, entries)}")
    item = entries[entry]
    if not claims:
        ratio = item.get("ratio")
        return quantity(float(item["ours"]), item.get("unit", "")) if ratio is None else estimate(ratio)
    if item["verdict"] == "could not run":
        return f"could not run: {item['reason']}"
    return item["headline"] + ("" if item["verdict"] == "holds" else f" ({item['verdict']})")


def near(name: str, names: Iterable[str]) -> str:
    """Return which of the names are like one that does not exist."""
    names = sorted(names)
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"near it: {', '.join(matches)}" if matches else f"there are: {', '.join(names) or 'none'}"


def result_files(root: Path) -> dict[str, Path]:
    """Return the committed results by id: the file's name without suffix, and with its package in front.

    A plain name that two packages use stands for neither.
    """
    found: dict[str, Path] = {}
    plain: dict[str, list[Path]] = {}
    for file in sorted(root.glob("packages/*/benchmarks/results/*.json")):
        found[f"{file.parents[2].name}/{file.stem}"] = file
        plain.setdefault(file.stem, []).append(file)
    return found | {name: files[0] for name, files in plain.items() if len(files) == 1}


def pages(root: Path) -> list[Path]:
    """Return the pages that may quote results."""
    patterns = ("README.md", "docs/*.md", "docs/guides/*.md", "packages/*/README.md", "packages/*/docs/*.md")
    return sorted({file for pattern in patterns for file in root.glob(pattern)})


def fill(text: str, path: str, files: Mapping[str, Path]) -> tuple[str, list[Finding]]:
    """Return a page with its figures filled in, and what could not be filled; code blocks are left alone."""
    lines = text.split("\n")
    filled: list[str] = []
    findings: list[Finding] = []
    position, fenced = 0, False
    while position < len(lines):
        line = lines[position]
        fenced ^= line.lstrip().startswith("```")
        end = position
        try:
            match = None if fenced else BEGIN.match(line)
            if match:
                end = end_of_block(lines, position, match["id"])
                name = match["id"]
                filled += [line, "", *render(lookup(name, files), name), "", END]
            else:
                filled.append(line if fenced else fill_line(line, files))
        except ValueError as error:
            findings.append(Finding(path, position + 1, str(error)))
            filled += lines[position : end + 1]
        position = end + 1
    return "\n".join(filled), findings


def fill_line(line: str, files: Mapping[str, Path]) -> str:
    """Return a line with the figures within it filled in.

    Raises:
        ResultsError: There is no such result or entry.
    """

    def substitute(match: re.Match[str]) -> str:
        name, entry = match["id"], match["entry"]
        figure = render_entry(lookup(name, files), name, entry)
        if line.startswith("|"):
            figure = figure.replace("|", "\\|")
        return f"<!-- result {name} {entry} -->{figure}<!-- /result -->"

    return INLINE.sub(substitute, line)


def end_of_block(lines: Sequence[str], start: int, name: str) -> int:
    """Return the line that ends the block which begins at `start`.

    Raises:
        ResultsError: There is none before the next block.
    """
    end = next((k for k in range(start + 1, len(lines)) if lines[k] == END or BEGIN.match(lines[k])), None)
    if end is None or lines[end] != END:
        raise ResultsError(f"the block {name} has no line {END!r}")
    return end


def lookup(name: str, files: Mapping[str, Path]) -> Any:
    """Return the content of a result file.

    Raises:
        ResultsError: There is no such result.
    """
    if name not in files:
        raise ResultsError(f"no result is called {name!r}; {near(name, files)}")
    return read_json(files[name])


def update(root: Path, check: bool) -> Iterator[Finding]:
    """Fill every page under `root`, or with `check` yield those that differ; yield what is wrong either way."""
    files = result_files(root)
    for page in pages(root):
        path, text = str(page.relative_to(root)), page.read_text(encoding="utf-8")
        new, findings = fill(text, path, files)
        yield from findings
        if new != text and check:
            old = text.split("\n")
            line = next((k for k, (a, b) in enumerate(zip(old, new.split("\n"), strict=False), 1) if a != b), len(old))
            yield Finding(path, line, "differs from the committed results; run tools/render_results.py")
        elif new != text and not findings:
            page.write_text(new, encoding="utf-8")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Read the command line and render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs from its JSON")
    arguments = parser.parse_args(argv)
    return report(update(root, arguments.check), "the pages quote the committed results")


if __name__ == "__main__":
    sys.exit(main())
