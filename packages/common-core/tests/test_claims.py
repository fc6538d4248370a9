import importlib.metadata
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from common_core.claims import (
    Check,
    Claim,
    ClaimError,
    Estimate,
    Outcome,
    Results,
    Settings,
    at_least,
    at_most,
    discover,
    run_claims,
    select,
)
from common_core.claims._compare import compare
from common_core.claims._report import render
from common_core.cli import main
from common_core.records import RecordError

TOY = """
import os, signal, time
from common_core.claims import Claim, Estimate, Outcome, at_least, at_most

SVG = "<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><path d='M0 0L1 1'/></svg>"

def draw(scale, seed, device):
    return Outcome({"x": Estimate(1.0 + seed, 0.9 + seed, 1.1 + seed), "y": 2.0}, {"A line <&>": SVG})

def segfault(scale, seed, device):
    os.kill(os.getpid(), signal.SIGSEGV)

def boom(scale, seed, device):
    print("last words")
    raise RuntimeError("the solver said no")

def nan(scale, seed, device):
    return Outcome({"x": float("nan"), "y": 1.0})

def empty(scale, seed, device):
    return Outcome({})

def text(scale, seed, device):
    return Outcome({"x": "many"})

def nothing(scale, seed, device):
    return None

def slow(scale, seed, device):
    open("slow-started", "w").close()
    time.sleep(60)

def claim(slug, run=draw, holds=lambda m: at_least("x", m["x"], 0.5), headline="{x:.2f}", **rest):
    return Claim(f"toy.{slug}", f"Sentence about {slug}.", "Sec. 1", "0.9", run, holds, headline, **rest)

CLAIMS = (
    claim("good"),
    claim("short", holds=lambda m: [at_most("x low", m["x"], 0.5), at_least("y", m["y"], 1)]),
    claim("segfault", segfault), claim("boom", boom), claim("nan", nan), claim("empty", empty), claim("text", text),
    claim("nothing", nothing), claim("unjudged", holds=lambda m: []), claim("lambda", holds=lambda m: m["absent"]),
    claim("headline", headline="{z:.2f}"), claim("extra", requires={"no_such_module": "toy[claims]"}),
    claim("large", scales=("full",)),
)
SLOW = (claim("good"), claim("slow", slow))
"""


def install(folder, attribute="CLAIMS", name="toy"):
    """A distribution in ``folder`` that carries claims."""
    (folder / f"{name}_claims.py").write_text(TOY)
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[repertory.claims]\n{name} = {name}_claims:{attribute}\n")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    points = [importlib.metadata.EntryPoint("toy", "toy_claims:CLAIMS", "repertory.claims")]
    yield points
    sys.modules.pop("toy_claims", None)


def a_claim(**changes):
    fields = {
        "id": "toy.a", "statement": "It is so.", "source": "Sec. 1", "paper": "1", "headline": "{x}",
        "run": lambda scale, seed, device: Outcome({"x": 1}), "holds": lambda m: at_least("x", m["x"], 0),
    }  # fmt: skip
    return Claim(**{**fields, **changes})


def test_checks_hold_on_their_bound_and_give_the_signed_margin():
    assert at_least("a", 2.0, 2.0).holds
    assert at_least("a", Estimate(3.0, 1.0, 4.0), 2.0).margin == 1.0
    assert at_most("a", 1.5, 2.0).margin == 0.5
    assert not at_most("a", 2.5, 2.0).holds
    assert at_most("a", 2.5, 2.0).margin == -0.5
    assert not at_least("a", math.nan, 0.0).holds
    assert not at_most("a", math.nan, 0.0).holds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "NoDot"}, "package.slug"),
        ({"statement": " "}, "statement is empty"),
        ({"scales": ("tiny",)}, "scales"),
        ({"scales": ()}, "scales"),
        ({"headline": "no metric"}, "shows no metric"),
    ],
)
def test_malformed_claims_are_refused(changes, message):
    with pytest.raises(ClaimError, match=message):
        a_claim(**changes)


def test_figures_must_be_svg():
    for text in ("plot.png", "<svg><script>alert(1)</script></svg>"):
        with pytest.raises(ClaimError, match="not plain SVG"):
            Outcome({"x": 1.0}, {"plot": text}).estimates()


def test_two_claims_with_one_id_are_refused(toy):
    with pytest.raises(ClaimError, match=r"two claims have the id 'toy.good'"):
        discover([*toy, importlib.metadata.EntryPoint("twin", "toy_claims:SLOW", "repertory.claims")])


@pytest.mark.parametrize("value", ["no_such_module_at_all:CLAIMS", "toy_claims:ABSENT", "toy_claims:TOO", "json:dumps"])
def test_an_entry_point_that_holds_no_claims_is_named(toy, value):
    with pytest.raises(ClaimError, match=value):
        discover([importlib.metadata.EntryPoint("broken", value, "repertory.claims")])


def test_selectors_name_packages_claims_and_patterns(toy):
    found = discover(toy)
    assert list(select(found, [])) == sorted(found)
    assert list(select(found, ["toy"])) == sorted(found)
    assert list(select(found, ["toy.good"])) == ["toy.good"]
    assert list(select(found, ["toy.s*", "toy.good"])) == ["toy.good", "toy.segfault", "toy.short"]


def test_an_unknown_selector_lists_near_matches(toy):
    with pytest.raises(ClaimError, match=r"'toy\.god'; did you mean toy\.good"):
        select(discover(toy), ["toy.god"])
    with pytest.raises(ClaimError, match="no claims are installed"):
        select({}, [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of every toy claim."""
    folder = tmp_path_factory.mktemp("finished")
    install(folder, name="toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        points = [importlib.metadata.EntryPoint("toy", "toy_claims:CLAIMS", "repertory.claims")]
        results = run_claims(discover(points), Settings(), folder / "out", jobs=2)
        sys.modules.pop("toy_claims", None)
    return results, folder / "out"


@pytest.mark.parametrize(
    ("slug", "verdict", "reason"),
    [
        ("good", "holds", ""),
        ("short", "falls short", ""),
        ("segfault", "could not run", "its process was ended by SIGSEGV"),
        ("boom", "could not run", "RuntimeError: the solver said no"),
        ("nan", "could not run", "the claim returned NaN for x, so there is nothing to judge"),
        ("empty", "could not run", "the claim returned no metrics, so there is nothing to judge"),
        ("text", "could not run", "the claim returned a metric that is not a number"),
        ("nothing", "could not run", "run() must return an Outcome; it returned NoneType"),
        ("unjudged", "could not run", "holds() must return a Check"),
        ("lambda", "could not run", "KeyError: 'absent'"),
        ("headline", "could not run", "the headline shows 'z', which is not a metric; there are x, y"),
        ("extra", "could not run", "module 'no_such_module' is missing: install toy[claims]"),
        ("large", "could not run", "the claim has no quick scale; it offers full"),
    ],
)
def test_every_claim_gets_its_verdict_and_reason(finished, slug, verdict, reason):
    result = next(result for result in finished[0].claims if result.id == f"toy.{slug}")
    assert result.verdict == verdict
    assert result.reason.startswith(reason)
    if verdict == "could not run":
        assert not result.metrics
    else:
        assert result.headline == "1.00 [0.90, 1.10]"
        assert result.peak_rss_bytes > 0
        assert result.cpu_s > 0


def test_the_decisive_check_is_the_missed_one(finished):
    result = next(result for result in finished[0].claims if result.id == "toy.short")
    assert result.tightest == Check("x low", 1.0, "<=", 0.5)


def test_output_of_a_claim_that_could_not_run_is_kept(finished):
    result = next(result for result in finished[0].claims if result.id == "toy.boom")
    assert "last words" in result.log
    assert "in boom" in result.log


def test_results_survive_the_disk(finished):
    results, folder = finished
    assert Results.load(folder) == results
    assert Results.load(folder / "results.json") == results
    assert not results.ok
    assert results.counts == {"holds": 1, "falls short": 1, "could not run": 11}


def test_a_figure_outside_the_folder_is_refused(finished, tmp_path):
    data = json.loads((finished[1] / "results.json").read_text())
    next(item for item in data["claims"] if item["figures"])["figures"][0]["file"] = "../../secret.svg"
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(RecordError, match="outside the folder"):
        Results.load(tmp_path)


def test_a_figure_with_a_script_is_refused(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "copy")
    next((tmp_path / "copy" / "figures").iterdir()).write_text("<svg><script>alert(1)</script></svg>")
    with pytest.raises(RecordError, match="not plain SVG"):
        Results.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not readable"),
        ('{"schema": "else/1"}', "not a repertory.results file"),
        ('{"schema": "repertory.results/2"}', "newer"),
        ('{"schema": "repertory.results/1", "claims": [{}]}', "incomplete"),
    ],
)
def test_foreign_results_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        Results.load(tmp_path)


def test_the_report_is_self_contained_and_escaped(finished):
    page = render(finished[0])
    assert "1 of 13 claims hold" in page
    assert "A line &lt;&amp;&gt;" in page
    assert page.count("<svg") == 2
    assert "<?xml" not in page
    assert "the solver said no" in page
    outside = page.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in outside
    assert "https://" not in outside
    assert "src=" not in outside
    assert "<link" not in outside


def test_a_claim_without_figures_is_reported_without_them(toy, tmp_path):
    results = run_claims(select(discover(toy), ["toy.boom"]), Settings(), tmp_path / "out")
    assert "<figure>" not in render(results)


def test_comparison_tells_what_moved(finished, tmp_path):
    first, folder = finished
    data = json.loads((folder / "results.json").read_text())
    data["settings"]["seed"] = 4
    items = {item["id"]: item for item in data["claims"]}
    items["toy.good"]["verdict"] = "falls short"
    items["toy.good"]["metrics"]["x"] = {"value": 1.05, "low": 1.0, "high": 1.2}
    items["toy.short"]["metrics"]["x"] = {"value": 2.0, "low": 1.9, "high": 2.1}
    items["toy.short"]["metrics"]["y"] = {"value": 2.0001}
    data["claims"] = [item for item in data["claims"] if item["id"] != "toy.nan"]
    (tmp_path / "results.json").write_text(json.dumps(data))
    found = compare(first, Results.load(tmp_path))
    assert found.settings == ("seed",)
    assert found.verdicts["toy.nan"] == ("could not run", None)
    assert found.worse == ("toy.good",)
    assert found.alone == ("toy.nan",)
    assert [(move.claim, move.metric) for move in found.moves if move.moved] == [("toy.short", "x"), ("toy.short", "y")]
    assert not compare(first, first).worse
    assert not any(move.moved for move in compare(first, first).moves)


def test_the_command_gives_the_right_exit_status(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("common_core.claims._verbs.discover", lambda: discover(toy))
    assert main(["run", "toy.good", "--out", "good"]) == 0
    # a claim without the scale is left out of a pattern, and could not run if named
    assert main(["run", "toy.g*", "toy.larg*", "--out", "some"]) == 0
    assert main(["run", "toy.good", "toy.large", "--out", "named"]) == 1
    assert main(["run", "toy.short", "toy.good", "--out", "short"]) == 1
    assert main(["run", "toy.boom", "--out", "boom"]) == 1
    capsys.readouterr()
    for words, message in [
        (["run", "toy.god"], "did you mean toy.good"),
        (["run", "toy.good", "--out", "good"], "holds a run already"),
        (["run", "toy.good", "--resume", "good"], "give no selector"),
        (["run", "--resume", "nowhere"], "no such file"),
        (["run", "toy.good", "--device", "cuda:99"], "cannot be found"),
        (["run", "toy.good", "--jobs", "0", "--out", "unwritten"], "jobs is 0"),
        (["run", "toy.good", "--timeout", "0", "--out", "unwritten"], "timeout is 0.0 seconds; give more than 0"),
        (["run", "toy.good", "--address", "auto", "--out", "unwritten"], "choose the engine 'ray'"),
        (
            ["run", "toy.good", "--scale", "gpu", "--out", "unwritten"],
            "none of the 1 selected claims has the scale 'gpu'",
        ),
        (["run", "toy.good", "--out", "site/toy_claims.py"], "is a file; give a folder"),
        (["report", "nowhere"], "no such file"),
        (["compare", "good", "nowhere"], "no such file"),
    ]:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not (tmp_path / "unwritten").exists()
    (tmp_path / "good" / "results.json").rename(tmp_path / "kept.json")
    assert main(["report", "good"]) == 2
    assert "go on with it by repertory run --resume good" in capsys.readouterr().err
    (tmp_path / "kept.json").rename(tmp_path / "good" / "results.json")
    assert main(["run", "toy.god", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["compare", "good", "good"]) == 0
    assert main(["compare", "good", "boom"]) == 0
    assert "In one of the runs only: toy.boom, toy.good." in capsys.readouterr().out
    data = json.loads((tmp_path / "good" / "results.json").read_text())
    data["claims"][0]["verdict"] = "falls short"
    (tmp_path / "worse.json").write_text(json.dumps(data))
    assert main(["compare", "good", "worse.json"]) == 1
    assert main(["report", "good"]) == 0
    assert main(["list", "toy.g*"]) == 0
    with pytest.raises(SystemExit) as leaving:
        main(["run", "--scale", "huge"])
    assert leaving.value.code == 2


def test_json_answers_alone_are_on_standard_output(toy, capsys, monkeypatch):
    monkeypatch.setattr("common_core.claims._verbs.discover", lambda: discover(toy))
    assert main(["run", "toy.good", "--json", "--out", "out"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["counts"]["holds"] == 1
    assert data["claims"][0]["metrics"]["x"] == {"value": 1.0, "low": 0.9, "high": 1.1}
    assert main(["--json", "list"]) == 0
    assert len(json.loads(capsys.readouterr().out)["claims"]) == 13


def test_the_seed_reaches_the_claim_and_a_resumed_run_keeps_its_settings(toy, capsys, monkeypatch):
    monkeypatch.setattr("common_core.claims._verbs.discover", lambda: discover(toy))
    assert main(["run", "toy.good", "--seed", "3", "--out", "out"]) == 0
    first = Results.load("out")
    assert first.claims[0].metrics["x"].value == 4.0
    assert main(["run", "--resume", "out"]) == 0
    assert "kept from before" in capsys.readouterr().err
    again = Results.load("out")
    assert again.settings == first.settings
    assert again.claims == first.claims


def test_ctrl_c_keeps_what_is_done_and_the_run_can_go_on(tmp_path):
    install(tmp_path, "SLOW")
    # A shell starts what it runs in the background with SIGINT ignored, and the test's own process may be such a one.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from common_core.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.Popen(
        [*command, "toy", "--jobs", "1", "--out", "out"], cwd=tmp_path, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "slow-started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "go on with: repertory run --resume out" in errors
    results = Results.load(tmp_path / "out")
    assert results.interrupted
    verdicts = {item.id: (item.verdict, item.reason) for item in results.claims}
    assert verdicts == {"toy.good": ("holds", ""), "toy.slow": ("could not run", "the run was interrupted")}
    assert (tmp_path / "out" / "report.html").exists()
    done = subprocess.run(
        [*command, "--resume", "out", "--timeout", "1"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "toy.good: holds (kept from before)" in done.stderr
    assert "stopped after its limit of 1 s" in done.stdout
