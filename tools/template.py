"""Write a package from its template: which names are allowed, and how the template's files become the package's."""

from __future__ import annotations

import keyword
import re
import string
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from workspace import Package, canonical

TEMPLATE = Path(__file__).resolve().parent / "templates" / "package"
NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
LONGEST_NAME, LONGEST_TEXT = 24, 90

# The public index holds a stranger's project of the plain name, which an installer could fetch instead of ours.
TAKEN = frozenset({"common-core", "otter", "poet"})
PREFIX = "repertory-"
RESERVED = frozenset({"benchmarks", "docs", "examples", "integration-tests", "packages", "repertory", "tests", "tools"})


class FileTemplate(string.Template):
    """A template whose fields are written `%%{field}`, as `$` belongs to formulas and `{` to Python."""

    delimiter = "%%"


@dataclass(frozen=True)
class NewPackage:
    """What is to be known of a package before it can be written.

    Attributes:
        name: The folder and the command: the method's name, lower case with hyphens.
        distribution: What is installed; by default the name, with a prefix where the plain name is taken.
        title: What the method does, one line without a full stop.
        paper: Authors, title, venue and year.
    """

    name: str
    distribution: str
    title: str
    paper: str

    @property
    def import_name(self) -> str:
        """The name with underscores."""
        return self.name.replace("-", "_")


def default_distribution(name: str) -> str:
    """Return the distribution name of a package.

    Example:
        >>> default_distribution("gact"), default_distribution("poet")
        ('gact', 'repertory-poet')
    """
    return PREFIX + name if name in TAKEN else name


def faults(new: NewPackage, members: Iterable[Package]) -> list[str]:
    """Return why a package cannot be written; empty where it can."""
    members = list(members)
    found = []
    if not NAME.fullmatch(new.name):
        found.append(f"the name {new.name!r} is not lower-case words joined by single hyphens, such as alpa-lite")
    elif len(new.name) > LONGEST_NAME:
        found.append(f"the name {new.name!r} has {len(new.name)} letters; {LONGEST_NAME} at most")
    if keyword.iskeyword(new.import_name) or new.import_name in sys.stdlib_module_names:
        found.append(f"{new.import_name!r} is a word of Python or a module of its standard library")
    if new.name in RESERVED:
        found.append(f"{new.name!r} is the name of a part of the workspace")
    if not NAME.fullmatch(new.distribution):
        found.append(f"the distribution name {new.distribution!r} is not lower-case words joined by hyphens")
    if new.distribution in TAKEN:
        found.append(
            f"the distribution name {new.distribution!r} is taken by a stranger; use {PREFIX}{new.distribution}"
        )
    for member in members:
        if member.import_name == new.import_name:
            found.append(f"packages/{member.folder.name} exists")
        elif new.name in member.scripts:
            found.append(f"packages/{member.folder.name} installs the command {new.name!r}")
        if member.name == canonical(new.distribution) and member.import_name != new.import_name:
            found.append(f"packages/{member.folder.name} is distributed as {new.distribution!r}")
    for what, text in (("title", new.title), ("paper", new.paper)):
        if not text.strip() or len(text) > LONGEST_TEXT or re.search(r'["\\\n%]|\.$', text):
            found.append(
                f"the {what} {text!r} is not one line of at most {LONGEST_TEXT} letters without quotes, backslashes, "
                "percent signs and a full stop"
            )
    return found


def fields(new: NewPackage, core_version: str) -> dict[str, str]:
    """Return the fields of the template.

    Args:
        new: The package.
        core_version: The present version of common-core, from which the bounds of the requirement on it follow.
    """
    major, minor = core_version.split(".")[:2]
    plain = new.distribution.replace("-", "_") == new.import_name
    return {
        "name": new.name,
        "import_name": new.import_name,
        "distribution": new.distribution,
        "title": new.title,
        "paper": new.paper,
        "core_bounds": f">={major}.{minor},<{int(major) + 1}",
        "module_name": "" if plain else f'\nmodule-name = "{new.import_name}"',
    }


def sort_imports(text: str) -> str:
    """Sort each run of `from ... import` lines by module, as the order depends on the package's name."""
    lines, run = [], []
    for line in [*text.split("\n"), ""]:
        if line.startswith("from "):
            run.append(line)
            continue
        lines += [*sorted(run, key=lambda entry: entry.split(" import ")[0]), line]
        run = []
    return "\n".join(lines[:-1])


def render(new: NewPackage, core_version: str) -> dict[str, str]:
    """Return the files of the package, by path inside its folder.

    Raises:
        KeyError: The template uses a field that does not exist.
    """
    values = fields(new, core_version)
    rendered = {}
    for file in sorted(TEMPLATE.rglob("*.in")):
        path = file.relative_to(TEMPLATE).as_posix().removesuffix(".in").replace("IMPORT", new.import_name)
        text = FileTemplate(file.read_text(encoding="utf-8")).substitute(values)
        rendered[path] = sort_imports(text) if path.endswith(".py") else text
    return rendered
