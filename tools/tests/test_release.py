from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import release


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.com"]
    done = subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def committed(workspace: Path, make_package, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the package gact, committed and ready for release."""
    for key in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.setenv(key, "Tester")
    for key in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(key, "tester@example.com")
    make_package("core", name="repertory-core")
    folder = make_package("gact", version="0.2.0", dependencies=("repertory-core>=0.1,<1",))
    (folder / "CHANGELOG.md").write_text("# Changes\n\n## 0.2.0 (2026)\n\n- Faster.\n\n## 0.1.0\n", encoding="utf-8")
    (workspace / "pyproject.toml").write_text(
        '[project]\nname = "root"\nversion = "0"\n[tool.uv]\npackage = false\n[tool.uv.workspace]\n'
        'members = ["packages/*"]\n[tool.uv.sources]\nrepertory-core = { workspace = true }\n',
        encoding="utf-8",
    )
    git(workspace, "add", "-A")
    git(workspace, "commit", "-q", "-m", "All")
    return workspace


def files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "build", lambda root, package, out: [f"{package.name}.whl"])


def test_a_dry_run_builds_and_tags_nothing(committed: Path, monkeypatch, capsys) -> None:
    files_only(monkeypatch)
    assert release.main(["gact"], committed) == 0
    assert capsys.readouterr().out.splitlines() == ["built gact.whl", "would create the tag gact-v0.2.0 (give --tag)"]
    assert git(committed, "tag") == ""


def test_the_tag_is_created_once(committed: Path, monkeypatch, capsys) -> None:
    files_only(monkeypatch)
    assert release.main(["gact", "--tag"], committed) == 0
    assert git(committed, "tag").split() == ["gact-v0.2.0"]
    assert release.main(["gact", "--tag"], committed) == 1
    assert "the tag gact-v0.2.0 exists; raise the version" in capsys.readouterr().err


def test_a_tagged_commit_is_built_into_a_folder(committed: Path, tmp_path: Path, capsys) -> None:
    assert release.main(["--tagged", "gact-v0.2.0"], committed) == 1
    assert "does not stand at the commit" in capsys.readouterr().err
    git(committed, "tag", "gact-v0.2.0")
    out = tmp_path / "out"
    assert release.main(["--tagged", "gact-v0.2.0", "--out", str(out)], committed) == 0
    assert sorted(file.name for file in out.iterdir()) == ["gact-0.2.0-py3-none-any.whl", "gact-0.2.0.tar.gz"]
    git(committed, "commit", "-q", "--allow-empty", "-m", "Later")
    assert release.main(["--tagged", "gact-v0.2.0"], committed) == 1
    assert release.main(["--tagged", "gact-v0.1.0"], committed) == 1
    assert "these would: core-v0.1.0, gact-v0.2.0" in capsys.readouterr().err


def test_every_reason_is_listed(committed: Path, capsys) -> None:
    folder = committed / "packages" / "gact"
    pyproject = folder / "pyproject.toml"
    text = pyproject.read_text("utf-8").replace('"0.2.0"', '"0.3.00"').replace(">=0.1,<1", ">=0.2,<1")
    pyproject.write_text(text, encoding="utf-8")
    (folder / "src" / "gact" / "__init__.py").write_text('__version__ = "0.2.0"\n', encoding="utf-8")
    assert release.main(["gact"], committed) == 1
    error = capsys.readouterr().err
    for reason in (
        "not in normal form; write 0.3.0",
        "__version__ is 0.2.0",
        "CHANGELOG.md has no section '## 0.3.00'",
        "not committed",
        "does not admit the sibling's present version 0.1.0",
    ):
        assert reason in error
    assert len(error.splitlines()) == 6


@pytest.mark.parametrize(
    ("text", "fault"),
    [("# Changes\n\n## 0.2.0\n\n## 0.1.0\n\n- x\n", "is empty"), ("# Changes\n\n- 0.2.0\n", "has no section")],
)
def test_the_changelog_must_say_something(committed: Path, text: str, fault: str) -> None:
    file = committed / "packages" / "gact" / "CHANGELOG.md"
    file.write_text(text, encoding="utf-8")
    (found,) = release.changelog_faults(release.find(committed, "gact"))
    assert fault in found
    file.unlink()
    assert release.changelog_faults(release.find(committed, "gact")) == ["there is no CHANGELOG.md"]


def test_an_unknown_package_is_refused(committed: Path, capsys) -> None:
    assert release.main(["poet"], committed) == 1
    assert "no package is called 'poet'; there are core, gact" in capsys.readouterr().err


def test_the_package_is_built(committed: Path, tmp_path: Path) -> None:
    package = release.find(committed, "gact")
    names = release.build(committed, package, tmp_path / "out")
    assert names == ["gact-0.2.0-py3-none-any.whl", "gact-0.2.0.tar.gz"]


def test_a_build_that_gives_something_else_is_refused(committed: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "gact-0.1.0-py3-none-any.whl").touch()
    monkeypatch.setattr(release.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    with pytest.raises(release.ReleaseError, match=r"gave gact-0\.1\.0-py3-none-any\.whl; expected one wheel"):
        release.build(committed, release.find(committed, "gact"), out)
