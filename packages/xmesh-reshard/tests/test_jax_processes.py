"""Two JAX processes of three devices each, over the gloo collectives: one start for all tests."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CASES = [
    "types",
    "inputs stay",
    "overlapping, scalar, empty",
    "once more",
    "same devices",
    "same devices, planned",
    "elsewhere",
    "one to all",
    "random",
    "cast",
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jax")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("jax_two_processes.py")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))} | {"OMP_NUM_THREADS": "1"}
    files = [folder / f"{index}.json" for index in range(2)]
    logs = [folder / f"{index}.log" for index in range(2)]
    started = []
    try:
        for index in range(2):
            with logs[index].open("w") as log:
                command = [sys.executable, script, str(port), str(index), files[index]]
                started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        codes = [process.wait(timeout=110) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert codes == [0, 0], [log.read_text()[-3000:] for log in logs]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize("case", CASES)
def test_every_shard_is_right_bit_for_bit_in_both(findings, case):
    assert [found[case] for found in findings] == [True, True]


def test_device_put_could_not_have_done_it(findings):
    for found in findings:
        assert found["device_put"].startswith(("ValueError", "NotImplementedError", "RuntimeError"))


@pytest.mark.parametrize("case", ["other topology", "other shape"])
def test_different_plans_are_refused_in_both(findings, case):
    for found in findings:
        assert found[case].startswith("PlanMismatchError")
        assert "no byte was moved" in found[case]


def test_a_process_that_does_not_come_is_missed(findings):
    assert findings[0]["alone"].startswith("PeerLostError: process 1 has not come")
