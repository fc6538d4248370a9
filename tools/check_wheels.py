"""Check every wheel of a folder the way a user meets it: alone, in a fresh environment, away from the workspace.

For each wheel: install it with its requirements at the locked versions, compare every sibling that came along with the
wheel built here (an index may hold a stranger's project of the same name), import it, run its quick start from another
folder, and ask each of its scripts for help. Usage: `check_wheels.py DIST_DIR [PACKAGE...]`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workspace import ROOT, Package, canonical, packages

TIMEOUT = 300
TAIL = 15


class WheelError(RuntimeError):
    """A wheel that is not what it must be; the message is the sentence to print."""


@dataclass(frozen=True)
class Wheel:
    """A wheel file and the name and version that its file name states."""

    path: Path
    name: str
    version: str

    @classmethod
    def read(cls, path: Path) -> Wheel:
        """Read name and version from the file name, which the wheel format fixes.

        Raises:
            WheelError: The name is not of the form name-version-python-abi-platform.whl.
        """
        parts = path.stem.split("-")
        if len(parts) not in (5, 6):
            raise WheelError(f"{path.name} is not named as a wheel (name-version-python-abi-platform.whl)")
        return cls(path, canonical(parts[0]), parts[1])


def own_wheels(dist: Path, members: Sequence[Package]) -> dict[str, Wheel]:
    """Return the wheel of each member, by distribution name.

    Raises:
        WheelError: The folder holds a wheel that no member builds at its present version, or lacks a member's wheel.
    """
    versions = {member.name: member.version for member in members}
    found: dict[str, Wheel] = {}
    for path in sorted(dist.glob("*.whl")):
        wheel = Wheel.read(path)
        if versions.get(wheel.name) != wheel.version:
            here = f"{wheel.name} {versions[wheel.name]}" if wheel.name in versions else "no package of that name"
            raise WheelError(
                f"{path.name} is a stranger: the workspace builds {here}, and an installer would take the higher"
                f" version; empty {dist.name}/ and build again"
            )
        found[wheel.name] = wheel
    missing = sorted(set(versions) - set(found))
    if missing:
        raise WheelError(f"{dist} holds no wheel of {', '.join(missing)}; build with: uv build --all-packages")
    return found


def installed(site: Path) -> Iterator[tuple[str, str, set[str]]]:
    """Yield name, version and top-level entries of every distribution installed in a site-packages folder."""
    for info in sorted(site.glob("*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
        record = (info / "RECORD").read_text(encoding="utf-8").splitlines() if (info / "RECORD").exists() else []
        yield canonical(name), version, {line.split("/", 1)[0].strip('"') for line in record if "/" in line}


def same_files(wheel: Wheel, site: Path) -> str | None:
    """Return the first file of a wheel that is not installed byte for byte, or None."""
    with zipfile.ZipFile(wheel.path) as archive:
        for entry in archive.namelist():
            if entry.endswith(("/", ".dist-info/RECORD")) or ".data/" in entry:
                continue
            target = site / entry
            if not target.is_file() or target.read_bytes() != archive.read(entry):
                return entry
    return None


def check_identity(site: Path, members: Sequence[Package], wheels: Mapping[str, Wheel]) -> None:
    """Check that everything installed under a member's name, or holding a member's import package, is our wheel.

    Raises:
        WheelError: A stranger's project was installed, or shadows one of our import packages.
    """
    imports = {member.import_name: member.name for member in members}
    for name, version, entries in installed(site):
        for entry in sorted(entries & set(imports)):
            if imports[entry] != name:
                raise WheelError(f"the stranger {name} {version} installed the import package {entry!r}, which is ours")
        if name not in wheels:
            continue
        if version != wheels[name].version:
            raise WheelError(
                f"{name} {version} was installed, a stranger's project: ours is {wheels[name].version}; "
                "tighten the bounds of the requirement on it"
            )
        differing = same_files(wheels[name], site)
        if differing is not None:
            raise WheelError(f"{name} {version} was installed, but not from our wheel: {differing} differs")


def call(command: Sequence[str | Path], cwd: Path, what: str) -> str:
    """Run a command in a clean environment and return its output.

    Raises:
        WheelError: It failed or took longer than the limit; the message ends with the last lines it printed.
    """
    drop = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "UV_PROJECT"}
    env = {key: value for key, value in os.environ.items() if key not in drop}
    env |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=env,
            text=True,
            timeout=TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise WheelError(f"{what} took longer than {TIMEOUT} s") from error
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-TAIL:])
        raise WheelError(f"{what} failed with status {done.returncode}:\n{tail}")
    return done.stdout


class Environment:
    """A fresh virtual environment into which one wheel is installed."""

    def __init__(self, folder: Path, options: Sequence[str | Path]) -> None:
        self.folder = folder
        self.options = list(options)
        self.bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        call(["uv", "venv", "--quiet", "--python", sys.executable, folder / "venv"], folder, "uv venv")

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.bin / "python"

    @property
    def site(self) -> Path:
        """The folder that packages are installed into."""
        command = [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        return Path(call(command, self.folder, "python").strip())

    def install(self, requirement: str) -> None:
        """Install a requirement with what it requires."""
        command = ["uv", "pip", "install", "--quiet", "--python", self.python, *self.options, requirement]
        call(command, self.folder, f"the installation of {Path(requirement).name}")


def constraints(package: Package, root: Path) -> str:
    """Return the locked versions of everything a package may require, as a constraints file."""
    command = ["uv", "export", "--quiet", "--locked", "--package", package.name, "--all-extras"]
    return call([*command, "--no-default-groups", "--no-emit-workspace", "--no-hashes"], root, "uv export")


def check_wheel(
    package: Package, wheels: Mapping[str, Wheel], members: Sequence[Package], options: Sequence[str | Path]
) -> list[str]:
    """Check one package's wheel in a fresh environment; return what was checked.

    Raises:
        WheelError: Something fell short.
    """
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        folder = Path(name)
        environment = Environment(folder, options)
        wheel = wheels[package.name].path
        environment.install(str(wheel))
        check_identity(environment.site, members, wheels)
        call([environment.python, "-c", f"import {package.import_name}"], folder, f"import {package.import_name}")
        checked = ["install", "import"]
        quickstart = package.folder / "examples" / "quickstart.py"
        if quickstart.is_file():
            copy = folder / "quickstart.py"
            copy.write_bytes(quickstart.read_bytes())
            call([environment.python, copy], folder, "examples/quickstart.py")
            checked.append("quickstart")
        if "cli" in package.data["project"].get("optional-dependencies", {}):
            environment.install(f"{wheel}[cli]")
            check_identity(environment.site, members, wheels)
        for script in package.scripts:
            call([environment.bin / script, "--help"], folder, f"{script} --help")
            checked.append(f"{script} --help")
    return checked


def check(
    dist: Path,
    root: Path = ROOT,
    only: Sequence[str] = (),
    *,
    lock: Callable[[Package, Path], str] = constraints,
    options: Sequence[str] = (),
) -> int:
    """Check the wheels of `dist` against the workspace under `root`; return the exit status.

    Args:
        dist: The folder with one wheel for each member.
        root: The workspace.
        only: Folder or distribution names of the packages to check; all where empty.
        lock: Returns the constraints file for a package.
        options: Further options of the installer, such as `--no-index`.
    """
    members = packages(root)
    unknown = set(only) - {name for member in members for name in (member.name, member.folder.name)}
    try:
        if unknown:
            raise WheelError(f"no package is called {', '.join(sorted(unknown))}")
        wheels = own_wheels(dist, members)
    except WheelError as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1
    failed = 0
    for member in members:
        if only and not {member.name, member.folder.name} & set(only):
            continue
        try:
            with tempfile.TemporaryDirectory(prefix="lock-") as name:
                file = Path(name) / "constraints.txt"
                file.write_text(lock(member, root), encoding="utf-8")
                # The cache knows a wheel by its file name, and an earlier build of the same version had the same one.
                fresh = [part for name in wheels for part in ("--refresh-package", name)]
                sources = ["--find-links", dist.resolve(), "--constraint", file, *fresh, *options]
                checked = check_wheel(member, wheels, members, sources)
        except WheelError as error:
            failed += 1
            print(f"{member.name}: {error}", file=sys.stderr)
        else:
            print(f"{member.name} {member.version}: {', '.join(checked)}")
    return 1 if failed else 0


def main() -> int:
    """Read the command line and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dist", type=Path, help="the folder that `uv build --all-packages` wrote")
    parser.add_argument("packages", nargs="*", help="folder or distribution names; all by default")
    arguments = parser.parse_args()
    return check(arguments.dist, only=arguments.packages)


if __name__ == "__main__":
    sys.exit(main())
