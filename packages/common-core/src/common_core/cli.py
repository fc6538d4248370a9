"""The ``repertory`` command, and how a package makes its own command like it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from common_core._command import FELL_SHORT as FELL_SHORT
from common_core._command import INTERRUPTED as INTERRUPTED
from common_core._command import OK as OK
from common_core._command import USAGE as USAGE
from common_core._command import Answer as Answer
from common_core._command import run_app as run_app


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
    from common_core.claims._verbs import run_verb

    def claims(
        scale: Literal["quick", "full", "gpu"] | None = None,
        seed: int | None = None,
        device: str | None = None,
        jobs: int | None = None,
        out: str | None = None,
    ) -> Answer:
        """Run the package's claims and write a report.

        Args:
            scale: How large: quick (seconds), full (minutes) or gpu.
            seed: The claims' seed.
            device: Device string, such as cpu or cuda.
            jobs: Processes at a time; by default the number of cores.
            out: Folder for results and report; by default a new one in repertory-results.
        """
        return run_verb([package], scale=scale, seed=seed, device=device, jobs=jobs, out=out)

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
