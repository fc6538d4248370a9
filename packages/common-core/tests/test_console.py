import importlib.metadata
import io
from pathlib import Path

import pytest
from rich.console import Console

from common_core.cli import Answer, main, package_app, run_app, writable
from common_core.console import Board, duration, table
from common_core.engine import Event, TaskResult


def verdict(result: TaskResult) -> tuple[str, str]:
    return ("holds", "green") if result.status == "done" else ("could not run", "red")


def play(board: Board) -> None:
    board(Event("a.one", "started"))
    board(Event("a.one", "progress", 0.5, "half [way]"))
    board(Event("a.one", "ended", result=TaskResult("a.one", "done", wall_s=1.25)))
    board(Event("a.two", "started"))
    board(Event("a.two", "ended", result=TaskResult("a.two", "crashed", wall_s=75.0)))


def test_without_a_terminal_the_board_prints_lines():
    out = io.StringIO()
    with Board(["a.one", "a.two"], verdict, Console(file=out, width=100)) as board:
        play(board)
    assert out.getvalue().splitlines() == [
        "a.one: started", "a.one: holds after 1.2 s", "a.two: started", "a.two: could not run after 1 min 15 s",
    ]  # fmt: skip


def test_in_a_terminal_the_board_is_a_table():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with Board(["a.one", "a.two", "a.three"], verdict, console) as board:
        play(board)
        out.truncate(0)
        console.print(board._draw())
    text = out.getvalue()
    assert "2 of 3 done" in text
    for key, word in [("a.one", "holds"), ("a.two", "could not run"), ("a.three", "waiting")]:
        assert any(key in line and word in line for line in text.splitlines())


def test_a_long_board_shows_what_runs():
    out = io.StringIO()
    keys = [f"a.c{k:02d}" for k in range(60)]
    console = Console(file=out, width=100, height=12, force_terminal=True, color_system=None)
    board = Board(keys, verdict, console)
    board(Event("a.c50", "started"))
    console.print(board._draw())
    assert "a.c50" in out.getvalue()
    assert len(out.getvalue().splitlines()) <= 12


def test_cells_are_not_markup():
    out = io.StringIO()
    Console(file=out, width=60).print(table(["a"], [["[bold]x[/bold]"]]))
    assert "[bold]x[/bold]" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_errors_of_a_verb_are_one_line(capsys):
    def fail(path: str = "x") -> Answer:
        """Fail."""
        raise ValueError("first\nsecond")

    assert run_app("tool", {"fail": fail, "other": fail}, "A tool.", ["fail"]) == 2
    assert capsys.readouterr().err.strip() == "tool: first second"


def test_a_missing_file_is_told_in_words(capsys):
    def read(path: str = "no/such/file") -> Answer:
        """Read."""
        return Answer({"text": Path(path).read_text()})

    assert run_app("tool", {"read": read, "other": read}, "A tool.", ["read"]) == 2
    assert capsys.readouterr().err.strip() == "tool: no/such/file: no such file or directory"


def test_the_version_is_that_of_the_distribution(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"repertory {importlib.metadata.version('repertory-common-core')}"


def test_a_verb_takes_what_follows_two_dashes(capsys):
    def echo(words: tuple[str, ...] = ()) -> Answer:
        """Echo."""
        return Answer({"words": list(words)}, [" ".join(words), "done"])

    assert run_app("tool", {"echo": echo, "other": echo}, "A tool.", ["echo", "--words", "a", "b"]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == ["a b", "done"]


def test_a_package_command_has_claims_and_its_own_verbs(capsys):
    def demo() -> Answer:
        """Show it."""
        return Answer({"shown": True}, "here it is")

    assert package_app("toy", {"demo": demo}, "Toys.", ["demo"]) == 0
    assert "here it is" in capsys.readouterr().out
    with pytest.raises(SystemExit) as leaving:
        package_app("toy", {"demo": demo}, "Toys.", ["--help"])
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert "demo" in out
    assert "claims" in out


def test_files_in_folders_that_do_not_exist_are_refused(tmp_path) -> None:
    writable(None, tmp_path / "plan.json")
    with pytest.raises(ValueError, match="does not exist"):
        writable(tmp_path / "nowhere" / "plan.json")
    with pytest.raises(ValueError, match="is a folder"):
        writable(tmp_path)
