from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import gpu_run
import pytest

TESTS = """\
import pytest
import {module}

@pytest.mark.gpu
def test_good(): assert {module}.VALUE == 1

@pytest.mark.gpu
def test_bad(): assert {module}.VALUE == {value}

@pytest.mark.gpu
def test_skipped(): pytest.skip("no second device")

def test_elsewhere(): raise AssertionError("not for a device")
"""
BENCH = """\
'''A benchmark.'''
import argparse, json, pathlib
DEVICES = ("cpu", "cuda")
parser = argparse.ArgumentParser()
parser.add_argument("--device")
parser.add_argument("--out", type=pathlib.Path)
arguments = parser.parse_args()
arguments.out.write_text(json.dumps({"schema": "SCHEMA", "device": arguments.device}))
"""
NO_PLUGIN = ("-W", "ignore::pytest.PytestUnknownMarkWarning")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "find_device", lambda: "Test device")


@pytest.fixture
def device_package(workspace: Path, make_package):
    """Return a function that writes a package with device tests."""

    def make(folder: str, *, value: int = 1, source: str = "VALUE = 1\n") -> Path:
        package = make_package(folder)
        module = folder.replace("-", "_")
        (package / "src" / module / "__init__.py").write_text(source, encoding="utf-8")
        (package / "tests" / "gpu").mkdir(parents=True)
        tests = TESTS.format(module=module, value=value)
        (package / "tests" / "gpu" / "test_device.py").write_text(tests, encoding="utf-8")
        (package / "tests" / "test_other.py").write_text("import a_module_that_is_not_here\n", encoding="utf-8")
        return package

    return make


def test_only_the_standard_library_is_needed() -> None:
    tree = ast.parse(Path(gpu_run.__file__).read_text("utf-8"))
    imported = {
        name.split(".")[0]
        for node in tree.body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


def test_without_a_device_the_status_is_3(workspace: Path, device_package, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_run, "find_device", lambda: None)
    device_package("gact")
    assert gpu_run.run(workspace, [], None) == 3
    assert "neither torch nor jax finds a CUDA device" in capsys.readouterr().err


def test_marked_tests_are_counted(workspace: Path, device_package, device, capfd) -> None:
    device_package("gact")
    device_package("alpa-lite", value=2)
    assert gpu_run.run(workspace, ["gact"], None, NO_PLUGIN) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "2 passed, 0 failed, 1 skipped"
    assert gpu_run.run(workspace, [], None, NO_PLUGIN) == 1
    output = capfd.readouterr().out
    assert output.splitlines()[-1] == "3 passed, 1 failed, 2 skipped"
    assert output.startswith("device: Test device")


def test_the_plugin_skips_where_the_framework_finds_no_device(workspace: Path, device_package, device, capfd) -> None:
    device_package("gact")
    source = Path(__file__).resolve().parents[2] / "packages" / "common-core" / "src"
    (workspace / "packages" / "common-core").mkdir()
    (workspace / "packages" / "common-core" / "src").symlink_to(source)
    gpu_run.run(workspace, ["gact"], None)
    out = capfd.readouterr().out
    assert "unknown mark" not in out.lower()
    assert out.splitlines()[-1] in {"0 passed, 0 failed, 3 skipped", "2 passed, 0 failed, 1 skipped"}


def test_a_package_that_lacks_a_module_is_reported(workspace: Path, device_package, device, capfd) -> None:
    device_package("gact", source="import a_module_that_is_not_here\n")
    device_package("poet")
    assert gpu_run.run(workspace, [], None, NO_PLUGIN) == 1
    lines = capfd.readouterr().out.splitlines()
    assert "gact: cannot run here: ModuleNotFoundError: No module named 'a_module_that_is_not_here'" in lines
    assert lines[-1] == "2 passed, 0 failed, 1 skipped"


def test_nothing_run_is_not_a_success(workspace: Path, make_package, device, capfd) -> None:
    make_package("gact")
    assert gpu_run.run(workspace, [], None, NO_PLUGIN) == 1
    assert "gact: nothing for a device" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("schema", "status", "last"),
    [
        ("repertory.benchmark/1", 0, "1 passed, 0 failed"),
        ("another/1", 1, "0 passed, 1 failed"),
    ],
)
def test_benchmarks_write_their_rows(
    workspace: Path, make_package, device, capfd, tmp_path: Path, schema: str, status: int, last: str
) -> None:
    folder = make_package("gact") / "benchmarks"
    folder.mkdir()
    (folder / "bench_speed.py").write_text(BENCH.replace("SCHEMA", schema), encoding="utf-8")
    assert gpu_run.run(workspace, [], tmp_path / "out", NO_PLUGIN) == status
    assert json.loads((tmp_path / "out" / "gact-speed.json").read_text("utf-8"))["device"] == "cuda"
    assert capfd.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ('DEVICES = ("cpu", "cuda")', True),
        ('DEVICES: tuple[str, ...] = ("cuda",)', True),
        ('"""Not on cuda."""\nDEVICES = ("cpu",)', False),
        ('"""Time it on CPU and CUDA."""', True),
        ('"""Time it."""\nOTHER = ("cuda",)', False),
        ("import a_module_that_is_not_here", False),
    ],
)
def test_benchmarks_for_a_device_are_found_without_import(tmp_path: Path, source: str, wanted: bool) -> None:
    file = tmp_path / "bench.py"
    file.write_text(source, encoding="utf-8")
    assert gpu_run.wants_cuda(file) is wanted


def test_an_unknown_package_is_refused(workspace: Path, device_package, device, capsys) -> None:
    device_package("gact")
    assert gpu_run.run(workspace, ["poet"], None) == 2
    assert "no package is called poet; there are gact" in capsys.readouterr().err
