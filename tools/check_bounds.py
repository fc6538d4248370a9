"""Check the requirements of every package.

A requirement on a sibling carries a lower and an upper bound and admits the sibling's present version: wheels carry no
trace of the workspace, and without bounds a stranger's project of the same name could be installed in its place. A
requirement on anybody else carries a floor, so that the lowest versions can be installed and tested.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from workspace import ROOT, Finding, Package, canonical, line_of, packages, report

LOWER = {">=", ">", "==", "~=", "==="}
UPPER = {"<", "<=", "==", "~=", "==="}


def declared(data: dict[str, Any]) -> Iterator[str]:
    """Yield every requirement of a pyproject.toml as written: hard, extra, group and build requirements."""
    project = data.get("project", {})
    yield from project.get("dependencies", [])
    for extra in project.get("optional-dependencies", {}).values():
        yield from extra
    for group in data.get("dependency-groups", {}).values():
        yield from (entry for entry in group if isinstance(entry, str))
    yield from data.get("build-system", {}).get("requires", [])


def fault(written: str, versions: dict[str, str], owner: str | None) -> str | None:
    """Return what is wrong with one requirement, or None.

    Args:
        written: The requirement as it stands in the file.
        versions: Distribution name to present version of every sibling.
        owner: Distribution name of the package that requires it; None for the workspace root, whose requirements on
            members are never installed from an index.
    """
    try:
        requirement = Requirement(written)
    except InvalidRequirement as error:
        return f"{written!r} is not a requirement: {error}"
    name, operators = canonical(requirement.name), {clause.operator for clause in requirement.specifier}
    if name in versions:
        if owner is None or owner == name:
            return None
        return sibling_fault(written, operators, requirement.specifier, versions[name])
    if requirement.url is not None:
        return f"{written!r} points at an address; require a version with a floor (>=) instead"
    if not operators & LOWER:
        return f"{written!r} has no floor; add the lowest version that the tests pass with (>=)"
    return None


def sibling_fault(written: str, operators: set[str], specifier: SpecifierSet, version: str) -> str | None:
    """Return what is wrong with a requirement on a sibling whose present version is `version`, or None."""
    if not operators & LOWER or not operators & UPPER:
        missing = " and ".join(
            word for word, allowed in (("lower", LOWER), ("upper", UPPER)) if not operators & allowed
        )
        return f"{written!r} requires a sibling without {missing} bound; write both, as in '>=0.1,<1'"
    if not specifier.contains(version, prereleases=True):
        return f"{written!r} does not admit the sibling's present version {version}"
    return None


def check_file(
    path: Path, text: str, data: dict[str, Any], versions: dict[str, str], owner: str | None
) -> Iterator[Finding]:
    """Yield the faults in the requirements of one pyproject.toml."""
    for written in declared(data):
        message = fault(written, versions, owner)
        if message is not None:
            yield Finding(str(path), line_of(text, f'"{written}"'), message)


def check(root: Path, members: list[Package]) -> Iterator[Finding]:
    """Yield the faults of the workspace root and of every member."""
    versions = {member.name: member.version for member in members}
    top = root / "pyproject.toml"
    if top.exists():
        from tomllib import loads

        text = top.read_text(encoding="utf-8")
        yield from check_file(top.relative_to(root), text, loads(text), versions, None)
    for member in members:
        path = (member.folder / "pyproject.toml").relative_to(root)
        if "build-backend" not in member.data.get("build-system", {}):
            message = '[build-system] names no build-backend; add build-backend = "uv_build"'
            yield Finding(str(path), line_of(member.text, "[build-system]"), message)
        yield from check_file(path, member.text, member.data, versions, member.name)


def main(root: Path = ROOT) -> int:
    """Check the workspace under `root`; return the exit status."""
    members = packages(root)
    return report(check(root, members), f"the requirements of {len(members)} packages are bounded")


if __name__ == "__main__":
    sys.exit(main())
