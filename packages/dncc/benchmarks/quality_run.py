"""One training of the quality benchmark, the choice of the learning rate, and a store of what has been run."""

import hashlib
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from quality_data import TASKS, Task, data_of
from quality_methods import METHODS, Method

from common_core.records import RecordError, read_json, write_json_atomic
from dncc.aggregation import aggregate_log_proba, log_softmax
from dncc.diversity import disagreement, mean_over_pairs
from dncc.evaluating import decomposed, predict_logits
from dncc.report_scores import scores
from dncc.training import fit

SCHEMA = "repertory.dncc.quality/1"
TUNING_SEEDS = (1000, 1001)  # splits on which learning rates (and the DNCC variant that stands for all) are chosen


@dataclass(frozen=True)
class Job:
    """A training."""

    task: str
    method: str
    rate: float
    seed: int
    epochs: int  # differs from the task's only in a quick run

    @property
    def key(self) -> str:
        return f"{self.task}/{self.method}/{self.rate:g}/{self.seed}/{self.epochs}"


def train_and_judge(job: Job) -> dict[str, float]:
    """Train once, take the epoch of the least validation loss, and judge on the test part."""
    torch.set_num_threads(1)
    task, method = replace(TASKS[job.task], epochs=job.epochs), METHODS[job.method]
    data = data_of(job.task, job.seed)
    parts = {name: _pair(data, name) for name in ("train", "val", "test")}
    start = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        model, loss = method.build(task), method.loss()
        if method.own_training:
            model.train_itself(parts["train"], parts["val"], job.rate, job.seed)
            aggregate, lam = model.aggregate, math.nan
        else:
            aggregate, lam = loss.aggregate, _fitted(model, loss, parts, task, job)
        seconds = time.perf_counter() - start
        logits = {name: predict_logits(model, part[0]) for name, part in parts.items()}
    found = {name: decomposed(logits[name], part[1], aggregate).tolist() for name, part in parts.items()}
    log_p, target = log_softmax(logits["test"].double()), parts["test"][1]
    log_q = aggregate_log_proba(log_p, aggregate)
    judged = scores(log_q, target)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "members": len(log_p),
        "nll": judged.nll,
        "accuracy": judged.accuracy,
        "ece": judged.ece,
        "brier": judged.brier,
        "aurc": judged.aurc,
        "member_nll": found["test"][0],
        "ambiguity": found["test"][2],
        "train_nll": found["train"][1],
        "train_ambiguity": found["train"][2],
        "val_nll": found["val"][1],
        "disagreement": mean_over_pairs(disagreement(log_p.argmax(-1))) if len(log_p) > 1 else 0.0,
        "lambda_at_end": lam,
        "seconds": seconds,
    }


def _pair(data: Any, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(getattr(data, f"x_{part}")), torch.from_numpy(getattr(data, f"y_{part}"))


def _fitted(model: torch.nn.Module, loss: Any, parts: Mapping[str, Any], task: Task, job: Job) -> float:
    """Train with `fit`; lambda at the end."""
    history = fit(
        model, loss, parts["train"], val=parts["val"], epochs=task.epochs, patience=task.epochs, lr=job.rate,
        batch_size=task.batch_size, weight_decay=task.weight_decay, generator=torch.Generator().manual_seed(job.seed),
    )  # fmt: skip
    return history.epochs[-1].lam


class Store:
    """A file for every training that has been run with the code as it is."""

    def __init__(self, folder: Path) -> None:
        sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("quality_[dmpr]*.py"))]
        self.folder = folder / hashlib.sha256(b"".join(sources)).hexdigest()[:12]

    def path(self, job: Job) -> Path:
        return self.folder / f"{hashlib.sha256(job.key.encode()).hexdigest()[:24]}.json"

    def get(self, job: Job) -> dict[str, float] | None:
        """What a training gave, or None."""
        try:
            data = read_json(self.path(job), SCHEMA)
        except RecordError:
            return None
        return {name: float(value) for name, value in data["found"].items()} if data["job"] == asdict(job) else None

    def put(self, job: Job, found: Mapping[str, float]) -> None:
        """Keep what a training gave."""
        write_json_atomic(self.path(job), {"schema": SCHEMA, "job": asdict(job), "found": dict(found)})


def run_all(
    jobs: Iterable[Job], store: Store, workers: int, said: Callable[[str], None]
) -> dict[Job, dict[str, float]]:
    """Run what is not in the store yet, in processes of their own; every result is kept at once."""
    jobs = list(dict.fromkeys(jobs))
    results = {job: known for job in jobs if (known := store.get(job)) is not None}
    left = [job for job in jobs if job not in results]
    said(f"{len(jobs)} trainings, {len(results)} known")
    start, done = time.perf_counter(), 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(train_and_judge, job): job for job in left}
        try:
            while waiting:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    job = waiting.pop(future)
                    results[job] = future.result()
                    store.put(job, results[job])
                    done += 1
                    if done % 50 == 0 or not waiting:
                        spent = time.perf_counter() - start
                        said(f"{done} of {len(left)} in {spent:.0f} s, about {spent / done * len(waiting):.0f} s to go")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def tuning_seeds(task: Task, method: Method) -> tuple[int, ...]:
    """Both; one for whole networks, which cost four times as much, and for the larger data set."""
    return TUNING_SEEDS[:1] if method.family == "networks" or task.data == "mnist5k" else TUNING_SEEDS


def tuning_jobs(task: Task, method: Method, epochs: int) -> list[Job]:
    """All learning rates on the tuning seeds."""
    return [
        Job(task.name, method.name, rate, seed, epochs) for rate in task.rates for seed in tuning_seeds(task, method)
    ]


def best_rate(task: Task, method: Method, epochs: int, results: Mapping[Job, Mapping[str, float]]) -> float:
    """The learning rate of the least validation loss over the tuning seeds."""

    def loss(rate: float) -> float:
        jobs = [Job(task.name, method.name, rate, seed, epochs) for seed in tuning_seeds(task, method)]
        mean = sum(results[job]["val_nll"] for job in jobs) / len(jobs)
        return mean if math.isfinite(mean) else math.inf

    return min(task.rates, key=loss)
