"""How a command is made of verbs.

A command is a dictionary of verbs: functions whose parameters become options (by tyro) and that return an
:class:`Answer`. Every command takes ``--json`` (the answer as JSON) and ``--debug`` (a traceback instead of one
line), and ends with the same statuses: 0 ok, 1 a claim or check fell short, 2 wrong usage or input, 130 interrupted.
"""

import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from common_core.console import answers, progress
from common_core.records import to_jsonable

OK, FELL_SHORT, USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Answer:
    """What a verb found out.

    Attributes:
        data: The answer for a program: JSON values.
        shown: The answer for a person: text or any rich renderable, or several.
        status: The exit status.
    """

    data: Mapping[str, Any]
    shown: RenderableType | Sequence[RenderableType] = ""
    status: int = OK


def option(metavar: str, absent: str | None = None) -> Any:
    """How a parameter of a verb is shown in its help: the second part of its ``Annotated``.

    Args:
        metavar: What stands for the value, such as ``"DIR"``.
        absent: For a parameter whose default is None, what is done without it, in words.

    Returns:
        A marker for tyro.

    Raises:
        ImportError: tyro is missing (extra ``cli``).
    """
    tyro = _tyro()
    hint = None if absent is None else f"(default: {absent})"
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


def writable(*files: Path | None) -> None:
    """Refuse files whose folder does not exist before any work is done.

    Args:
        files: Files that a command will write; None for those that were not asked for.

    Raises:
        ValueError: If a folder does not exist, or a file is a folder itself.
    """
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"the folder {file.parent} of {file.name} does not exist; make it, or mend the path")
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder; give a file")


def _tyro() -> Any:
    try:
        import tyro
    except ImportError as error:
        raise ImportError("the command line needs tyro: install repertory-common-core[cli]") from error
    return tyro


def run_app(
    name: str,
    verbs: Mapping[str, Callable[..., Answer]],
    description: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the command line, call the verb, show its answer.

    Args:
        name: The command's name.
        verbs: Verb to function.
        description: One or two sentences for ``--help``.
        arguments: The command line without the command; ``sys.argv[1:]`` by default.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # After "--" everything is the verb's own.
    own = words[: words.index("--")] if "--" in words else words
    flags = {flag: flag in own for flag in ("--json", "--debug")}
    words = [word for word in own if word not in flags] + words[len(own) :]
    if words == ["--version"]:
        answers().print(f"{name} {_version(name)}")
        return OK
    try:
        answer = _call(name, verbs, description, words or ["--help"])
        _show(answer, as_json=flags["--json"])
    except KeyboardInterrupt:
        progress().print(f"{name}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (`| head`) has left
        sys.stderr.close()
        return OK
    except (ValueError, TypeError, LookupError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        if flags["--debug"]:
            traceback.print_exc()
        progress().print(Text(f"{name}: {_sentence(error)}", "red"), soft_wrap=True)
        return USAGE
    return answer.status


def _sentence(error: Exception) -> str:
    """An error as one line, without what only a programmer reads."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    else:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join((text or type(error).__name__).split())


def _version(name: str) -> str:
    """The version of the distribution that brings the command."""
    points = importlib.metadata.entry_points(group="console_scripts", name=name)
    return next((point.dist.version for point in points if point.dist is not None), "of an unknown version")


def _call(name: str, verbs: Mapping[str, Callable[..., Answer]], description: str, words: list[str]) -> Answer:
    suffix = "Every verb also takes --json (the answer as JSON) and --debug (tracebacks); --version shows the version."
    return _tyro().extras.subcommand_cli_from_dict(
        dict(verbs), prog=name, description=f"{description} {suffix}", args=words, sort_subcommands=False
    )


def _show(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(to_jsonable(answer.data), indent=1, ensure_ascii=False) + "\n")
        return
    shown = answer.shown
    parts = (shown,) if isinstance(shown, str) or not isinstance(shown, Sequence) else shown
    literal = [Text(part) if isinstance(part, str) else part for part in parts]
    answers().print(Group(*literal))
