"""The one entry to both engines."""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from common_core.engine._local import run_local
from common_core.engine._ray import run_ray
from common_core.engine._store import ResultStore
from common_core.engine._task import Event, Task, TaskResult
from common_core.seeding import streams


def sweep(
    function: Callable[..., Any], configs: Mapping[str, Mapping[str, Any]], seed: int, **options: Any
) -> list[Task]:
    """One task for each configuration, each with its own ``seed`` argument derived from one seed and the key.

    Args:
        function: Takes the configuration's entries and ``seed`` as keyword arguments.
        configs: Key to keyword arguments.
        seed: The sweep's seed; adding or removing a configuration changes no other's seed.
        **options: Further fields of :class:`Task`, the same for all.

    Returns:
        The tasks, in the order of ``configs``.
    """
    return [
        Task(key, function, {**config, "seed": streams(seed, "sweep").env(key)}, **options)
        for key, config in configs.items()
    ]


def run(
    tasks: Iterable[Task],
    *,
    jobs: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    store: ResultStore | None = None,
    watch: Callable[[Event], None] | None = None,
) -> dict[str, TaskResult]:
    """Run independent tasks and return how each ended.

    Args:
        tasks: What to run; keys are unique.
        jobs: Processes at a time; the number of cores by default.
        engine: ``local`` processes or a ``ray`` cluster.
        address: An existing Ray cluster; only with ``engine="ray"``.
        store: Where finished tasks are kept at once, and found again by a later run.
        watch: Called in this process at every start, progress report and end.

    Returns:
        Key to result, in the order of ``tasks``.

    Raises:
        ValueError: Duplicate keys, ``jobs`` < 1, an unknown engine, or an address without Ray.
        KeyboardInterrupt: Ctrl-C; every process is stopped first, and the store holds what was finished.
    """
    tasks = list(tasks)
    jobs = check_run(tasks, jobs, engine, address)
    watch = watch or (lambda event: None)
    by_key = {task.key: task for task in tasks}
    results: dict[str, TaskResult] = {}

    def ended(result: TaskResult) -> None:
        results[result.key] = result
        watch(Event(result.key, "ended", result=result))

    for task in tasks:
        if store is not None and (known := store.get(task)) is not None:
            ended(known)
    left = [task for task in tasks if task.key not in results]
    events = run_local(left, jobs) if engine == "local" else run_ray(left, jobs, address)
    try:
        for event in events:
            if event.result is None:
                watch(event)
                continue
            if store is not None:
                store.put(by_key[event.key], event.result)
            ended(event.result)
    except KeyboardInterrupt:
        events.close()
        for task in tasks:
            if task.key not in results:
                ended(TaskResult(task.key, "cancelled", reason="the run was interrupted"))
        raise
    finally:
        events.close()
    return {task.key: results[task.key] for task in tasks}


def check_run(tasks: Sequence[Task], jobs: int | None, engine: str, address: str | None) -> int:
    """Refuse what :func:`run` would refuse, before anything is written or started.

    Args:
        tasks: What is to be run.
        jobs: Processes at a time, or None.
        engine: Name of the engine.
        address: An existing Ray cluster, or None.

    Returns:
        Processes at a time; the number of cores if it was None.

    Raises:
        ValueError: See :func:`run`.
        ImportError: The Ray engine is asked for and Ray is missing.
    """
    twice = sorted(key for key, number in Counter(task.key for task in tasks).items() if number > 1)
    if twice:
        raise ValueError(f"duplicate task keys: {', '.join(twice)}; give every task its own key")
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; give 1 or more")
    if engine not in ("local", "ray"):
        raise ValueError(f"engine is {engine!r}; give 'local' or 'ray'")
    if address is not None and engine != "ray":
        raise ValueError(f"the address {address!r} is of a Ray cluster: choose the engine 'ray' with it")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ImportError("the Ray engine needs Ray: install repertory-common-core[ray]")
    return jobs
