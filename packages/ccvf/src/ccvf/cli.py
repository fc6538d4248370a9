"""The command: `demo`, `collect`, `train`, `evaluate`, `calibrate` and `claims`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from common_core.cli import Answer, option, package_app, writable

File = Annotated[Path | None, option("FILE", "not written")]
Real = Annotated[float | None, option("NUMBER", "the method's own")]
Count = Annotated[int | None, option("INT", "the method's own")]
Deltas = Annotated[tuple[float, ...] | None, option("DELTA...", "0.0001 0.01 0.1 0.5 1")]
Steps = Annotated[int | None, option("INT", "the environment's own time limit")]
Method = Literal["ccvl", "dqn", "cql", "rem", "iql", "bc", "tabular"]
Body = Literal["auto", "mlp", "minatar", "nature", "tabular"]

_DEMO = """
Discounted return as a share of the optimal policy's, mean over draws of the log. Values are learnt once for every
confidence. A small delta trusts only what was seen often: right on the narrow log, hopeless on the broad one, where
lava soon ends what looks worse; none at all (delta 1) falls for luck in the narrow log. A fixed delta that suits both
is known in hindsight only, and another for every alpha. The adaptive policy is not told: it finds out while it acts."""


def demo(seed: int = 0, figure: File = None) -> Answer:
    """Learn from two logs of a small gridworld: one wants conservatism, one does not; adaptation finds out which.

    Args:
        seed: Seed of logs and episodes.
        figure: Return against confidence, as SVG.
    """
    from ccvf.cli_demo import demo_figure, facts, rows
    from ccvf.cli_pictures import drawn, need_pictures
    from common_core.console import progress, table

    writable(figure)
    need_pictures(figure)
    with progress().status("solving") as status:
        data = facts(seed, lambda what: status.update(f"solving: {what}"))
    head = ["log", *(f"delta {delta:g}" for delta in data["deltas"]), "adaptive"]
    first = f"7 x 7 gridworld with lava, {data['draws']} draws of each log, alpha {data['alpha']:g}.\n"
    shown: list[Any] = [first, table(head, rows(data["logs"])), _DEMO]
    if figure is not None:
        shown.append(drawn(figure, demo_figure(data)))
    return Answer(data, shown)


def collect(
    name: Annotated[str, option("NAME")],
    /,
    out: Annotated[Path, option("LOG.npz")],
    behaviour: str = "random",
    frames: int = 100_000,
    fraction: float = 1.0,
    by: Literal["transitions", "episodes", "shards"] = "transitions",
    envs: int = 8,
    seed: int = 0,
    delta: float = 1.0,
    epsilon: Annotated[float | None, option("SHARE", "the learner's last 0.05, or 0.01 on Atari; 0 for others")] = None,
    parts: Annotated[int | None, option("INT", "10 where a learner learns, else one for 10,000 frames")] = None,
) -> Answer:
    """Make a log to learn from.

    NAME is an environment: gridworld:lava, minatar:GAME, atari:GAME, or an id of gymnasium such as CartPole-v1. Or it
    is a log (a .npz file, or minari:ID), of which a part is taken. An interrupted log goes on by the same command.

    Args:
        name: Where the log comes from.
        out: The log.
        behaviour: random; dqn (everything a double DQN goes through while it learns); narrow or broad, of
            gridworld:lava; or a folder that ccvf train wrote.
        frames: Transitions of the whole log.
        fraction: Share of it to keep; smaller shares of one seed lie in larger ones.
        by: How the share is drawn.
        envs: Environments side by side.
        seed: Seed of everything.
        delta: Confidence at which a trained folder acts.
        epsilon: Share of random actions.
        parts: Parts of the log; episodes are cut where a part ends, and an interrupted log goes on there.
    """
    from ccvf.cli_collect import Wanted, collected, part_of
    from ccvf.cli_logs import is_log
    from ccvf.io import save_transitions

    writable(out)
    if out.exists():
        raise ValueError(f"{out} is there already; give another file, or remove it")
    if not 0 < fraction <= 1:
        raise ValueError(f"--fraction is {fraction:g}; it lies in (0, 1]")
    if is_log(name):
        data = part_of(name, fraction, by, seed)
        save_transitions(out, data)
    else:
        data = collected(Wanted(name, behaviour, frames, fraction, by, seed, envs, delta, epsilon, parts), out)
    summary = data.describe()
    facts = summary.to_json() | {"out": str(out), "fingerprint": data.fingerprint()}
    return Answer(facts, [str(summary), f"wrote {out}"])


def train(
    log: Annotated[str, option("LOG")],
    /,
    out: Annotated[Path, option("DIR")],
    method: Method = "ccvl",
    gamma: float = 0.99,
    alpha: Annotated[str | None, option("NUMBER", "1, tabular 0.1")] = None,
    penalty: Annotated[str | None, option("NAME", "cql")] = None,
    budget: Annotated[Literal["box", "sum", "product"] | None, option("{box,sum,product}", "box")] = None,
    relative: bool = False,
    hold: bool = False,
    head: Annotated[Literal["monotone", "cosine"] | None, option("{monotone,cosine}", "monotone")] = None,
    confidences: Annotated[int | None, option("INT", "8; tabular 60, or 800 for sum and product")] = None,
    smallest: Annotated[float | None, option("DELTA", "0.0001; tabular 1e-6, or 1e-8 for sum and product")] = None,
    union: Annotated[Literal["none", "pairs", "pairs_and_counts"] | None, option("NAME", "none")] = None,
    reward_range: Annotated[tuple[float, float] | None, option("LOW HIGH", "as logged")] = None,
    states: Annotated[int | None, option("INT", "as the log or its environment says")] = None,
    heads: Count = None,
    expectile: Real = None,
    temperature: Real = None,
    updates: Annotated[int | None, option("INT", "20000")] = None,
    batch: Annotated[int | None, option("INT", "32")] = None,
    lr: Annotated[float | None, option("NUMBER", "0.0003")] = None,
    n_step: Annotated[int | None, option("INT", "1")] = None,
    target_period: Annotated[int | None, option("INT", "500")] = None,
    clip_rewards: bool = False,
    body: Annotated[Body | None, option("NAME", "by the shape of observations")] = None,
    hidden: Annotated[tuple[int, ...] | None, option("INT...", "256 256")] = None,
    seed: int = 0,
    device: str = "auto",
    amp: bool = False,
    compile: bool = False,  # noqa: A002 (the name of the option)
    checkpoint_every: int = 5000,
    resume: bool = False,
) -> Answer:
    """Learn values from a log: confidence-conditioned ones, or those of a baseline.

    LOG is a file that ccvf saved, an npz file with the arrays observations, actions, rewards, next_observations and
    terminated (and truncated, episodes, n_actions), or minari:ID. DIR gets config.json, checkpoint.safetensors,
    learner.safetensors (values.npz for tabular) and history.json. Ctrl-C leaves a good checkpoint.

    Args:
        log: What to learn from.
        out: Folder to write to.
        method: ccvl, a baseline, or tabular (exact, for logs of state numbers).
        gamma: Discount of a step.
        alpha: Scale of the conservatism; tabular: of the penalty in units of return, or hoeffding.
        penalty: ccvl: cql (a regulariser), or a bonus: exact, hash, rnd, elliptical, ensemble, behaviour.
        budget: How a confidence is spent on this step and the rest.
        relative: With a bonus: charge an action only for being less familiar than the most familiar one.
        hold: With cql: keep values at delta = 1 those of Q-learning, whatever the regulariser.
        head: Monotone in the confidence by construction, or the usual embedding.
        confidences: ccvl: confidences for each sample; tabular: size of the grid.
        smallest: The most conservative confidence.
        union: Tabular: which events hold together; pairs is what certifies with hoeffding.
        reward_range: Tabular: smallest and largest possible reward.
        states: Number of states of a log of state numbers.
        heads: Heads of rem.
        expectile: Of iql.
        temperature: Of iql.
        updates: Gradient steps in all; more of them can be asked for with resume.
        batch: Transitions a step.
        lr: Learning rate of Adam.
        n_step: Steps that returns look ahead.
        target_period: Steps between two copies into the target network.
        clip_rewards: Learn from the signs of rewards.
        body: Trunk of the network.
        hidden: Widths of the layers of mlp.
        seed: Seed of weights, batches and bonus.
        device: Such as cpu or cuda; auto is cuda where there is one.
        amp: Trunks in bfloat16.
        compile: Compile the loss by torch.compile.
        checkpoint_every: Steps between two checkpoints.
        resume: Go on from the checkpoint in DIR, with the same log and settings.
    """
    from ccvf.cli_logs import about_log, n_states_of, read_log
    from ccvf.cli_runs import Run
    from ccvf.cli_settings import settings_of
    from ccvf.cli_train import check_folder, train_run
    from common_core.console import progress

    with progress().status(f"reading {log}"):
        data = read_log(log)
    known = n_states_of(data, states)
    given = {
        "alpha": alpha, "penalty": penalty, "budget": budget, "relative": relative, "hold": hold, "head": head,
        "confidences": confidences, "smallest": smallest, "union": union, "reward_range": reward_range, "heads": heads,
        "expectile": expectile, "temperature": temperature, "updates": updates, "batch": batch, "lr": lr,
        "n_step": n_step, "target_period": target_period, "clip_rewards": clip_rewards, "body": body, "hidden": hidden,
        "amp": amp, "compile": compile,
    }  # fmt: skip
    settings = settings_of(method, gamma, seed, given, known)
    run = Run(out, settings, about_log(data, known))
    check_folder(run, resume)
    facts = train_run(run, data, _device(device), checkpoint_every)
    first = f"{method} on {len(data):,} transitions"
    more = ", ".join(
        f"{key} {value:.4g}" for key, value in facts.get("last", facts).items() if isinstance(value, float)
    )
    shown = [f"{first}: {more}", f"wrote {out}; ccvf evaluate {out} plays it"]
    return Answer({"out": str(out), "method": method, "updates": settings.updates, **facts}, shown)


def evaluate(
    runs: Annotated[tuple[Path, ...], option("RUN...")],
    /,
    env: Annotated[str | None, option("NAME", "that of the log")] = None,
    episodes: int = 40,
    envs: int = 8,
    deltas: Deltas = None,
    adaptive: bool = True,
    act: Literal["mean", "sample", "argmax", "quantile"] = "mean",
    quantile: float = 0.5,
    persist: Literal["env", "episode", "shared"] = "env",
    evidence: Literal["default", "paper"] = "default",
    beta: Annotated[float | None, option("NUMBER", "0.5")] = None,
    forget: float = 1.0,
    guard: bool = True,
    max_steps: Steps = None,
    seed: int = 0,
    device: str = "auto",
    figure: File = None,
    belief: File = None,
) -> Answer:
    """Play what was learnt: at fixed confidences, and with a belief over confidences that finds its own.

    RUN are folders that ccvf train wrote. Several that differ in seed or log only are summed up by the interquartile
    mean, with bootstrap intervals.

    Args:
        runs: What to play.
        env: Environment, as for ccvf collect.
        episodes: Episodes of each policy; all policies play the same ones.
        envs: Environments side by side.
        deltas: Fixed confidences.
        adaptive: Whether to play the adaptive policy too.
        act: How a confidence is taken from the belief.
        quantile: Share of the belief below the confidence acted on, with act quantile.
        persist: How long a belief lasts: as long as its environment, an episode, or one shared by all environments.
        evidence: default, or paper (squares of single residuals).
        beta: Weight of the evidence.
        forget: Share of the evidence that is kept at every step.
        guard: Set confidences aside whose values say nothing.
        max_steps: Steps after which an episode is cut.
        seed: Seed of the episodes.
        device: Such as cpu or cuda; auto is cuda where there is one.
        figure: Return against confidence, as SVG.
        belief: Belief of the first run over time, as SVG.
    """
    from ccvf.cli_evaluate import Adapting, Played, play_run, show, tables
    from ccvf.cli_logs import log_names
    from ccvf.cli_pictures import evaluated, need_pictures, need_values
    from ccvf.cli_runs import Run
    from ccvf.environments import make_vector

    if not runs:
        raise ValueError("give at least one folder that ccvf train wrote")
    writable(figure, belief)
    need_pictures(figure, belief)
    names, found = log_names(runs), [Run.load(path) for path in runs]
    need_values(found, adaptive, figure, belief)
    where = env if env is not None else _environment(found)
    adapting = Adapting(act, quantile, persist, evidence, beta, forget, guard) if adaptive else None
    played: dict[str, Played] = {}
    for name, run in zip(names, found, strict=True):
        stepper = make_vector(where, envs, seed=seed)
        try:
            played[name] = play_run(
                run, stepper, deltas=deltas, episodes=episodes, seed=seed, adapting=adapting, max_steps=max_steps,
                device=_device(device),
            )  # fmt: skip
        finally:
            stepper.close()
    data: dict[str, Any] = {"environment": where, "episodes": episodes, "seed": seed}
    data["runs"] = {name: one.to_json(seed) for name, one in played.items()}
    shown: list[Any] = []
    for name, one in played.items():
        shown += [f"{name} on {where}, {episodes} episodes, means with 95 % intervals\n", show(one, seed), ""]
        shown += [f"note: {note}\n" for note in one.notes]
    if len(played) > 1:
        summed, data["iqm"] = tables(played, seed)
        shown += [summed, ""]
    if figure is not None or belief is not None:
        shown += evaluated(played, seed, figure, belief)
    return Answer(data, shown)


def calibrate(
    run: Annotated[Path, option("RUN")],
    /,
    log: Annotated[str, option("LOG")],
    env: Annotated[str | None, option("NAME", "no returns are played")] = None,
    deltas: Deltas = None,
    rule: Literal["best", "lower"] = "best",
    updates: int = 5000,
    episodes: int = 40,
    envs: int = 8,
    sets: int = 60,
    max_steps: Steps = None,
    seed: int = 0,
    device: str = "auto",
    figure: File = None,
) -> Answer:
    """Choose a confidence before deployment, and see how far the bounds can be believed.

    From LOG alone: what the greedy policy of every confidence is worth, by fitted Q evaluation, or exactly in the
    process that a tabular log describes. With an environment: the share of returns that reach the values, against
    1 - delta; and of the tabular method in a gridworld, how often bounds hold over logs drawn anew.

    Args:
        run: Folder that ccvf train wrote, of method ccvl or tabular.
        log: A log, better another than the one that was learnt from.
        env: Environment to play in.
        deltas: Confidences.
        rule: Take the highest estimate, or the highest lower end of the intervals.
        updates: Gradient steps of fitted Q evaluation.
        episodes: Episodes at each confidence.
        envs: Environments side by side.
        sets: Logs drawn anew, of the tabular method in gridworld:lava.
        max_steps: Steps after which an episode is cut.
        seed: Seed of everything.
        device: Such as cpu or cuda; auto is cuda where there is one.
        figure: The calibration curve, or without an environment the estimates, as SVG.
    """
    from ccvf.cli_calibrate import against_returns, check_calibrated, cut_notes, estimates_of, show_estimates
    from ccvf.cli_evaluate import DELTAS
    from ccvf.cli_logs import read_log
    from ccvf.cli_pictures import drawn, estimates_figure, need_pictures
    from ccvf.cli_runs import Run

    writable(figure)
    need_pictures(figure)
    found = Run.load(run)
    check_calibrated(found, env is not None)
    data = read_log(log)
    found.check_log(data)
    grid = [delta for delta in DELTAS if delta >= found.settings.smallest] if deltas is None else list(deltas)
    where = _device(device)
    values = found.values(where)
    estimates, how = estimates_of(found, values, data, grid, updates=updates, seed=seed, device=where)
    shown_estimates, chosen = show_estimates(estimates, rule)
    answer: dict[str, Any] = {"chosen": chosen, "rule": rule, "estimates": estimates.to_json()}
    answer["notes"] = cut_notes(found, data)
    shown: list[Any] = [f"{how}\n", shown_estimates, "", *answer["notes"], *([""] if answer["notes"] else [])]
    picture = None
    if env is not None:
        more, parts, picture = against_returns(
            found, values, data, env, grid, episodes=episodes, envs=envs, sets=sets, max_steps=max_steps, seed=seed
        )
        answer |= more
        shown += parts
    if figure is not None:
        shown.append(drawn(figure, estimates_figure(estimates) if picture is None else picture()))
    return Answer(answer, shown)


def _device(name: str) -> str:
    from common_core.devices import best_device

    return best_device("torch") if name == "auto" else name


def _environment(runs: Sequence[Any]) -> str:
    """The environment of the logs, where they say one and the same."""
    known = {run.log["env"] for run in runs}
    if len(known) > 1 or None in known:
        said = ", ".join(str(name) for name in sorted(known, key=str))
        raise ValueError(f"which environment to play is not clear (the logs say {said}): give --env")
    return known.pop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    verbs = {"demo": demo, "collect": collect, "train": train, "evaluate": evaluate, "calibrate": calibrate}
    description = "Offline RL that chooses its own degree of conservatism: values at every confidence, learnt once."
    return package_app("ccvf", verbs, description, arguments)
