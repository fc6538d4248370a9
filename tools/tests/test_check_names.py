from __future__ import annotations

from pathlib import Path

import check_names
import pytest

HOME = "/ho" + "me/somebody/data"
INDEX = "https://py" + "pi.org/simple"


def test_clean_files_pass(workspace: Path, make_package, capsys) -> None:
    make_package("gact")
    text = "See docs/home/index.md, $HOME/work/here and https://example.com/home/work/page; a ratio 1/work/x.\n"
    (workspace / "page.md").write_text(text, encoding="utf-8")
    (workspace / "rows.json").write_text('{"node": "", "nodes": "3"}', encoding="utf-8")
    assert check_names.main(workspace) == 0
    assert "no machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"cd {HOME}", "an absolute path of somebody's machine"),
        (f'path = "{HOME}"', "an absolute path of somebody's machine"),
        ("open('/Us" + "ers/me/x')", "an absolute path of somebody's machine"),
        (f"index = {INDEX}", "the host of a package index"),
    ],
)
def test_a_forbidden_name_is_found_with_its_line(workspace: Path, capsys, line: str, message: str) -> None:
    (workspace / "notes.md").write_text(f"first\n\n{line}\n", encoding="utf-8")
    assert check_names.main(workspace) == 1
    error = capsys.readouterr().err
    assert error.startswith("notes.md:3: ")
    assert message in error


def test_the_local_user_is_found_as_a_word_only() -> None:
    names = ["lovelace"]
    assert [f.line for f in check_names.check_text("a", "x\nby lovelace.\n", names)] == [2]
    assert not list(check_names.check_text("a", "lovelaces\n", names))
    assert not list(check_names.check_text("a", "by lovelace  # names: allow\n", names))


def test_the_lock_may_name_the_index_and_ignored_files_are_passed_over(workspace: Path) -> None:
    (workspace / "uv.lock").write_text(INDEX, encoding="utf-8")
    (workspace / ".gitignore").write_text("*.log\n", encoding="utf-8")
    (workspace / "run.log").write_text(HOME, encoding="utf-8")
    (workspace / "figure.png").write_bytes(b"\x89PNG\xff" + HOME.encode())
    assert check_names.main(workspace) == 0


def test_host_keys_in_committed_results_are_found(workspace: Path, capsys) -> None:
    text = '{\n "machine_info": {\n  "node": "calculator-7"\n },\n "rows": [{"hostname": "calculator-7"}]\n}'
    (workspace / "bench.json").write_text(text, encoding="utf-8")
    (workspace / "broken.json").write_text("{\n", encoding="utf-8")
    assert check_names.main(workspace) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [error.split(": ")[0] for error in errors] == ["bench.json:3", "bench.json:5", "broken.json:2"]


def test_scripts_are_unique_and_folders_are_import_names(workspace: Path, make_package, capsys) -> None:
    make_package("gact", more='[project.scripts]\ntool = "gact:main"')
    make_package("poet", name="repertory-poet", more='[project.scripts]\ntool = "poet:main"')
    renamed = make_package("xmesh-reshard")
    (renamed / "src" / "xmesh_reshard").rename(renamed / "src" / "xmesh")
    assert check_names.main(workspace) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("packages/poet/pyproject.toml:13: the script 'tool' is installed by 'gact' too")
    assert "must hold src/xmesh_reshard/__init__.py" in errors[1]
    assert len(errors) == 2


def test_a_wheel_under_another_import_name_is_found(workspace: Path, make_package, capsys) -> None:
    folder = make_package("poet", name="repertory-poet")
    file = folder / "pyproject.toml"
    file.write_text(file.read_text("utf-8").replace('module-name = "poet"', ""), encoding="utf-8")
    assert check_names.main(workspace) == 1
    assert "the wheel would hold 'repertory_poet'" in capsys.readouterr().err


def test_this_repository_is_clean() -> None:
    assert check_names.main() == 0
