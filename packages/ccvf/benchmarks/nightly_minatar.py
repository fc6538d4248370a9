"""Offline learning on MinAtar: CCVL, adapting and at fixed confidences, against CQL at fixed weights, REM and DQN.

    python nightly_minatar.py                    the whole comparison: 3 games, 3 seeds, 4 sizes of log; hours
    python nightly_minatar.py --seeds 1 --fractions 0.01 0.1 --updates 8000
    python nightly_minatar.py --quick            toy sizes: shows that it runs

Every training is kept in ``--folder`` and not run again; the tables are made by ``summarise_minatar.py``.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import harness
from minatar_runs import METHODS, Setting, make_log, train_and_play
from summarise_minatar import summarise

from common_core.engine import Event, ResultStore, Task, run
from common_core.records import environment, write_json_atomic

SCHEMA = "repertory.ccvf.minatar/1"


def tasks_of(settings: Sequence[Setting]) -> tuple[list[Task], list[Task]]:
    """Logs to make, and trainings to run on them."""
    logs = {(s.game, s.seed, s.frames) for s in settings}
    making = [
        Task(f"log/{game}/{seed}", make_log, {"game": game, "seed": seed, "frames": frames})
        for game, seed, frames in sorted(logs)
    ]
    return making, [Task(setting.key, train_and_play, asdict(setting)) for setting in settings]


def said(event: Event) -> None:
    """A line for every end."""
    if event.kind == "ended" and event.result is not None and not event.result.resumed:
        what = event.result.value if event.result.status == "done" else event.result.reason
        print(event.key, event.result.status, what, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has not been run, and write one file with all of it."""
    own = harness.parser("minatar")
    own.add_argument("--games", nargs="+", default=["breakout", "asterix", "space_invaders"])
    own.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    own.add_argument("--fractions", nargs="+", type=float, default=[0.01, 0.05, 0.1, 1.0])
    own.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    own.add_argument("--frames", type=int, default=200_000)
    own.add_argument("--updates", type=int, default=50_000)
    own.add_argument("--episodes", type=int, default=64)
    own.add_argument("--jobs", type=int, default=2)
    own.add_argument("--folder", type=Path, default=Path("minatar-runs"), help="where finished trainings are kept")
    args = harness.options("minatar", argv, own)
    if args.quick:
        args.games, args.seeds, args.fractions = ["breakout"], 1, [0.5]
        args.frames, args.updates, args.episodes = 3000, 50, 16
    settings = [
        Setting(game, seed, fraction, method, args.frames, args.updates, args.episodes)
        for seed in range(args.seeds)
        for fraction in args.fractions
        for game in args.games
        for method in args.methods
    ]
    store = ResultStore(args.folder)
    making, training = tasks_of(settings)
    logs = run(making, jobs=args.jobs, store=store, watch=said)
    runs = run(training, jobs=args.jobs, store=store, watch=said)
    failed = [result for result in (*logs.values(), *runs.values()) if result.status != "done"]
    for result in failed:
        print(f"{result.key}: {result.reason}\n{result.log}", file=sys.stderr)
    found = {
        "schema": SCHEMA,
        "environment": environment(),
        "logs": {key.removeprefix("log/"): result.value for key, result in logs.items() if result.status == "done"},
        "runs": {key: result.value for key, result in runs.items() if result.status == "done"},
    }
    write_json_atomic(args.out, found)
    print(summarise(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
