import itertools
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from common_core.plotting import COLORS, new_figure, svg

DRAW = """
from common_core.plotting import new_figure, svg
figure, axes = new_figure(cols=2)
for k in range(6):
    axes[0].plot([0, 1], [k, k + 1], marker="o", label=f"line {k}")
axes[0].legend()
axes[0].set_xlabel("steps")
axes[1].bar([1, 2], [3, 4])
axes[1].fill_between([1, 2], [1, 1], [2, 2], alpha=0.3)
axes[1].text(1, 1, "black text")
text = svg(figure)
"""

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = to_xyz @ np.clip(rgb, 0, 1) / to_xyz.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def draw() -> str:
    names: dict = {}
    exec(DRAW, names)
    return names["text"]


@pytest.mark.parametrize("background", ["#FFFFFF", "#121212"])
def test_colours_stand_out_from_light_and_dark(background):
    weights = np.array([0.2126, 0.7152, 0.0722])  # WCAG 2.1, 1.4.11: contrast of graphics at least 3:1
    behind = linear(background) @ weights + 0.05
    for color in COLORS:
        front = linear(color) @ weights + 0.05
        assert max(front, behind) / min(front, behind) >= 3


@pytest.mark.parametrize("vision", VISION)
def test_colours_differ_for_everybody(vision):
    seen = [lab(np.array(VISION[vision]) @ linear(color)) for color in COLORS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 25


def test_equal_data_give_equal_bytes_in_another_process():
    done = subprocess.run(
        [sys.executable, "-c", DRAW + "print(text, end='')"], capture_output=True, text=True, check=True
    )
    assert done.stdout == draw() == draw()


def test_the_svg_stands_alone_in_a_page():
    text = draw()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert (root.get("fill"), root.get("role")) == ("currentColor", "img")
    for unwanted in ("<?xml", "<!DOCTYPE", "<style", "<metadata", "<text", "#000000", "#ffffff", "<g id="):
        assert unwanted not in text
    assert "stroke: currentColor" in text
    identifiers = re.findall(r' id="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', text)) <= set(identifiers)


def test_different_data_give_different_bytes():
    pictures = set()
    for height in (1.0, 2.0):
        figure, axes = new_figure()
        axes.plot([0, 1], [0, height])
        axes.set_ylim(0, 3)
        pictures.add(svg(figure))
    assert len(pictures) == 2


def test_svg_clears_the_figure_and_leaves_global_settings_alone():
    before = dict(matplotlib.rcParams)
    figure, _ = new_figure()
    svg(figure)
    assert figure.axes == []
    assert dict(matplotlib.rcParams) == before


def test_shapes_of_the_axes():
    assert new_figure(rows=2, cols=3)[1].shape == (2, 3)
    assert new_figure(cols=3)[1].shape == (3,)
    figure, axes = new_figure(4.0, 2.0)
    assert axes.figure is figure
    assert tuple(figure.get_size_inches()) == (4.0, 2.0)
    with pytest.raises(ValueError, match="must be positive"):
        new_figure(rows=0)


def test_pyplot_stays_out():
    program = (
        "import sys, common_core.plotting as p; p.svg(p.new_figure()[0]); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_matplotlib_the_extra_is_named():
    program = "import sys; sys.modules['matplotlib'] = None; import common_core.plotting"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'repertory-common-core[plot]'" in done.stderr.splitlines()[-1]
