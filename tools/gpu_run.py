"""Run the device tests and the device benchmarks with the Python that runs this script.

For a machine with a GPU that has the frameworks, pytest and numpy, and nothing else of the workspace: neither uv nor
network is needed, the packages are taken from packages/*/src, and this script uses the standard library only. It ends
with status 0 when all passed, 1 when something failed or could not run, 2 on wrong usage, 3 without a device.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "repertory.benchmark/1"
NO_DEVICE = 3
# The versions on such a machine are its own, not the lock's: the workspace's configuration (warnings are errors, a
# minimal pytest) is left out on purpose.
PYTEST = ("-c", os.devnull, "-m", "gpu", "-ra", "-q", "--import-mode=importlib", "-p", "no:cacheprovider")
PLUGIN = ("-p", "common_core.testing", "--strict-markers")


@dataclass
class Tally:
    """What was run: numbers, and the names of what failed or could not run."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    unable: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 1 when something failed, could not run, or nothing ran at all."""
        return int(bool(self.failed or self.unable) or not self.passed)

    def lines(self) -> list[str]:
        """Return the summary; the counts stand alone on the last line."""
        counts = f"{self.passed} passed, {self.failed} failed"
        return [*self.unable, counts + (f", {self.skipped} skipped" if self.skipped else "")]


def find_device() -> str | None:
    """Return the name of the CUDA device that torch, or else jax, can use; None where there is none."""
    if importlib.util.find_spec("torch"):
        cuda = importlib.import_module("torch").cuda
        return cuda.get_device_name(0) if cuda.is_available() else None
    if importlib.util.find_spec("jax"):
        jax = importlib.import_module("jax")
        return str(jax.devices()[0].device_kind) if jax.default_backend() == "gpu" else None
    return None


def device_tests(package: Path) -> list[Path]:
    """Return the test files of a package that hold a test marked `gpu`; other files may need what is not here."""
    files = sorted((package / "tests").rglob("test_*.py"))
    return [file for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]


def device_benchmarks(package: Path) -> list[Path]:
    """Return the benchmarks of a package that can run on a CUDA device, without importing them."""
    return [file for file in sorted((package / "benchmarks").glob("bench_*.py")) if wants_cuda(file)]


def wants_cuda(file: Path) -> bool:
    """Return whether a benchmark names `cuda` in its tuple `DEVICES` or, where it has none, in its docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    for statement in tree.body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        elif isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == "DEVICES" for target in targets):
            return any(isinstance(node, ast.Constant) and node.value == "cuda" for node in ast.walk(value))
    return "cuda" in (ast.get_docstring(tree) or "").lower()


def environment(root: Path) -> dict[str, str]:
    """Return the environment of the children: every package's sources on the path, one thread."""
    sources = [str(path) for path in sorted((root / "packages").glob("*/src"))]
    earlier = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(sources + earlier), "OMP_NUM_THREADS": "1"}


def missing_module(package: Path, env: dict[str, str]) -> str | None:
    """Return why a package cannot be imported here, or None where it can."""
    command = [sys.executable, "-c", f"import {package.name.replace('-', '_')}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def run_tests(package: Path, files: Sequence[Path], env: dict[str, str], options: Sequence[str], tally: Tally) -> None:
    """Run the device tests of one package and add them to the tally."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *PYTEST, *options, f"--rootdir={package}", f"--junitxml={report}"]
        status = subprocess.run([*command, *map(str, files)], cwd=package, env=env, check=False).returncode
        suites = list(ElementTree.parse(report).getroot().iter("testsuite")) if report.exists() else []
    numbers = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    failed = numbers["failures"] + numbers["errors"]
    if status and not failed:
        tally.unable.append(f"{package.name}: pytest ended with status {status} and reported no failure")
    tally.failed += failed
    tally.skipped += numbers["skipped"]
    tally.passed += numbers["tests"] - failed - numbers["skipped"]


def run_benchmark(file: Path, out: Path, env: dict[str, str]) -> str | None:
    """Run one benchmark on the device; return what is wrong, or None."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(file), "--device", "cuda", "--out", str(out)]
    status = subprocess.run(command, cwd=file.parent, env=env, check=False).returncode
    if status:
        return f"ended with status {status}"
    try:
        written = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        return f"wrote no JSON: {error}"
    schema = written.get("schema") if isinstance(written, dict) else None
    return None if schema == SCHEMA else f"wrote the schema {schema!r}, not {SCHEMA!r}"


def run_package(package: Path, out: Path | None, env: dict[str, str], options: Sequence[str], tally: Tally) -> None:
    """Run one package's device tests and, where `out` is given, its device benchmarks."""
    tests, benchmarks = device_tests(package), device_benchmarks(package) if out else []
    if not tests and not benchmarks:
        print(f"== {package.name}: nothing for a device", flush=True)
        return
    print(f"== {package.name}: {len(tests)} test files, {len(benchmarks)} benchmarks", flush=True)
    reason = missing_module(package, env)
    if reason:
        tally.unable.append(f"{package.name}: cannot run here: {reason}")
        return
    if tests:
        run_tests(package, tests, env, options, tally)
    for file in benchmarks:
        assert out is not None
        start = time.perf_counter()
        fault = run_benchmark(file, out / f"{package.name}-{file.stem.removeprefix('bench_')}.json", env)
        print(f"{package.name}/{file.name}: {fault or 'ok'} ({time.perf_counter() - start:.1f} s)", flush=True)
        if fault:
            tally.failed += 1
            tally.unable.append(f"{package.name}/{file.name}: {fault}")
        else:
            tally.passed += 1


def run(root: Path, names: Sequence[str], out: Path | None, options: Sequence[str] = PLUGIN) -> int:
    """Run what is asked for on the device and print a summary.

    Args:
        root: The workspace.
        names: Folders of the packages; all where empty.
        out: Folder for the benchmarks' results; None for tests only.
        options: Options of pytest that bring the markers.

    Returns:
        The exit status.
    """
    folders = {file.parent.name: file.parent for file in sorted((root / "packages").glob("*/pyproject.toml"))}
    unknown = sorted(set(names) - set(folders))
    if unknown:
        print(f"gpu_run: no package is called {', '.join(unknown)}; there are {', '.join(folders)}", file=sys.stderr)
        return 2
    device = find_device()
    if device is None:
        print("gpu_run: neither torch nor jax finds a CUDA device here", file=sys.stderr)
        return NO_DEVICE
    print(f"device: {device}; Python {sys.version.split()[0]}", flush=True)
    env, tally = environment(root), Tally()
    for name in names or folders:
        run_package(folders[name], out, env, options, tally)
    print("\n".join(tally.lines()), flush=True)
    return tally.status


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--package", action="append", default=[], help="a package's folder; may be repeated")
    parser.add_argument("--benchmarks", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu", help="folder for the benchmarks' JSON")
    arguments = parser.parse_args(argv)
    return run(ROOT, arguments.package, arguments.out.resolve() if arguments.benchmarks else None)


if __name__ == "__main__":
    sys.exit(main())
