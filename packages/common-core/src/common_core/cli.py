"""The ``repertory`` command, and how a package makes its own command like it."""

from collections.abc import Callable, Mapping, Sequence

from common_core._command import FELL_SHORT as FELL_SHORT
from common_core._command import INTERRUPTED as INTERRUPTED
from common_core._command import OK as OK
from common_core._command import USAGE as USAGE
from common_core._command import Answer as Answer
from common_core._command import option as option
from common_core._command import run_app as run_app
from common_core._command import writable as writable


def package_app(
    package: str,
    verbs: Mapping[str, Callable[..., Answer]],
    description: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """The command of one package: its own verbs, and ``claims``, which runs the package's claims.

    Args:
        package: The package's name, which its claim ids begin with; also the command's name.
        verbs: Verb to function; ``demo`` is among them.
        description: One or two sentences for ``--help``.
        arguments: The command line without the command; ``sys.argv[1:]`` by default.

    Returns:
        The exit status.
    """
    from common_core.claims import _verbs

    def claims(
        scale: _verbs.Scale = "quick",
        seed: int = 0,
        device: str = "auto",
        jobs: _verbs.Jobs = None,
        out: _verbs.Out = None,
    ) -> Answer:
        """Run the package's claims and write a report.

        Args:
            scale: How large: seconds, minutes, or what needs a GPU.
            seed: The claims' seed.
            device: Device string, such as cpu or cuda; auto is cuda for the scale gpu and else cpu.
            jobs: Processes at a time.
            out: Folder for results and report.
        """
        return _verbs.run_verb([package], scale=scale, seed=seed, device=device, jobs=jobs, out=out)

    return run_app(package, {**verbs, "claims": claims}, description, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``repertory`` command."""
    from common_core.claims import _verbs

    verbs: dict[str, Callable[..., Answer]] = {
        "list": _verbs.list_verb,
        "run": _verbs.run_command,
        "report": _verbs.report_verb,
        "compare": _verbs.compare_verb,
        "env": _verbs.env_verb,
    }
    return run_app(
        "repertory", verbs, "Run the claims that the installed packages carry, and report on them.", arguments
    )
