from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import check_bounds
import check_names
import new_package
import pytest
from template import NewPackage, default_distribution, faults
from workspace import ROOT, packages

README = """\
# Here

<!-- packages:begin -->
| Package | Method | Paper | Result |
|---|---|---|---|
<!-- packages:end -->
"""
CHANGES = (
    "# Changes\n\n<!-- packages:begin -->\n\n- [hieropo](packages/hieropo/CHANGELOG.md)\n\n<!-- packages:end -->\n"
)
CONTRACTS = """
[tool.importlinter]
root_packages = ["common_core", "hieropo"]

[[tool.importlinter.contracts]]
id = "siblings"
name = "siblings"
type = "layers"
layers = ["hieropo", "common_core"]

# What comes after.
[tool.after]
value = 1
"""


def described(name: str, **changes: str) -> NewPackage:
    values = {
        "distribution": default_distribution(name),
        "title": "Ridge regression",
        "paper": "Hoerl and Kennard, Technometrics 1970",
    }
    return NewPackage(name, **(values | changes))


@pytest.fixture
def skeleton(workspace: Path) -> Path:
    """This workspace without its code: what a new package is entered in."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    if "[tool.importlinter]" not in text:
        text += CONTRACTS
    (workspace / "pyproject.toml").write_text(text, encoding="utf-8")
    for name in ("mkdocs.yml", "LICENSE"):
        shutil.copyfile(ROOT / name, workspace / name)
    (workspace / "README.md").write_text(README, encoding="utf-8")
    (workspace / "CHANGELOG.md").write_text(CHANGES, encoding="utf-8")
    for member in packages():
        folder = workspace / "packages" / member.folder.name
        folder.mkdir()
        (folder / "src").symlink_to(member.folder / "src")
        (folder / "pyproject.toml").write_text(member.text, encoding="utf-8")
    return workspace


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text("utf-8")
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }


def run(command: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | env
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_package_passes_its_own_tests(skeleton: Path) -> None:
    folder = new_package.create(skeleton, described("alpa-lite"))
    sources = [ROOT / "packages" / "common-core" / "src", folder / "src"]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={folder}", "-q", "--doctest-modules"]
    command += ["-p", "common_core.testing", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error"]
    command += [str(folder / "tests"), str(folder / "src")]
    done = run(command, folder, PYTHONPATH=os.pathsep.join(map(str, sources)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("name", ["alpa-lite", "otter", "zebra-with-a-long-name-x"])
def test_the_package_passes_the_checks(skeleton: Path, name: str) -> None:
    folder = new_package.create(skeleton, described(name))
    assert check_bounds.main(skeleton) == 0
    assert check_names.main(skeleton) == 0
    for verb in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = run([sys.executable, "-m", "ruff", *verb, str(folder)], skeleton)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_is_entered_everywhere(skeleton: Path) -> None:
    before = tomllib.loads((skeleton / "pyproject.toml").read_text("utf-8"))
    new_package.create(skeleton, described("otter"))
    new_package.create(skeleton, described("alpa-lite"))
    root = tomllib.loads((skeleton / "pyproject.toml").read_text("utf-8"))
    dependencies = root["project"]["dependencies"]
    assert dependencies[0] == "alpa-lite[plot]"
    assert set(dependencies) - set(before["project"]["dependencies"]) == {"alpa-lite[plot]", "repertory-otter[plot]"}
    assert list(root["tool"]["uv"]["sources"]) == sorted(
        [*before["tool"]["uv"]["sources"], "alpa-lite", "repertory-otter"]
    )
    search = root["tool"]["pyrefly"]["search-path"]
    assert {"packages/alpa-lite/src", "packages/otter/src"} < set(search)
    assert search[-1] == before["tool"]["pyrefly"]["search-path"][-1]
    contracts = {contract["id"]: contract for contract in root["tool"]["importlinter"]["contracts"]}
    assert {"alpa_lite", "otter"} < set(contracts["siblings"]["layers"][0].split(" | "))
    assert contracts["siblings"]["layers"][-1] == "common_core"
    assert contracts["alpa_lite-layers"]["containers"] == ["alpa_lite"]
    link = skeleton / "docs" / "packages" / "alpa-lite"
    assert link.is_symlink()
    assert (link / "theory.md").is_file()
    rows = (skeleton / "README.md").read_text("utf-8").splitlines()
    assert rows[5:7] == [
        "| [alpa-lite](packages/alpa-lite) | Ridge regression | Hoerl and Kennard, Technometrics 1970 |  |",
        "| [otter](packages/otter) | Ridge regression | Hoerl and Kennard, Technometrics 1970 |  |",
    ]
    bullets = [
        line.split("]")[0]
        for line in (skeleton / "CHANGELOG.md").read_text("utf-8").splitlines()
        if line.startswith("- ")
    ]
    assert bullets == ["- [alpa-lite", "- [hieropo", "- [otter"]
    navigation = (skeleton / "mkdocs.yml").read_text("utf-8")
    assert (
        navigation.index("      - alpa-lite:")
        < navigation.index("      - hieropo:")
        < navigation.index("      - otter:")
    )
    assert navigation.index("      - otter:") < navigation.index("  - Results: results.md")


def test_nothing_else_in_the_root_changes(skeleton: Path) -> None:
    before = (skeleton / "pyproject.toml").read_text("utf-8").splitlines()
    new_package.create(skeleton, described("otter"))
    after = (skeleton / "pyproject.toml").read_text("utf-8").splitlines()
    gone = [line for line in before if line not in after]
    assert len(gone) <= 3, gone  # the lists that stand on one line: search path, root packages, siblings
    kept = iter(after)
    assert all(line in kept for line in before if line not in gone), "the order of the lines has changed"


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (described("Alpa"), "not lower-case words"),
        (described("alpa_lite"), "not lower-case words"),
        (described("alpa--lite"), "not lower-case words"),
        (described("a" * 30), "has 30 letters"),
        (described("lambda"), "a word of Python"),
        (described("json"), "standard library"),
        (described("tools"), "a part of the workspace"),
        (described("hieropo"), "packages/hieropo exists"),
        (described("repertory"), "a part of the workspace"),
        (described("sample", distribution="otter"), "taken by a stranger; use repertory-otter"),
        (described("sample", distribution="hieropo"), "packages/hieropo is distributed as 'hieropo'"),
        (described("sample", distribution="G.act"), "the distribution name 'G.act'"),
        (described("sample", title='A "title"'), "the title"),
        (described("sample", title="A title."), "without quotes, backslashes, percent signs and a full stop"),
        (described("sample", paper=" "), "the paper"),
    ],
)
def test_a_name_that_is_not_allowed_is_refused_and_nothing_written(
    skeleton: Path, new: NewPackage, sentence: str
) -> None:
    before = contents(skeleton)
    with pytest.raises(new_package.PackageError) as refused:
        new_package.create(skeleton, new)
    assert sentence in str(refused.value)
    assert contents(skeleton) == before


def test_every_fault_is_listed() -> None:
    assert len(faults(described("Tools", distribution="otter", title=""), [])) == 3


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md", "mkdocs.yml", "pyproject.toml"])
def test_a_workspace_without_a_place_for_it_is_refused(skeleton: Path, file: str) -> None:
    (skeleton / file).write_text("[project]\n", encoding="utf-8")
    before = contents(skeleton)
    with pytest.raises(new_package.PackageError, match=file):
        new_package.create(skeleton, described("sample"))
    assert contents(skeleton) == before


def test_an_error_while_writing_takes_everything_back(skeleton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(skeleton)
    replace_text = new_package.replace_text
    calls = []

    def fail_at_third(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError("no space left")
        replace_text(path, text)

    monkeypatch.setattr(new_package, "replace_text", fail_at_third)
    with pytest.raises(OSError, match="no space left"):
        new_package.create(skeleton, described("sample"))
    assert contents(skeleton) == before
    assert not (skeleton / "docs" / "packages" / "sample").is_symlink()


def test_the_command_says_why(capsys) -> None:
    assert new_package.main(["hieropo"]) == 2
    assert "packages/hieropo exists" in capsys.readouterr().err
