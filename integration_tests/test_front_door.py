"""The front door: the commands that a newcomer types, in an environment that holds every package."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = [tomllib.loads(path.read_text())["project"] for path in sorted(ROOT.glob("packages/*/pyproject.toml"))]
CARRYING = [project for project in PROJECTS if "repertory.claims" in project.get("entry-points", {})]
HEAVY = ("torch", "jax", "ray", "matplotlib", "sklearn", "tyro", "pandas")


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a console script of this environment."""
    script, *rest = words
    return subprocess.run([str(Path(sys.executable).with_name(script)), *rest], cwd=cwd, capture_output=True, text=True)


def test_every_package_lists_its_claims(tmp_path):
    done = command("repertory", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = {claim["id"].split(".")[0] for claim in json.loads(done.stdout)["claims"]}
    assert listed == {name for project in CARRYING for name in project["entry-points"]["repertory.claims"]}


def test_every_claim_says_where_it_is_from():
    from common_core.claims import discover

    for found in discover().values():
        assert found.claim.statement.endswith("."), found.claim.id
        assert {"quick", "full"} & set(found.claim.scales), found.claim.id  # a claim on training may be full only


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project["name"])
def test_importing_a_package_brings_no_framework(project, tmp_path):
    points = importlib.metadata.entry_points(group="repertory.claims")
    modules = [f"{point.module}" for point in points if point.dist and point.dist.name == project["name"]]
    name = project["name"].removeprefix("repertory-").replace("-", "_")
    code = f"import sys, {', '.join([name, *modules])}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    needed = {requirement.split(">")[0].split("[")[0] for requirement in project["dependencies"]}
    assert set(done.stdout.split()) <= needed


@pytest.mark.parametrize("project", CARRYING, ids=lambda project: project["name"])
def test_every_package_has_a_demo(project, tmp_path):
    (script,) = project["scripts"]
    done = command(script, "demo", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_a_run_writes_a_report_and_a_second_one_with_the_same_seed_moves_nothing(tmp_path):
    for folder in ("first", "second"):
        done = command("repertory", "run", "hieropo.cold-start", "--seed", "3", "--out", folder, cwd=tmp_path)
        assert done.returncode in (0, 1), done.stderr
        assert "could not run" not in done.stdout
        assert "<svg" in (tmp_path / folder / "report.html").read_text()
    done = command("repertory", "compare", "first", "second", "--json", cwd=tmp_path)
    assert done.returncode == 0
    moves = json.loads(done.stdout)["moves"]
    assert moves
    assert not any(move["moved"] for move in moves)
