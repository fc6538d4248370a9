import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from common_core.engine import Event, ResultStore, Task, report_progress, run, sweep

MODULE = """
import os, signal, subprocess, sys, time

def square(x):
    return x * x

def draw(seed):
    import numpy as np
    return float(np.random.default_rng(seed).standard_normal())

def fail(text):
    print("words before the end")
    raise ValueError(text)

def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)

def out_of_memory():
    os.kill(os.getpid(), signal.SIGKILL)

def leave():
    os._exit(7)

def sleep(seconds):
    time.sleep(seconds)
    return "slept"

def sleep_with_a_grandchild(path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(path, "w") as file:
        file.write(str(child.pid))
    time.sleep(60)

def crash_once(path):
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"

def unpicklable():
    return lambda: None

def allocate(mebibytes):
    block = bytearray(mebibytes << 20)
    for k in range(0, len(block), 4096):
        block[k] = 1
    return len(block)

def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def count(path):
    with open(path, "a") as file:
        file.write("x")
    return 1

def report():
    from common_core.engine import report_progress
    report_progress(1, 4, "first quarter")
    time.sleep(0.3)
    report_progress(4, 4, "all")
    time.sleep(0.2)

def threads():
    return os.environ["OMP_NUM_THREADS"]
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A module that both this process and the tasks' processes can import."""
    name = f"jobs_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(name)
    yield module
    del sys.modules[name]


def gone(pid: int) -> bool:
    """Whether a process has ended (or waits as a zombie for its reaper)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return status.strip().startswith("Z") or not status.strip()


def test_results_come_in_the_order_of_the_tasks(jobs):
    results = run([Task(str(k), jobs.square, {"x": k}) for k in (3, 1, 2)], jobs=2)
    assert list(results) == ["3", "1", "2"]
    assert [result.value for result in results.values()] == [9, 1, 4]
    assert all(result.status == "done" and result.attempts == 1 for result in results.values())


def test_every_way_to_die_is_told_and_costs_no_other_task(jobs):
    tasks = [
        Task("exception", jobs.fail, {"text": "no such luck"}),
        Task("segfault", jobs.segfault),
        Task("oom", jobs.out_of_memory),
        Task("exit", jobs.leave),
        Task("unpicklable", jobs.unpicklable),
        Task("timeout", jobs.sleep, {"seconds": 60}, timeout=0.5),
        Task("fine", jobs.square, {"x": 2}),
    ]
    results = run(tasks, jobs=2)
    assert {key: result.status for key, result in results.items()} == {
        "exception": "failed", "segfault": "crashed", "oom": "crashed", "exit": "crashed", "unpicklable": "failed",
        "timeout": "timeout", "fine": "done",
    }  # fmt: skip
    assert results["exception"].reason == "ValueError: no such luck"
    assert "words before the end" in results["exception"].log
    assert "in fail" in results["exception"].log
    assert "SIGSEGV" in results["segfault"].reason
    assert "out-of-memory" in results["oom"].reason
    assert "exit status 7" in results["exit"].reason
    assert "cannot be sent" in results["unpicklable"].reason
    assert "0.5 s" in results["timeout"].reason


def test_a_timeout_takes_the_whole_process_group(jobs, tmp_path):
    path = tmp_path / "pid"
    results = run([Task("t", jobs.sleep_with_a_grandchild, {"path": str(path)}, timeout=3)])
    assert results["t"].status == "timeout"
    assert gone(int(path.read_text()))


def test_a_crash_is_tried_again_and_an_exception_is_not(jobs, tmp_path):
    tasks = [
        Task("crash", jobs.crash_once, {"path": str(tmp_path / "once")}, retries=1),
        Task("exception", jobs.fail, {"text": "again"}, retries=3),
    ]
    results = run(tasks, jobs=1)
    assert results["crash"].value == "second time"
    assert results["crash"].attempts == 2
    assert results["exception"].attempts == 1


def test_memory_and_cpu_time_are_those_of_the_task(jobs):
    results = run(
        [Task("small", jobs.square, {"x": 1}), Task("large", jobs.allocate, {"mebibytes": 200}),
         Task("busy", jobs.work, {"seconds": 0.5})], jobs=1,
    )  # fmt: skip
    grown = results["large"].peak_rss_bytes - results["small"].peak_rss_bytes
    assert 190 << 20 < grown < 260 << 20
    assert results["busy"].cpu_s - results["small"].cpu_s > 0.3
    assert results["large"].wall_s > 0


def most_at_a_time(tasks: list[Task], jobs: int) -> int:
    """The largest number of tasks that ran together."""
    running, most = set(), 0

    def watch(event: Event) -> None:
        nonlocal most
        running.add(event.key) if event.kind == "started" else running.discard(event.key)
        most = max(most, len(running))

    run(tasks, jobs=jobs, watch=watch)
    return most


def test_at_most_jobs_processes_run_at_a_time(jobs):
    assert most_at_a_time([Task(str(k), jobs.sleep, {"seconds": 0.2}) for k in range(5)], jobs=2) == 2


def test_tasks_on_a_device_run_one_at_a_time(jobs):
    assert most_at_a_time([Task(str(k), jobs.sleep, {"seconds": 0.1}, num_gpus=1) for k in range(3)], jobs=3) == 1


def test_progress_reaches_the_watcher(jobs):
    seen = []
    run([Task("r", jobs.report)], watch=seen.append)
    assert [(event.fraction, event.note) for event in seen if event.kind == "progress"] == [
        (0.25, "first quarter"),
        (1.0, "all"),
    ]
    report_progress(1, 2)  # outside a task it does nothing


def test_threads_follow_what_the_task_asks_for(jobs, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    results = run([Task("one", jobs.threads), Task("two", jobs.threads, num_cpus=2)])
    assert [result.value for result in results.values()] == ["1", "2"]


def test_a_store_is_read_only_for_the_same_call(jobs, tmp_path):
    store, path = ResultStore(tmp_path / "store"), str(tmp_path / "count")
    first = run([Task("a", jobs.count, {"path": path}), Task("b", jobs.fail, {"text": "no"})], store=store)
    again = run([Task("a", jobs.count, {"path": path}), Task("b", jobs.fail, {"text": "no"})], store=store)
    assert not first["a"].resumed
    assert again["a"].resumed
    assert again["a"].value == 1
    assert again["b"].status == "failed"
    assert not again["b"].resumed
    assert len((tmp_path / "count").read_text()) == 1
    other = str(tmp_path / "other")
    assert not run([Task("a", jobs.count, {"path": other})], store=store)["a"].resumed


def test_interruption_keeps_what_is_done_and_leaves_no_process(tmp_path):
    (tmp_path / "slow_jobs.py").write_text(MODULE)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import signal
        import sys
        import slow_jobs as jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
        from common_core.engine import ResultStore, Task, run
        store = ResultStore("store")
        tasks = [Task("quick", jobs.square, {"x": 3}), Task("slow", jobs.sleep_with_a_grandchild, {"path": "pid"}),
                 Task("later", jobs.square, {"x": 4})]
        try:
            show = lambda e: print(e.key, e.kind, e.result and e.result.status, flush=True)
            run(tasks, jobs=1, store=store, watch=show)
        except KeyboardInterrupt:
            sys.exit(42)
        """)
    )
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    grandchild = int((tmp_path / "pid").read_text())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 42
    assert "quick ended done" in output
    assert "slow ended cancelled" in output
    assert "later ended cancelled" in output
    assert [path.name.split("-")[0] for path in (tmp_path / "store").iterdir()] == ["quick"]
    assert gone(grandchild)


def test_tasks_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "slow_jobs.py").write_text(MODULE)
    code = "import slow_jobs as j; from common_core.engine import Task, run; "
    code += "run([Task('s', j.sleep_with_a_grandchild, {'path': 'pid'})])"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    grandchild = int((tmp_path / "pid").read_text())
    while not gone(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(grandchild)


def test_a_sweep_gives_every_configuration_its_own_lasting_seed(jobs):
    wide = sweep(jobs.draw, {"a": {}, "b": {}, "c": {}}, seed=5)
    narrow = sweep(jobs.draw, {"b": {}}, seed=5)
    seeds = {task.key: task.kwargs["seed"] for task in wide}
    assert len(set(seeds.values())) == 3
    assert narrow[0].kwargs["seed"] == seeds["b"]
    assert sweep(jobs.draw, {"b": {}}, seed=6)[0].kwargs["seed"] != seeds["b"]


def test_what_cannot_be_run_is_refused(jobs):
    with pytest.raises(ValueError, match="module level"):
        Task("local", lambda: None)
    with pytest.raises(ValueError, match="timeout"):
        Task("t", jobs.square, timeout=0)
    with pytest.raises(ValueError, match="duplicate task keys: a"):
        run([Task("a", jobs.square), Task("a", jobs.square)])
    with pytest.raises(ValueError, match="jobs is 0"):
        run([Task("a", jobs.square)], jobs=0)
    with pytest.raises(ValueError, match="choose the engine 'ray'"):
        run([Task("a", jobs.square)], address="auto")
