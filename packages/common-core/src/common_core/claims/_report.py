"""``report.html``: one self-contained page, readable without network."""

import os
from pathlib import Path

from common_core.claims._results import ClaimResult, Results
from common_core.console import duration
from common_core.records import write_bytes_atomic


def _size(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:,.0f} MiB"


def _anchor(result: ClaimResult) -> str:
    return result.id.replace(".", "-")


def render(results: Results) -> str:
    """The report as HTML text.

    Args:
        results: What to show.

    Returns:
        A page with inline style and figures, in light and dark; nothing in it refers to another file or host.

    Raises:
        ImportError: Jinja2 is missing (extra ``cli``).
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the report needs Jinja2: install repertory-common-core[cli]") from error
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters.update(duration=duration, size=_size, anchor=_anchor)
    template = env.from_string((Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8"))
    packages: dict[str, list[ClaimResult]] = {}
    for result in results.claims:
        packages.setdefault(result.package, []).append(result)
    return template.render(results=results, packages=packages)


def write_report(results: Results, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into ``folder`` and return its path."""
    path = Path(folder) / "report.html"
    write_bytes_atomic(path, render(results).encode())
    return path
