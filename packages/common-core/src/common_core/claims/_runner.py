"""Running claims through the engine, into a folder that can be continued."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from common_core.claims._claim import SCALES, ClaimError
from common_core.claims._discovery import Found
from common_core.claims._execute import execute_claim
from common_core.claims._results import ClaimResult, Results, result_of
from common_core.engine import Event, ResultStore, Task, TaskResult, check_run, run
from common_core.records import environment, read_json, to_jsonable, write_json_atomic

RUN_SCHEMA = "repertory.run/1"
_LIMITS = {"quick": 300.0, "full": 3600.0, "gpu": 1800.0}


@dataclass(frozen=True)
class Settings:
    """What decides the figures of a run.

    Attributes:
        selectors: Packages, claim ids or patterns; empty for all.
        scale: ``quick``, ``full`` or ``gpu``.
        seed: The seed that every claim gets.
        device: Device string, such as ``cpu`` or ``cuda``.
    """

    selectors: tuple[str, ...] = ()
    scale: str = "quick"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse an unknown scale or a negative seed."""
        if self.scale not in SCALES:
            raise ClaimError(f"scale is {self.scale!r}; give one of {', '.join(SCALES)}")
        if self.seed < 0:
            raise ClaimError(f"seed is {self.seed}; give 0 or more")

    def save(self, folder: Path) -> None:
        """Note in ``folder`` what the run there is, so that it can be continued."""
        write_json_atomic(folder / "run.json", {"schema": RUN_SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Settings":
        """The settings of the run in ``folder``.

        Raises:
            RecordError: There is no run in it, or a foreign or newer one.
        """
        data = read_json(Path(folder) / "run.json", RUN_SCHEMA)
        return cls(tuple(data["selectors"]), data["scale"], data["seed"], data["device"])


def run_claims(
    chosen: Mapping[str, Found],
    settings: Settings,
    folder: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    timeout: float | None = None,
    watch: Callable[[Event], None] | None = None,
) -> Results:
    """Run claims, each in a process of its own, and write ``results.json`` into ``folder``.

    Finished claims are kept in ``folder`` at once; a later call with the same folder and settings runs only the rest.

    Args:
        chosen: The claims, as :func:`select` returns them.
        settings: Scale, seed and device.
        folder: Where results go; made when missing.
        jobs: Processes at a time; the number of cores by default.
        engine: ``local`` or ``ray``.
        address: An existing Ray cluster.
        timeout: Seconds a claim may take; by default 300 (quick), 3600 (full), 1800 (gpu).
        watch: Called at every event of the engine.

    Returns:
        The results; after Ctrl-C those so far, with ``interrupted`` set.

    Raises:
        ValueError: The device cannot be found here, no claim has the scale, or an option is out of range; nothing has
            been run or written then.
    """
    folder = Path(folder)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    tasks = [_task(item, settings, timeout) for item in chosen.values()]
    check_run(tasks, jobs, engine, address)
    if not any(settings.scale in item.claim.scales for item in chosen.values()):
        raise ClaimError(
            f"none of the {len(chosen)} selected claims has the scale {settings.scale!r}; {_offered(chosen)}"
        )
    # On a cluster the device is a worker's, which this process may not see.
    where = environment(settings.device if engine == "local" else "cpu")
    settings.save(folder)
    ended: dict[str, TaskResult] = {}

    def note(event: Event) -> None:
        if event.result is not None:
            ended[event.key] = event.result
        if watch is not None:
            watch(event)

    interrupted = False
    try:
        run(tasks, jobs=jobs, engine=engine, address=address, store=ResultStore(folder / "claims"), watch=note)
    except KeyboardInterrupt:
        interrupted = True
    verdicts = tuple(_verdict(item, ended) for item in chosen.values())
    results = Results(to_jsonable(asdict(settings)), where, verdicts, started, interrupted)
    results.save(folder)
    return results


def _offered(chosen: Mapping[str, Found]) -> str:
    scales = [scale for scale in SCALES if any(scale in item.claim.scales for item in chosen.values())]
    return f"they offer {', '.join(scales)}"


def _task(item: Found, settings: Settings, timeout: float | None) -> Task:
    return Task(
        item.claim.id,
        execute_claim,
        {
            "entry": item.entry, "claim_id": item.claim.id,
            "scale": settings.scale, "seed": settings.seed, "device": settings.device,
        },
        timeout=_LIMITS[settings.scale] if timeout is None else timeout,
        num_cpus=item.claim.num_cpus,
        num_gpus=0 if settings.device == "cpu" else 1,
    )  # fmt: skip


def _verdict(item: Found, ended: Mapping[str, TaskResult]) -> ClaimResult:
    missing = TaskResult(item.claim.id, "cancelled", reason="the run was interrupted")
    return result_of(item.claim, ended.get(item.claim.id, missing))
