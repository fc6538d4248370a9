from __future__ import annotations

import zipfile
from pathlib import Path

import check_wheels
import pytest
from workspace import packages

SCRIPT = "def main():\n    print('usage: gact')\n"
OFFLINE = ("--no-index",)


def unlocked(package: object, root: Path) -> str:
    return ""


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def two_packages(workspace: Path, make_package, make_wheel) -> Path:
    """A workspace of `common-core` and `gact`, which requires it, and the folder with their wheels."""
    make_package("common-core", name="repertory-common-core")
    folder = make_package(
        "gact", dependencies=("repertory-common-core>=0.1,<1",), more='[project.scripts]\ngact = "gact:main"'
    )
    (folder / "examples").mkdir()
    quickstart = "import common_core, gact, pathlib\nassert not pathlib.Path('pyproject.toml').exists()\n"
    (folder / "examples" / "quickstart.py").write_text(quickstart, encoding="utf-8")
    make_wheel("repertory-common-core", "0.1.0", {"common_core/__init__.py": "OURS = True\n"})
    wheel = make_wheel(
        "gact",
        "0.1.0",
        {"gact/__init__.py": SCRIPT},
        requires=("repertory-common-core>=0.1,<1",),
        scripts={"gact": "gact:main"},
    )
    return wheel.parent


def run(dist: Path, workspace: Path, *only: str) -> int:
    return check_wheels.check(dist, workspace, only, lock=unlocked, options=OFFLINE)


def test_good_wheels_pass(two_packages: Path, workspace: Path, capsys) -> None:
    assert run(two_packages, workspace) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "repertory-common-core 0.1.0: install, import",
        "gact 0.1.0: install, import, quickstart, gact --help",
    ]


def test_a_second_build_of_the_same_version_is_not_taken_from_the_cache(
    two_packages: Path, workspace: Path, make_wheel
) -> None:
    assert run(two_packages, workspace) == 0
    make_wheel("repertory-common-core", "0.1.0", {"common_core/__init__.py": "OURS = 'later'\n"})
    assert run(two_packages, workspace) == 0


@pytest.mark.parametrize("name", ["repertory-common-core", "common-core"])
def test_a_strangers_wheel_in_the_folder_is_refused(
    two_packages: Path, workspace: Path, make_wheel, capsys, name: str
) -> None:
    make_wheel(name, "0.9.0", {"common_core/__init__.py": ""})
    assert run(two_packages, workspace) == 1
    error = capsys.readouterr().err
    assert f"{name.replace('-', '_')}-0.9.0-py3-none-any.whl is a stranger" in error
    assert "empty dist/" in error


def test_a_stranger_that_an_index_offers_is_refused(
    two_packages: Path, workspace: Path, make_wheel, tmp_path: Path, capsys
) -> None:
    stranger = make_wheel("repertory-common-core", "0.9.0", {"common_core/__init__.py": ""})
    index = tmp_path / "index"
    index.mkdir()
    stranger.rename(index / stranger.name)
    options = (*OFFLINE, "--find-links", str(index))
    assert check_wheels.check(two_packages, workspace, ["gact"], lock=unlocked, options=options) == 1
    error = capsys.readouterr().err
    assert "gact: repertory-common-core 0.9.0 was installed, a stranger's project: ours is 0.1.0" in error


def test_a_requirement_under_a_strangers_name_is_refused(
    two_packages: Path, workspace: Path, make_wheel, tmp_path: Path, capsys
) -> None:
    stranger = make_wheel("common-core", "0.1.1", {"common_core/__init__.py": ""})
    index = tmp_path / "index"
    index.mkdir()
    stranger.rename(index / stranger.name)
    make_wheel("gact", "0.1.0", {"gact/__init__.py": SCRIPT}, requires=("common-core>=0.1,<1",))
    options = (*OFFLINE, "--find-links", str(index))
    assert check_wheels.check(two_packages, workspace, ["gact"], lock=unlocked, options=options) == 1
    assert "the stranger common-core 0.1.1 installed the import package 'common_core'" in capsys.readouterr().err


def test_same_version_but_other_contents_is_refused(two_packages: Path, workspace: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    wheels = check_wheels.own_wheels(two_packages, packages(workspace))
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel.path) as archive:
            archive.extractall(site)
    check_wheels.check_identity(site, packages(workspace), wheels)
    (site / "common_core" / "__init__.py").write_text("OURS = False\n", encoding="utf-8")
    with pytest.raises(check_wheels.WheelError, match=r"not from our wheel: common_core/__init__\.py differs"):
        check_wheels.check_identity(site, packages(workspace), wheels)


def test_a_failing_quickstart_shows_its_last_lines(two_packages: Path, workspace: Path, capsys) -> None:
    quickstart = workspace / "packages" / "gact" / "examples" / "quickstart.py"
    quickstart.write_text("raise SystemExit('no such plan')\n", encoding="utf-8")
    assert run(two_packages, workspace, "gact") == 1
    assert "gact: examples/quickstart.py failed with status 1:\nno such plan" in capsys.readouterr().err


def test_missing_wheels_and_unknown_packages_are_named(two_packages: Path, workspace: Path, capsys) -> None:
    assert run(two_packages, workspace, "nonesuch") == 1
    assert "no package is called nonesuch" in capsys.readouterr().err
    (two_packages / "gact-0.1.0-py3-none-any.whl").unlink()
    assert run(two_packages, workspace) == 1
    assert "holds no wheel of gact" in capsys.readouterr().err


def test_a_file_that_is_not_named_as_a_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(check_wheels.WheelError, match="is not named as a wheel"):
        check_wheels.Wheel.read(tmp_path / "gact.whl")
