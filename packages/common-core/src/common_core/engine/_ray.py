"""Tasks on a Ray cluster (extra ``ray``)."""

import os
import resource
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from common_core.engine._child import call
from common_core.engine._task import Event, Task, TaskResult
from common_core.memory import resident_bytes


def _measured_call(module: str, name: str, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a worker runs: the call, with its wall time, CPU time and peak resident set."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.monotonic()
    answer = call(module, name, kwargs)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (*answer, time.monotonic() - started, cpu, resident_bytes()[1])


def _connect(ray: Any, address: str | None, jobs: int, num_gpus: float) -> None:
    """Join the cluster at ``address``, or start a local one that finds the same modules as this process."""
    if address is not None:
        ray.init(address=address, log_to_driver=False)
        return
    env = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # noqa: PTH109
    ray.init(
        num_cpus=jobs, num_gpus=num_gpus, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": env},
    )  # fmt: skip


def _submit(ray: Any, task: Task) -> Any:
    # One call a worker process: a task's global state ends with it, and its peak memory is its own.
    remote = ray.remote(max_calls=1, max_retries=task.retries)(_measured_call)
    threads = {"env_vars": {"OMP_NUM_THREADS": str(max(1, int(task.num_cpus)))}}
    options = remote.options(num_cpus=task.num_cpus, num_gpus=task.num_gpus, name=task.key, runtime_env=threads)
    return options.remote(*task.reference, dict(task.kwargs))


def _collect(ray: Any, task: Task, reference: Any) -> TaskResult:
    try:
        status, value, reason, log, wall, cpu, peak = ray.get(reference)
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())
        return TaskResult(task.key, "crashed", reason=f"{type(error).__name__}: {text[:500]}", attempts=1)
    return TaskResult(task.key, status, value, reason, log, wall, cpu, peak, attempts=1)


def run_ray(tasks: Sequence[Task], jobs: int, address: str | None = None) -> Generator[Event, None, None]:
    """Run the tasks on Ray; the functions' packages must be installed on every node.

    Args:
        tasks: What to run. Their ``num_cpus`` and ``num_gpus`` are what is asked of the cluster; a timeout counts
            from submission of the task to an idle slot.
        jobs: CPUs of a local cluster, and how many tasks are in flight at a time.
        address: An existing cluster, as ``ray.init`` takes it; None starts one here.

    Yields:
        Events, as they happen; exactly one ``ended`` for each task.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("the Ray engine needs Ray: install repertory-common-core[ray]") from error
    started_here = not ray.is_initialized()
    if started_here:
        _connect(ray, address, jobs, max((task.num_gpus for task in tasks), default=0))
    width = jobs if address is None else len(tasks)
    waiting, active = list(tasks), {}
    try:
        while waiting or active:
            while waiting and len(active) < width:
                task = waiting.pop(0)
                active[_submit(ray, task)] = (task, time.monotonic())
                yield Event(task.key, "started")
            finished, _ = ray.wait(list(active), timeout=0.2)
            for reference in finished:
                task, _ = active.pop(reference)
                yield Event(task.key, "ended", result=_collect(ray, task, reference))
            for reference, (task, started) in list(active.items()):
                if task.timeout is not None and time.monotonic() - started > task.timeout:
                    ray.cancel(reference, force=True)
                    del active[reference]
                    reason = f"stopped after its limit of {task.timeout:g} s"
                    yield Event(task.key, "ended", result=TaskResult(task.key, "timeout", reason=reason, attempts=1))
    finally:
        for reference in active:
            ray.cancel(reference, force=True)
        if started_here:
            ray.shutdown()
