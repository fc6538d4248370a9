import subprocess
import sys

import pytest

HEAVY = ("torch", "jax", "ray", "matplotlib", "tyro", "scipy", "hypothesis", "pytest", "jinja2")


@pytest.mark.parametrize(
    "module", ["common_core", *(f"common_core.{m}" for m in ("devices", "memory", "seeding", "stats", "timing"))]
)
def test_importing_loads_nothing_heavy(module):
    program = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_itself_is_few_modules():
    # Its share of the import time is not asserted, as it varies with the machine; what it may load is.
    program = (
        "import sys, numpy; before = set(sys.modules); import common_core; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    outside = {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)
    assert "common_core" in outside
    assert outside <= {"common_core", "numpy", "rich"}
