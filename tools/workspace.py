"""What the maintainers' scripts know about the workspace: its root, its packages, how findings are printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, order=True)
class Finding:
    """One offence, at the place where it is to be mended."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Package:
    """One member of the workspace, read from its pyproject.toml."""

    folder: Path
    text: str
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """The distribution name, as an installer compares it."""
        return canonical(self.data["project"]["name"])

    @property
    def version(self) -> str:
        """The static version."""
        return self.data["project"]["version"]

    @property
    def import_name(self) -> str:
        """The import name: the folder with underscores."""
        return self.folder.name.replace("-", "_")

    @property
    def scripts(self) -> dict[str, str]:
        """The console scripts: name to entry point."""
        return self.data["project"].get("scripts", {})


def canonical(name: str) -> str:
    """Return a distribution name in the form installers compare (lower case, single hyphens)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(root: Path = ROOT) -> list[Package]:
    """Return the members of the workspace under `root`, ordered by folder."""
    found = []
    for file in sorted((root / "packages").glob("*/pyproject.toml")):
        text = file.read_text(encoding="utf-8")
        found.append(Package(file.parent, text, tomllib.loads(text)))
    return found


def line_of(text: str, needle: str) -> int:
    """Return the 1-based line of the first occurrence of `needle`, or 1 where it does not occur."""
    at = text.find(needle)
    return text.count("\n", 0, at) + 1 if at >= 0 else 1


def tracked_files(root: Path = ROOT) -> Iterator[Path]:
    """Yield the regular files that git tracks, or would track: new files that are not ignored count."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in sorted(filter(None, listing.split("\0"))):
        path = root / name
        if path.is_file() and not path.is_symlink():
            yield path


def report(findings: Iterable[Finding], passed: str) -> int:
    """Print the findings, or the sentence `passed` where there is none, and return the exit status."""
    found = sorted(set(findings))
    for finding in found:
        print(finding, file=sys.stderr)
    if not found:
        print(passed)
    return 1 if found else 0


def read_json(path: Path) -> Any:
    """Return the JSON value in a file; the error of a broken one names the file.

    Raises:
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
