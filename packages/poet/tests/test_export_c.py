"""The C header: it compiles without a warning, and a C program that walks it finds every rule kept."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from poet.arena import first_fit, lifetimes
from poet.device import Tier
from poet.events import compute, drop, free, page_in, page_out
from poet.export_c import to_c
from poet.graph import Graph, Op, Value
from poet.replay import replay

WALK = Path(__file__).with_name("walk.c")
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
compiled = pytest.mark.skipif(CC is None, reason="there is no C compiler")

STEP = Graph(
    "step",
    (Op("f", (), (0,), workspace=3), Op("g", (0,), (1,)), Op("h", (0, 1), (2,))),
    (Value("x", 8), Value("y", 4), Value("z", 5, keep=True)),
)
EVENTS = (compute(0), compute(1), page_out(0), free(0), page_in(0), drop(0), compute(2), free(0), free(1))
FLASH = Tier("flash", 1.0, 1.0, 1.0, 1.0, block=512)


def header(graph=STEP, events=EVENTS, tiers=(FLASH,), alignment=4, **options):
    return to_c(graph, events, first_fit(lifetimes(graph, events, tiers), alignment), tiers, **options)


def walk(folder, text):
    """Compile the walker with the header and run it."""
    (folder / "schedule.h").write_text(text, encoding="ascii")
    flags = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{folder}"]
    program = folder / "walk"
    subprocess.run([CC, *flags, "-o", program, WALK], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=False)


def test_the_table_says_what_and_where():
    text = header()
    assert "#define POET_ARENA_BYTES 20u" in text
    assert "#define POET_EVENTS 9u" in text
    rows = re.findall(r"\{(\d+)u, (\d+)u, (\d+)u, (\d+), (\d+), (\d+), (\d+), (-?\d+)\}, /\* (.*) \*/", text)
    assert [row[-1] for row in rows[:3]] == ["0: compute f", "1: compute g", "2: page_out x (flash)"]
    offsets = dict(zip(("x", "y"), (rows[3][0], rows[8][0]), strict=True))
    assert offsets == {"x": rows[2][0], "y": rows[8][0]}
    assert rows[5][:2] == (str(2**32 - 1), "512")  # a copy outside RAM takes a whole block


@compiled
def test_a_schedule_walks(tmp_path):
    done = walk(tmp_path, header())
    assert (done.returncode, done.stdout.strip()) == (0, "17")


@compiled
@pytest.mark.parametrize("seed", range(6))
def test_any_schedule_walks_to_its_peak(tmp_path, random_case, seed):
    problem, events = random_case(seed + 50, ops=12)
    tiers = [replace(tier, block=1) for tier in problem.tiers]  # the walker knows of no blocks
    problem = replace(problem, device=problem.device.with_tiers(*tiers))
    done = walk(tmp_path, header(problem.graph, events, tiers, 16))
    assert done.returncode == 0
    assert int(done.stdout) == replay(problem, events).peak


@compiled
def test_compressed_copies_lie_in_the_arena(tmp_path):
    packed = replace(FLASH, name="2-bit", block=1, ratio=0.25, in_ram=True)
    events = tuple(event for event in EVENTS if event != drop(0))
    done = walk(tmp_path, header(events=events, tiers=(packed,)))
    assert (done.returncode, done.stdout.strip()) == (0, "19")


@compiled
def test_the_walker_sees_a_wrong_address(tmp_path):
    text = header()
    wrong = re.sub(r"\{\d+u, 1\}", lambda place: place[0].replace("{", "{1"), text, count=1)
    assert wrong != text
    assert walk(tmp_path, wrong).returncode in (1, 2)
    last = text[text.index("static const poet_event") :].splitlines()[9]
    twice = text.replace("POET_EVENTS 9u", "POET_EVENTS 10u").replace(last, f"{last}\n{last}")
    assert walk(tmp_path, twice).returncode == 8


@compiled
def test_names_cannot_break_the_comments(tmp_path):
    names = ("a*/ #error", "/* b \\", "ünï??/")
    graph = replace(
        STEP, name="*/ int x; /*", ops=tuple(replace(op, name=n) for op, n in zip(STEP.ops, names, strict=True))
    )
    text = header(graph)
    assert text.isascii()
    assert walk(tmp_path, text).returncode == 0


def test_another_prefix():
    text = header(name="resnet")
    assert "resnet_schedule[]" in text
    assert "RESNET_ARENA_BYTES" in text
    assert "poet" not in text.lower()


def test_what_cannot_be_exported_is_refused():
    with pytest.raises(ValueError, match="C identifier"):
        header(name="2x")
    with pytest.raises(ValueError, match="no events"):
        header(events=())
    with pytest.raises(ValueError, match="other blocks"):
        to_c(STEP, EVENTS, first_fit(lifetimes(STEP, EVENTS[:-1], (FLASH,))), (FLASH,))
    huge = replace(STEP, values=(Value("x", 2**32), *STEP.values[1:]))
    with pytest.raises(ValueError, match="32 bits"):
        header(huge)
