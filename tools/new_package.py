"""Add a package to the workspace: a small, whole one that passes every check, to be replaced by the method.

It writes packages/NAME from the template and enters the package in the root pyproject.toml, mkdocs.yml, README.md and
CHANGELOG.md. Everything is prepared before anything is written, and taken back if writing fails. Usage:
`uv run --only-group tools tools/new_package.py NAME --title TITLE --paper PAPER [--distribution D]`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tomlkit
from template import NewPackage, default_distribution, faults, render
from tomlkit.items import Array
from workspace import ROOT, canonical, packages

CORE = "repertory-common-core"
LIST_BEGIN, LIST_END = "<!-- packages:begin -->", "<!-- packages:end -->"


class PackageError(ValueError):
    """A package that cannot be added; the message says why."""


CONTRACT = """\
[[tool.importlinter.contracts]]
id = "{import_name}-layers"
name = "{name}: cli > claims > theory (for claims and tests only) > system > numerics"
type = "layers"
containers = ["{import_name}"]
exhaustive = true
layers = ["cli", "claims", "theory", "io", "estimator", "solver"]
"""


def insert_sorted(array: Array, value: str, *, last: Iterable[str] = ()) -> None:
    """Insert a value into a sorted array of strings, before the values that are kept last."""
    kept = set(last)
    at = next((k for k, item in enumerate(array) if str(item) in kept or canonical(str(item)) > canonical(value)), None)
    if "\n" in array.as_string():
        array.insert(len(array) if at is None else at, value)
        return
    values = [str(item) for item in array]
    values.insert(len(values) if at is None else at, value)
    array.clear()
    array.extend(values)


def insert_source(text: str, distribution: str) -> str:
    """Return a pyproject.toml with a distribution among the sorted lines of `tool.uv.sources`.

    Raises:
        PackageError: There is no such table.
    """
    header = "[tool.uv.sources]\n"
    if header not in text:
        raise PackageError("pyproject.toml has no table [tool.uv.sources]")
    before, rest = text.split(header, 1)
    lines = rest.split("\n")
    end = next(k for k, line in enumerate(lines) if not line.strip() or line.startswith("["))
    entries = sorted([*lines[:end], f"{distribution} = {{ workspace = true }}"])
    return before + header + "\n".join([*entries, *lines[end:]])


def append_contract(text: str, new: NewPackage) -> str:
    """Return a pyproject.toml with the contract that keeps a package's own layers, after the last contract."""
    start = text.rindex("[[tool.importlinter.contracts]]")
    following = re.compile(r"^(?=\[)|(?<=\n)(?=#[^\n]*\n\[)", re.MULTILINE).search(text, start + 1)
    at = following.start() if following else len(text)
    contract = CONTRACT.format(name=new.name, import_name=new.import_name)
    before, after = text[:at].rstrip("\n"), text[at:]
    return f"{before}\n\n{contract}" + (f"\n{after}" if after else "")


def edit_pyproject(text: str, new: NewPackage) -> str:
    """Return the root pyproject.toml with the package entered.

    Raises:
        PackageError: A table or list that every package is entered in is missing.
    """
    document: Any = tomlkit.parse(text)
    try:
        insert_sorted(document["project"]["dependencies"], f"{new.distribution}[plot]")
        tools = document["tool"]
        insert_sorted(tools["pyrefly"]["search-path"], f"packages/{new.name}/src", last=["tools"])
        insert_sorted(tools["importlinter"]["root_packages"], new.import_name)
        contracts = tools["importlinter"]["contracts"]
        siblings: Any = next(contract for contract in contracts if contract.get("id") == "siblings")
        siblings["layers"][0] = " | ".join(sorted({*siblings["layers"][0].split(" | "), new.import_name}))
    except KeyError as error:
        raise PackageError(f"pyproject.toml lacks {error}, in which packages are entered") from error
    except StopIteration:
        raise PackageError("pyproject.toml has no import-linter contract with the id 'siblings'") from None
    known = document["tool"].get("deptry", {}).get("known_first_party")
    if known is not None:
        insert_sorted(known, new.import_name)
    return append_contract(insert_source(tomlkit.dumps(document), new.distribution), new)


def edit_navigation(text: str, new: NewPackage) -> str:
    """Return mkdocs.yml with the package's section in the navigation, sorted among the others.

    Raises:
        PackageError: There is no list of packages.
    """
    lines = text.split("\n")
    try:
        start = lines.index("  - Packages:") + 1
    except ValueError:
        raise PackageError("mkdocs.yml has no line '  - Packages:' in its navigation") from None
    end = next((k for k in range(start, len(lines)) if not lines[k].startswith("      ")), len(lines))
    heads = [k for k in range(start, end) if re.fullmatch(r"      - [a-z0-9-]+:", lines[k])]
    at = next((k for k in heads if lines[k][8:-1] > new.name), end)
    pages = [f"      - {new.name}:", f"          - packages/{new.name}/index.md"]
    for title, page in (("Theory", "theory"), ("Interface", "api"), ("Results", "results")):
        pages.append(f"          - {title}: packages/{new.name}/{page}.md")
    return "\n".join([*lines[:at], *pages, *lines[at:]])


def edit_list(text: str, path: str, line: str) -> str:
    """Return a page with a line entered, sorted, in its list of packages.

    The list stands between two markers and is either a table, of which the first two lines are the head, or bullets.

    Raises:
        PackageError: The markers are missing.
    """
    if LIST_BEGIN not in text or LIST_END not in text:
        raise PackageError(f"{path} lacks the markers {LIST_BEGIN} and {LIST_END} around its list of packages")
    before, rest = text.split(LIST_BEGIN, 1)
    inside, after = rest.split(LIST_END, 1)
    lines = [entry for entry in inside.split("\n") if entry.strip()]
    head = 2 if lines and lines[0].startswith("|") else 0
    if head:
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        width = lines[0].strip().strip("|").count("|") + 1
        cells = [*cells, *[""] * width][:width]
        line = "| " + " | ".join(cells) + " |"
    body = sorted([*lines[head:], line], key=str.lower)
    blank = "\n\n" if inside.startswith("\n\n") else "\n"
    return before + LIST_BEGIN + blank + "\n".join([*lines[:head], *body]) + blank + LIST_END + after


def edits(root: Path, new: NewPackage) -> dict[Path, str]:
    """Return the new text of every file that names the packages."""
    row = f"| [{new.name}](packages/{new.name}) | {new.title} | {new.paper} |"
    bullet = f"- [{new.name}](packages/{new.name}/CHANGELOG.md)"
    changes: dict[str, Callable[[str], str]] = {
        "pyproject.toml": lambda text: edit_pyproject(text, new),
        "mkdocs.yml": lambda text: edit_navigation(text, new),
        "README.md": lambda text: edit_list(text, "README.md", row),
        "CHANGELOG.md": lambda text: edit_list(text, "CHANGELOG.md", bullet),
    }
    return {root / path: change((root / path).read_text(encoding="utf-8")) for path, change in changes.items()}


def replace_text(path: Path, text: str) -> None:
    """Replace a file, whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    shutil.copymode(path, name)
    Path(name).replace(path)


def write(root: Path, new: NewPackage, files: dict[str, str], changes: dict[Path, str]) -> None:
    """Write the package and the changed files; after an error everything is as it was."""
    target, link = root / "packages" / new.name, root / "docs" / "packages" / new.name
    before = {path: path.read_text(encoding="utf-8") for path in changes}
    with tempfile.TemporaryDirectory(dir=root, prefix=".new-package-") as folder:
        built = Path(folder) / new.name
        for path, text in files.items():
            (built / path).parent.mkdir(parents=True, exist_ok=True)
            (built / path).write_text(text, encoding="utf-8")
        shutil.copyfile(root / "LICENSE", built / "LICENSE")
        try:
            built.rename(target)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("..", "..", "packages", new.name, "docs"))
            for path, text in changes.items():
                replace_text(path, text)
        except BaseException:
            for path, text in before.items():
                replace_text(path, text)
            link.unlink(missing_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            raise


def create(root: Path, new: NewPackage) -> Path:
    """Add a package to the workspace under `root`.

    Returns:
        Its folder.

    Raises:
        PackageError: The name or texts are not allowed, or the workspace lacks what packages are entered in.
    """
    members = packages(root)
    found = faults(new, members)
    if (root / "packages" / new.name).exists() or os.path.lexists(root / "docs" / "packages" / new.name):
        found.append(f"packages/{new.name} or docs/packages/{new.name} is there already")
    core = next((member for member in members if member.name == CORE), None)
    if core is None:
        found.append(f"the workspace has no {CORE}, which every package requires")
    if found or core is None:
        raise PackageError("; ".join(dict.fromkeys(found)))
    try:
        changes = edits(root, new)
    except FileNotFoundError as error:
        raise PackageError(f"{error.filename} is missing") from error
    write(root, new, render(new, core.version), changes)
    return root / "packages" / new.name


def main(argv: list[str] | None = None) -> int:
    """Read the command line and add the package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help="the method's name: lower case, words joined by hyphens")
    parser.add_argument("--distribution", help="what is installed, where it is not the name")
    parser.add_argument("--title", default="Ridge regression, to be replaced", help="what the method does, in one line")
    parser.add_argument("--paper", default="Hoerl and Kennard, Ridge Regression, Technometrics 1970")
    arguments = parser.parse_args(argv)
    distribution = arguments.distribution or default_distribution(arguments.name)
    try:
        folder = create(ROOT, NewPackage(arguments.name, distribution, arguments.title, arguments.paper))
    except PackageError as error:
        print(f"new_package: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder.relative_to(ROOT)}; next: uv lock, then uv run noxfile.py, then replace the example")
    return 0


if __name__ == "__main__":
    sys.exit(main())
