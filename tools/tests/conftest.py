"""Put the scripts on the path and build small workspaces to check."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PYPROJECT = """\
[project]
name = "{name}"
version = "{version}"
dependencies = [{dependencies}]

[build-system]
requires = ["uv_build>=0.9,<1"]
{backend}

[tool.uv.build-backend]
module-name = "{module}"
{more}
"""

MakePackage = Callable[..., Path]
MakeWheel = Callable[..., Path]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace under git."""
    root = tmp_path / "workspace"
    (root / "packages").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


@pytest.fixture
def make_package(workspace: Path) -> MakePackage:
    """Return a function that writes a package of one module and returns its folder."""

    def make(
        folder: str,
        *,
        name: str | None = None,
        version: str = "0.1.0",
        dependencies: tuple[str, ...] = (),
        backend: str = 'build-backend = "uv_build"',
        more: str = "",
    ) -> Path:
        module = folder.replace("-", "_")
        source = workspace / "packages" / folder / "src" / module
        source.mkdir(parents=True)
        (source / "__init__.py").write_text('"""A package."""\n', encoding="utf-8")
        text = PYPROJECT.format(
            name=name or folder,
            version=version,
            dependencies=", ".join(f'"{requirement}"' for requirement in dependencies),
            backend=backend,
            module=module,
            more=more,
        )
        (workspace / "packages" / folder / "pyproject.toml").write_text(text, encoding="utf-8")
        return workspace / "packages" / folder

    return make


@pytest.fixture
def make_wheel(tmp_path: Path) -> MakeWheel:
    """Return a function that writes a pure wheel by hand into the folder dist and returns its path."""
    dist = tmp_path / "dist"
    dist.mkdir()

    def make(
        name: str,
        version: str,
        files: Mapping[str, str],
        *,
        requires: tuple[str, ...] = (),
        scripts: Mapping[str, str] | None = None,
    ) -> Path:
        stem = f"{name.replace('-', '_')}-{version}"
        info = f"{stem}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        contents = dict(files) | {
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        if scripts:
            lines = "".join(f"{script} = {target}\n" for script, target in scripts.items())
            contents[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
        record = "".join(f"{path},sha256={digest(text)},{len(text.encode())}\n" for path, text in contents.items())
        contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
        target = dist / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(target, "w") as archive:
            for path, text in contents.items():
                archive.writestr(path, text)
        return target

    return make


def digest(text: str) -> str:
    """Return the hash that a RECORD states for a file."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
