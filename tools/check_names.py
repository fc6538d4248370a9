"""Check that the files of the repository name no machine, user or private host, and that its names fit together.

Forbidden in every text file: absolute paths of somebody's machine, names of package-index hosts (outside the lock),
the present user's and host's names. Forbidden in JSON: keys that carry a host name. Checked besides: a package's
folder is its import name, and no two packages install the same script.
"""

from __future__ import annotations

import getpass
import json
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workspace import ROOT, Finding, Package, line_of, packages, report, tracked_files

# Written in pieces, so that this file passes its own check.
PATHS = re.compile(r"(?<![\w.:/~$}>])/(?:home|Users|root|work|tmp/bash_jobs|mnt/data)/[\w.-]+")
INDEX_HOSTS = re.compile("|".join([r"pypi\." + r"org", r"python" + r"hosted\.org"]))
HOST_KEYS = {"node", "hostname", "host", "user", "username", "cwd", "nodename"}
COMMON_NAMES = {"root", "runner", "user", "ubuntu", "docker", "nobody", "admin", "build", "localhost", "none"}
LOCK_FILES = {"uv.lock"}
MIN_NAME = 5
ALLOW = "names: allow"


def local_names() -> list[str]:
    """Return the present user's and host's names that are telling enough to be looked for."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    names = {user, platform.node(), platform.node().split(".")[0]}
    return sorted(name for name in names if len(name) >= MIN_NAME and name.lower() not in COMMON_NAMES)


def patterns(names: list[str]) -> list[tuple[re.Pattern[str], str]]:
    """Return the expressions to look for in a line, each with what is wrong with a match."""
    found = [
        (PATHS, "an absolute path of somebody's machine; write it relative to the repository"),
        (INDEX_HOSTS, "the host of a package index; leave it to the installer's configuration"),
    ]
    if names:
        words = "|".join(map(re.escape, names))
        found.append((re.compile(rf"(?<!\w)(?:{words})(?!\w)"), "the name of this machine or of its user"))
    return found


def check_text(path: str, text: str, names: list[str]) -> Iterator[Finding]:
    """Yield the forbidden names in one file; a line that ends in the opt-out comment is passed over."""
    expressions = patterns(names)
    for number, line in enumerate(text.splitlines(), 1):
        if ALLOW in line:
            continue
        for expression, message in expressions:
            match = expression.search(line)
            if match:
                yield Finding(path, number, f"{match.group()!r} is {message}")


def host_keys(value: Any) -> Iterator[str]:
    """Yield the keys, at any depth of a JSON value, that carry a host or user name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key.lower() in HOST_KEYS and isinstance(inner, str) and inner:
                yield key
            yield from host_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from host_keys(inner)


def check_json(path: str, text: str) -> Iterator[Finding]:
    """Yield the host-bearing keys of one JSON file."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        yield Finding(path, error.lineno, f"not JSON: {error.msg}")
        return
    for key in host_keys(value):
        yield Finding(
            path, line_of(text, f'"{key}"'), f"the key {key!r} carries a machine's or user's name; leave it out"
        )


def check_files(root: Path, names: list[str]) -> Iterator[Finding]:
    """Yield the findings in every file that git tracks or would track; binary files are passed over."""
    for file in tracked_files(root):
        path = str(file.relative_to(root))
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if file.name not in LOCK_FILES:
            yield from check_text(path, text, names)
        if file.suffix == ".json":
            yield from check_json(path, text)


def check_packages(root: Path, members: list[Package]) -> Iterator[Finding]:
    """Yield packages whose folder is not their import name, and scripts that two packages install."""
    owners: dict[str, str] = {}
    for member in members:
        path = str((member.folder / "pyproject.toml").relative_to(root))
        if not (member.folder / "src" / member.import_name / "__init__.py").is_file():
            wanted = f"src/{member.import_name}/__init__.py"
            yield Finding(
                path, 1, f"the folder {member.folder.name!r} must hold {wanted}: folder = import name with '_'"
            )
        backend = member.data.get("tool", {}).get("uv", {}).get("build-backend", {})
        built = backend.get("module-name", member.name.replace("-", "_"))
        if built != member.import_name:
            line = line_of(member.text, "name =")
            yield Finding(path, line, f"the wheel would hold {built!r}; set module-name = {member.import_name!r}")
        for script in member.scripts:
            other = owners.setdefault(script, member.folder.name)
            if other != member.folder.name:
                line = line_of(member.text, f"\n{script} =") + 1
                yield Finding(path, line, f"the script {script!r} is installed by {other!r} too; rename one")


def main(root: Path = ROOT) -> int:
    """Check the repository under `root`; return the exit status."""
    findings = [*check_files(root, local_names()), *check_packages(root, packages(root))]
    return report(findings, "no machine, user or private host is named")


if __name__ == "__main__":
    sys.exit(main())
