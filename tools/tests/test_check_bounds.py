from __future__ import annotations

from pathlib import Path

import check_bounds
import pytest


def test_bounded_requirements_pass(workspace: Path, make_package, capsys) -> None:
    make_package("core", name="repertory-core")
    make_package("gact", dependencies=("repertory-core[cli]>=0.1,<1", "numpy>=1.26"))
    assert check_bounds.main(workspace) == 0
    assert "2 packages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("requirement", "sentence"),
    [
        ("repertory-core", "without lower and upper bound"),
        ("Repertory_Core[cli]>=0.1", "without upper bound"),
        ("repertory-core<1", "without lower bound"),
        ("repertory-core>=0.2,<1", "does not admit the sibling's present version 0.1.0"),
        ("repertory-core>=0.1,!=0.1.0,<1", "does not admit"),
        ("numpy", "has no floor"),
        ("numpy<3", "has no floor"),
        ("numpy>=", "is not a requirement"),
        ("numpy @ https://example.com/numpy.whl", "points at an address"),
    ],
)
def test_an_unbounded_requirement_is_named_with_its_line(
    workspace: Path, make_package, capsys, requirement: str, sentence: str
) -> None:
    make_package("core", name="repertory-core")
    make_package("gact", dependencies=(requirement,))
    assert check_bounds.main(workspace) == 1
    line = capsys.readouterr().err
    assert line.startswith("packages/gact/pyproject.toml:4: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ('[project.optional-dependencies]\nplot = [\n  "matplotlib",\n]', 14),
        ('[dependency-groups]\npeers = [{ include-group = "x" }, "matplotlib"]\nx = []', 13),
    ],
)
def test_extras_and_groups_are_checked(workspace: Path, make_package, capsys, more: str, line: int) -> None:
    make_package("gact", more=more)
    assert check_bounds.main(workspace) == 1
    assert f"pyproject.toml:{line}: 'matplotlib' has no floor" in capsys.readouterr().err


def test_a_missing_build_backend_is_found(workspace: Path, make_package, capsys) -> None:
    make_package("gact", backend="")
    assert check_bounds.main(workspace) == 1
    assert "packages/gact/pyproject.toml:6: [build-system] names no build-backend" in capsys.readouterr().err


def test_the_root_may_name_members_barely_but_not_others(workspace: Path, make_package, capsys) -> None:
    make_package("gact")
    (workspace / "pyproject.toml").write_text(
        '[project]\nname = "root"\ndependencies = ["gact[plot]"]\n[dependency-groups]\nlint = ["ruff"]\n',
        encoding="utf-8",
    )
    assert check_bounds.main(workspace) == 1
    assert capsys.readouterr().err.splitlines() == [
        "pyproject.toml:5: 'ruff' has no floor; add the lowest version that the tests pass with (>=)"
    ]


def test_this_workspace_is_bounded() -> None:
    assert check_bounds.main() == 0
