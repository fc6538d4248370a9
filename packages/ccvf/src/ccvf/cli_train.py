"""What `ccvf train` does: from a log and settings to a folder with learnt values, resumable to the last bit."""

import errno
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ccvf.cli_runs import CHECKPOINT, CONFIG, LEARNER, VALUES, Run
from ccvf.cli_settings import Settings
from ccvf.transitions import Transitions
from common_core.console import progress
from common_core.records import environment
from common_core.seeding import Streams

__all__ = ["check_folder", "train_run"]

_EVERY = 5.0  # seconds between lines where there is no terminal
_RECORDS = 40  # at least so many records of the figures, where there are as many updates


def check_folder(run: Run, resume: bool) -> None:
    """Whether a training may be written here; nothing is.

    Args:
        run: What is to be trained, and where it goes.
        resume: Whether it may be there already.

    Raises:
        ValueError: If the folder is a file, or holds another training.
        OSError: If it cannot be written.
    """
    if run.folder.exists() and not run.folder.is_dir():
        raise ValueError(f"{run.folder} is a file; give a folder to write to")
    there = next(folder for folder in (run.folder, *run.folder.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, "No permission to write", str(there))
    if not (run.folder / CONFIG).is_file():
        return
    if not resume:
        raise ValueError(f"{run.folder} holds a training already; go on with --resume, or give another folder")
    known = Run.load(run.folder)
    differs = known.difference(run)
    made = _made(run.folder / CHECKPOINT)
    if not differs and run.settings.updates < made:
        differs = f"{made} updates were made already and {run.settings.updates} are asked for"
    if differs:
        raise ValueError(f"{run.folder} cannot be resumed: {differs}. Resume with the same, or give another folder")


def _made(checkpoint: Path) -> int:
    """Updates that a checkpoint holds; 0 where there is none."""
    if not checkpoint.is_file():
        return 0
    from ccvf.io import load_checkpoint

    return int(load_checkpoint(checkpoint)[1]["learner"]["updates"])


def train_run(run: Run, data: Transitions, device: str, checkpoint_every: int) -> dict[str, Any]:
    """Train, and write everything.

    Args:
        run: What is to be trained, and where it goes.
        data: The log.
        device: Where to train.
        checkpoint_every: Updates between two checkpoints.

    Returns:
        Figures for the answer.

    Raises:
        ValueError: If settings do not fit the log, or the loss diverges.
        KeyboardInterrupt: As it came, after a word on how to go on.
    """
    if run.settings.method == "tabular":
        return _solve(run, data)
    return _learn(run, data, device, checkpoint_every)


def _solve(run: Run, data: Transitions) -> dict[str, Any]:
    from ccvf.cli_tabular import counts_of, save_values, solver_of

    config = run.settings.config
    counts = counts_of(data, config)
    began = time.perf_counter()
    with progress().status("solving") as status:
        values = solver_of(config).fit(counts, progress=lambda done, of: status.update(f"solving: {done} of {of}"))
    values.unwrap()
    run.begin({"environment": environment("cpu")})
    save_values(run.folder / VALUES, values)
    facts = {
        "pairs_seen": int(counts.seen.sum()), "pairs": int(counts.visits.size), "alpha": values.alpha,
        "sweeps": values.sweeps, "status": values.status, "error": values.error,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    run.end(facts)
    return facts


def _learn(run: Run, data: Transitions, device: str, checkpoint_every: int) -> dict[str, Any]:
    from ccvf.saving import load_learner, save_learner
    from ccvf.training import check_fit, train

    settings, checkpoint = run.settings, run.folder / CHECKPOINT
    ahead = _looking_ahead(data, settings)
    new = not (run.folder / CONFIG).is_file()
    resumed = checkpoint.is_file() and not new
    learner = load_learner(checkpoint, device=device)[0] if resumed else _fresh(data, settings, device)
    check_fit(learner, ahead)
    run.begin({"environment": environment(device)})
    every = max(1, min(1000, settings.updates // _RECORDS))
    try:
        history = train(
            learner, ahead, updates=settings.updates, batch_size=settings.batch,
            generator=Streams(settings.seed, "ccvf.cli").torch("batches"), record_every=every, checkpoint=checkpoint,
            checkpoint_every=checkpoint_every, resume=resumed, on_record=_lines(settings.updates),
            progress=progress().is_terminal,
        )  # fmt: skip
    except BaseException as error:
        if new and not checkpoint.is_file():
            (run.folder / CONFIG).unlink()  # nothing to go on from
        elif isinstance(error, KeyboardInterrupt):
            progress().print("what was learnt is kept; the same command with --resume goes on from there")
        raise
    save_learner(run.folder / LEARNER, learner, {"settings": settings.plain(), "log": run.log})
    run.end(asdict(history))
    last = history.metrics[-1] if history.metrics else {}
    parameters = sum(parameter.numel() for parameter in learner.online.parameters())
    return {"parameters": parameters, "seconds": history.seconds, "last": last, "bonus": settings.penalty}


def _looking_ahead(data: Transitions, settings: Settings) -> Transitions:
    if settings.n_step == 1:
        return data
    from ccvf.multi_step import n_step

    if "subsample" in data.metadata and data.metadata["subsample"]["by"] == "transitions":
        raise ValueError("--n-step needs the steps that follow, and of this log single transitions were drawn: draw "
                         "episodes (ccvf collect --by episodes), or leave --n-step out")  # fmt: skip
    return n_step(data, settings.n_step, settings.gamma)


def _fresh(data: Transitions, settings: Settings, device: str) -> Any:
    """A learner with new weights, and its bonus fitted."""
    from ccvf.saving import KINDS

    options: dict[str, Any] = {}
    tree = Streams(settings.seed, "ccvf.cli")
    config = settings.learner_config()
    if settings.method == "ccvl" and settings.penalty != "cql":
        options["bonus"] = _bonus(data, settings, device, tree)
    weights = tree.torch("weights")
    return KINDS[settings.method][0](
        data.observation_shape, data.n_actions, config, generator=weights, device=device, **options
    )


def _bonus(data: Transitions, settings: Settings, device: str, tree: Streams) -> Any:
    import inspect

    from ccvf.bonuses import BONUSES, make_bonus

    console, wanted = progress(), {"device": device, "n_states": settings.config["n_states"]}
    wanted["progress"] = console.is_terminal
    known = inspect.signature(BONUSES[settings.penalty]).parameters
    given = {name: value for name, value in wanted.items() if name in known}
    if not console.is_terminal:
        console.print(f"fitting the bonus {settings.penalty!r} on {len(data)} transitions")
    return make_bonus(settings.penalty, **given).fit(data, tree.torch("bonus"))


def _lines(updates: int) -> Any:
    """Where there is no terminal: a line now and then, and at the end."""
    console, last = progress(), [-math.inf]

    def tell(done: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if console.is_terminal or (now - last[0] < _EVERY and done < updates):
            return
        last[0] = now
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        console.print(f"update {done} of {updates}: {shown}", soft_wrap=True)

    return tell
