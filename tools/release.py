"""Release one package: check that it can be, build it, and tag the commit as NAME-vX.Y.Z.

Without `--tag` nothing is kept: the checks run, the package is built into a temporary folder, and the tag that would be
created is printed. Pushing the tag starts the release workflow, which checks that the tag fits (`--tagged`), tests, and
publishes what it built (`--out`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from check_bounds import check as check_bounds
from packaging.version import InvalidVersion, Version
from workspace import ROOT, Package, packages


class ReleaseError(RuntimeError):
    """Why a package cannot be released."""


def git(root: Path, *arguments: str) -> str:
    """Return what git prints."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def find(root: Path, name: str) -> Package:
    """Return the package of a folder or distribution name.

    Raises:
        ReleaseError: There is none.
    """
    members = packages(root)
    for member in members:
        if name in (member.folder.name, member.name):
            return member
    raise ReleaseError(f"no package is called {name!r}; there are {', '.join(m.folder.name for m in members)}")


def tag_of(package: Package) -> str:
    """Return the tag of a package's present version."""
    return f"{package.folder.name}-v{package.version}"


def find_tagged(root: Path, tag: str) -> Package:
    """Return the package whose present version a tag names.

    Raises:
        ReleaseError: There is none.
    """
    tags = {tag_of(member): member for member in packages(root)}
    if tag not in tags:
        raise ReleaseError(f"the tag {tag} names no package at its present version; these would: {', '.join(tags)}")
    return tags[tag]


def faults(root: Path, package: Package, *, tagged: bool = False) -> list[str]:
    """Return why a package cannot be released now; empty where it can.

    Args:
        root: The workspace.
        package: The package.
        tagged: Whether its tag exists already, and must.
    """
    found = []
    try:
        if str(Version(package.version)) != package.version:
            found.append(f"the version {package.version} is not in normal form; write {Version(package.version)}")
    except InvalidVersion:
        found.append(f"{package.version!r} is not a version")
    found += version_faults(package) + changelog_faults(package)
    if git(root, "status", "--porcelain"):
        found.append("there are changes that are not committed; commit or remove them")
    exists = bool(git(root, "tag", "--list", tag_of(package)))
    if tagged and (not exists or git(root, "rev-parse", "HEAD") != git(root, "rev-list", "-n", "1", tag_of(package))):
        found.append(f"the tag {tag_of(package)} does not stand at the commit that is checked out")
    if exists and not tagged:
        found.append(f"the tag {tag_of(package)} exists; raise the version: uv version --package {package.name} --bump")
    return found + [str(finding) for finding in check_bounds(root, packages(root))]


def version_faults(package: Package) -> list[str]:
    """Return whether the version that the code states is another than that of pyproject.toml."""
    module = package.folder / "src" / package.import_name / "__init__.py"
    stated = re.search(r'^__version__ = "([^"]+)"$', module.read_text(encoding="utf-8"), re.MULTILINE)
    if stated and stated[1] != package.version:
        return [f"__version__ is {stated[1]} and the version in pyproject.toml {package.version}; make them equal"]
    return []


def changelog_faults(package: Package) -> list[str]:
    """Return what the package's CHANGELOG.md lacks: a section `## VERSION` that says something."""
    file = package.folder / "CHANGELOG.md"
    if not file.exists():
        return ["there is no CHANGELOG.md"]
    sections = re.split(r"^## ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for section in sections:
        heading, _, body = section.partition("\n")
        if heading.split()[:1] == [package.version]:
            return [] if body.strip() else [f"the section {package.version} of CHANGELOG.md is empty"]
    return [f"CHANGELOG.md has no section '## {package.version}'"]


def build(root: Path, package: Package, out: Path) -> list[str]:
    """Build the package and return the names of the files.

    Raises:
        ReleaseError: The build failed, or did not give one wheel and one source archive.
    """
    command = ["uv", "build", "--quiet", "--package", package.name, "--out-dir", str(out)]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"the build failed:\n{done.stderr.strip()}")
    names = sorted(file.name for file in out.iterdir() if file.suffix in {".whl", ".gz"})
    stem = f"{package.name.replace('-', '_')}-{package.version}"
    if names != [f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"]:
        raise ReleaseError(
            f"the build gave {', '.join(names) or 'nothing'}; expected one wheel and one archive of {stem}"
        )
    return names


def check_and_build(root: Path, package: Package, out: Path | None, *, tagged: bool) -> list[str]:
    """Check and build a package; return the names of the files, which are kept where `out` is given.

    Raises:
        ReleaseError: It cannot be released; every reason is listed.
    """
    found = faults(root, package, tagged=tagged)
    if found:
        raise ReleaseError(f"{package.folder.name} {package.version} cannot be released:\n- " + "\n- ".join(found))
    with tempfile.TemporaryDirectory() as folder:
        names = build(root, package, Path(folder))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copy(Path(folder) / name, out / name)
    return names


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Read the command line and release."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("package", nargs="?", help="folder or distribution name")
    what.add_argument("--tagged", metavar="TAG", help="the tag, where it exists already, instead of a package")
    parser.add_argument("--out", type=Path, help="folder to keep what was built in")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--dry-run", dest="tag", action="store_false", default=False, help="check and build (the default)"
    )
    mode.add_argument("--tag", action="store_true", help="create the tag")
    arguments = parser.parse_args(argv)
    tagged = arguments.tagged is not None
    try:
        package = find_tagged(root, arguments.tagged) if tagged else find(root, arguments.package)
        names = check_and_build(root, package, arguments.out, tagged=tagged)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"built {name}" for name in names))
    label = tag_of(package)
    if arguments.tag and not tagged:
        git(root, "tag", "--annotate", label, "--message", f"{package.folder.name} {package.version}")
        print(f"created the tag {label}; publish it with: git push origin {label}")
    elif not tagged:
        print(f"would create the tag {label} (give --tag)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
