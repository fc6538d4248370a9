"""From trainings to tables: every method's figures, who is dominated, and the verdict on each task."""

from collections.abc import Mapping, Sequence
from typing import Any

import harness
import numpy as np
from quality_data import Task
from quality_methods import METHODS, methods_of
from quality_peers import BUDGET
from quality_run import Job, best_rate, tuning_seeds

from common_core.stats import Estimate

FIGURES = (
    "accuracy", "ece", "brier", "aurc", "member_nll", "disagreement", "ambiguity", "train_ambiguity", "train_nll",
    "val_nll", "lambda_at_end",
)  # fmt: skip
_OTHERS = ("peer", "endpoint")
Results = Mapping[Job, Mapping[str, float]]


class TaskTable:
    """All methods on one task, at the learning rates that tuning chose."""

    def __init__(self, task: Task, epochs: int, seeds: Sequence[int], results: Results) -> None:
        self.task, self.seeds = task, seeds
        self.found: dict[str, list[Mapping[str, float]]] = {}
        self.rate: dict[str, float] = {}
        self.tuned: dict[str, list[float]] = {}
        for method in methods_of(task):
            name = method.name
            self.rate[name] = best_rate(task, method, epochs, results)
            jobs = [Job(task.name, name, self.rate[name], seed, epochs) for seed in tuning_seeds(task, method)]
            self.tuned[name] = [results[job]["val_nll"] for job in jobs]
            self.found[name] = [results[Job(task.name, name, self.rate[name], seed, epochs)] for seed in seeds]

    def values(self, name: str, figure: str = "nll") -> list[float]:
        """A figure of a method, seed by seed."""
        return [found[figure] for found in self.found[name]]

    def mean(self, name: str, figure: str = "nll") -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values(name, figure)))

    def size(self, name: str) -> float:
        """Parameters as a multiple of the single network's."""
        return self.mean(name, "parameters") / self.mean("single", "parameters")

    def within(self, *families: str) -> list[str]:
        """Methods of these families within the budget of parameters."""
        return [name for name in self.found if METHODS[name].family in families and self.size(name) <= BUDGET]

    def validation(self, name: str) -> float:
        """Mean validation loss over all seeds, the tuning ones too."""
        return float(np.mean([*self.tuned[name], *self.values(name, "val_nll")]))

    def chosen(self, *families: str) -> str:
        """The method of these families within the budget that stands for them: the least validation loss."""
        return min(self.within(*families), key=self.validation)

    def rival(self) -> str:
        """The best of everything else within the budget, chosen by its test loss: the hardest to beat."""
        return min(self.within(*_OTHERS), key=self.mean)

    def difference(self, ours: str, theirs: str, figure: str = "nll") -> Estimate:
        """Mean over the seeds of ours - theirs, on the same split and training labels."""
        return harness.mean(np.subtract(self.values(ours, figure), self.values(theirs, figure)).tolist())

    def on_frontier(self, name: str) -> bool:
        """Whether no method with at most as many parameters has a smaller mean NLL."""
        own = self.mean(name, "parameters"), self.mean(name)
        return not any(
            self.mean(other, "parameters") <= own[0] and self.mean(other) < own[1]
            for other in self.found
            if other != name
        )

    def rows(self) -> list[harness.Row]:
        """A row a method: its NLL against the single network's, and everything else beside it."""
        single, rows = self.values("single"), []
        for name in self.found:
            ratio = harness.mean(np.divide(self.values(name), single).tolist())
            extra: dict[str, Any] = {figure: _short(self.mean(name, figure)) for figure in FIGURES}
            extra |= {
                "family": METHODS[name].family,
                "lambda": METHODS[name].lam,
                "members": int(self.mean(name, "members")),
                "parameters": int(self.mean(name, "parameters")),
                "parameters_of_single": round(self.size(name), 3),
                "learning_rate": self.rate[name],
                "validation_nll": _short(self.validation(name)),
                "on_frontier": self.on_frontier(name),
                "nll_by_seed": [_short(value) for value in self.values(name)],
                "seconds": round(self.mean(name, "seconds"), 2),
            }
            own = (harness.mean(self.values(name)), harness.mean(single))
            title = f"{self.task.name}: {name}"
            rows.append(
                harness.row(title, *own, "single network", None if name == "single" else ratio, unit="nats", **extra)
            )
        return rows

    def verdict(self) -> harness.Row:
        """Chosen DNCC variant against the best rival within the budget."""
        ours, theirs, fair = self.chosen("dncc"), self.rival(), self.chosen(*_OTHERS)
        gain = self.difference(ours, theirs)
        best = min(self.within("dncc"), key=self.mean)
        name = f"verdict, {self.task.name}: NLL within {BUDGET:g} x the parameters of one network"
        estimates = harness.mean(self.values(ours)), harness.mean(self.values(theirs))
        ratio = harness.mean(np.divide(self.values(ours), self.values(theirs)).tolist())
        extra = {
            "chosen": ours,
            "difference": gain.value,
            "difference_interval": [gain.low, gain.high],
            "clearly": gain.high is not None and gain.high < 0,
            "clearly_worse": gain.low is not None and gain.low > 0,
            "best_in_hindsight": best,
            "nll_of_best_in_hindsight": _short(self.mean(best)),
            "against_others_chosen_alike": [fair, *_interval(self.difference(ours, fair))],
            "against": {other: _interval(self.difference(ours, other)) for other in self._named()},
        }
        return harness.row(name, *estimates, f"best of all others: {theirs}", ratio, 1.0, unit="nats", **extra)

    def _named(self) -> list[str]:
        """The peers, and the better mode of lambda 0 and of lambda 1."""
        peers = [name for name in self.found if METHODS[name].family == "peer" or METHODS[name].lam is None]
        ends = [[name for name in self.within("endpoint") if METHODS[name].lam == lam] for lam in (0.0, 1.0)]
        whole = [name for name in self.found if METHODS[name].family == "networks" and METHODS[name].lam is not None]
        return [*dict.fromkeys([*peers, *(min(end, key=self.mean) for end in ends if end), *whole])]


def goal_rows(verdicts: Mapping[str, harness.Row]) -> list[harness.Row]:
    """On how many of the three data sets DNCC has the best NLL within the budget, by kind of labels."""
    rows = []
    for kind, noisy in (("right labels", False), ("20 % wrong labels", True)):
        judged = [row for name, row in verdicts.items() if ("noisy" in name) == noisy]
        if not judged:
            continue
        won, clearly = (float(sum(bool(row[key]) for row in judged)) for key in ("met", "clearly"))
        title = f"goal, {kind}: data sets (of {len(judged)}) on which DNCC has the best NLL within the budget"
        found = harness.row(title, won, None, "all others", None, 2.0, unit="data sets", at_least=True, clearly=clearly)
        rows.append(found)
    return rows


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _interval(estimate: Estimate) -> list[float | None]:
    return [None if value is None else _short(value) for value in (estimate.value, estimate.low, estimate.high)]
