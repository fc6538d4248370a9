"""The contracts of the root pyproject.toml hold, and catch what they are there to catch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import new_package
import pytest
from template import NewPackage
from workspace import ROOT, packages


@pytest.fixture
def copy(workspace: Path) -> Path:
    """The workspace's sources with a second method, ``sample``, so that there is a sibling to import."""
    for name in ("pyproject.toml", "mkdocs.yml", "LICENSE", "README.md", "CHANGELOG.md"):
        shutil.copyfile(ROOT / name, workspace / name)
    for member in packages():
        folder = workspace / "packages" / member.folder.name
        shutil.copytree(member.folder / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(member.folder / "pyproject.toml", folder / "pyproject.toml")
    new_package.create(
        workspace, NewPackage("sample", distribution="sample", title="A second method", paper="None, 2026")
    )
    return workspace


def lint_imports(root: Path) -> tuple[int, str]:
    """Status and report of import-linter on a workspace."""
    paths = os.pathsep.join(str(path) for path in sorted(root.glob("packages/*/src")))
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=root, env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def plant(root: Path, module: str, line: str) -> int:
    """Add an import at the end of a module; return the number of its line."""
    package = module.split(".")[0].replace("_", "-")
    path = root / "packages" / package / "src" / Path(*module.split(".")).with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}{line}\n", encoding="utf-8")
    return text.count("\n") + 1


def test_the_contracts_hold(copy: Path) -> None:
    status, report = lint_imports(copy)
    assert status == 0, report
    assert re.search(r"Contracts: \d+ kept, 0 broken", report)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("common_core.timing", "torch"),
        ("common_core.stats", "matplotlib"),
        ("hieropo.ope", "sample"),
        ("sample.solver", "hieropo"),
        ("common_core.records", "hieropo"),
        ("hieropo.posterior", "hieropo.claims"),
        ("hieropo.posterior", "hieropo.theory"),
        ("hieropo.theory", "hieropo.posterior"),
        ("common_core.stats", "common_core.records"),
    ],
)
def test_a_planted_import_is_named_with_its_line(copy: Path, module: str, imported: str) -> None:
    number = plant(copy, module, f"import {imported}")
    status, report = lint_imports(copy)
    assert status == 1
    assert f"{module} -> {imported} (l.{number})" in report


def test_a_module_that_is_in_no_layer_is_named(copy: Path) -> None:
    (copy / "packages" / "hieropo" / "src" / "hieropo" / "stray.py").write_text('"""Stray."""\n', encoding="utf-8")
    status, report = lint_imports(copy)
    assert status == 1
    assert "stray" in report
