"""What `ccvf demo` shows: two logs of one gridworld that want different conservatism, and a policy that finds it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ccvf.adaptive import AdaptivePolicy
from ccvf.confidence import conservatism, u_grid
from ccvf.counts import Counts
from ccvf.environments import make_vector
from ccvf.evaluating import evaluate
from ccvf.gridworlds import gridworld_log, lava_world
from ccvf.tabular import TabularCCVL
from common_core.seeding import Streams

__all__ = ["DELTAS", "demo_figure", "facts", "rows"]

DELTAS = (1e-4, 0.01, 0.1, 0.5, 0.9, 1.0)
_LOGS = {"narrow": ("500 transitions, a tenth of them random", 500, 0.1), "broad": ("3000, all random", 3000, 1.0)}
_ALPHA, _DRAWS, _EPISODES, _ENVS, _TOL = 0.3, 3, 160, 16, 1e-5


def facts(seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Returns as shares of the optimal policy's, means over a few draws of each log.

    Args:
        seed: Of logs and episodes.
        tell: Called with what is being done.

    Returns:
        For each log the share at every fixed confidence (exact) and of the adaptive policy (played).
    """
    world = lava_world()
    mdp, gamma = world.mdp, world.gamma
    best = mdp.expected_return(mdp.optimal(gamma).policy, gamma)
    solver = TabularCCVL(gamma, alpha=_ALPHA, deltas=sorted({*u_grid().tolist(), *DELTAS}), tol=_TOL)
    found: dict[str, Any] = {}
    for kind, (_, size, random) in _LOGS.items():
        fixed, adaptive, moved = np.zeros((_DRAWS, len(DELTAS))), np.zeros(_DRAWS), []
        for draw in range(_DRAWS):
            tell(f"{kind} log, draw {draw + 1} of {_DRAWS}")
            tree = Streams(seed, "ccvf.demo", kind, draw)
            log = gridworld_log(world, random, size, tree.numpy("log"))
            values = solver.fit(Counts.from_transitions(log, n_states=mdp.n_states))
            fixed[draw] = [mdp.expected_return(values.policy(delta), gamma) / best for delta in DELTAS]
            stepper = make_vector("gridworld:lava", _ENVS)
            played = evaluate(AdaptivePolicy(values, gamma=gamma), stepper, _EPISODES, seed=tree.env(), gamma=gamma)
            adaptive[draw] = played.discounted.mean() / best
            assert played.belief is not None
            moved.append(float(np.exp(-(played.belief.mean_u[-1] ** 2))))
        found[kind] = {
            "fixed": fixed.mean(0).tolist(), "adaptive": float(adaptive.mean()), "each": adaptive.tolist(),
            "ended_at": moved,
        }  # fmt: skip
    return {"optimal": float(best), "gamma": gamma, "alpha": _ALPHA, "draws": _DRAWS, "episodes": _EPISODES,
            "deltas": list(DELTAS), "logs": found}  # fmt: skip


def rows(logs: Mapping[str, Mapping[str, Any]]) -> list[Sequence[str]]:
    """A row for each log, and one for the worse of the two.

    Args:
        logs: Figures by log.

    Returns:
        Cells: name, share at each confidence, share of the adaptive policy.
    """
    shares = {kind: [*of["fixed"], of["adaptive"]] for kind, of in logs.items()}
    named = {f"{kind}: {_LOGS[kind][0]}": values for kind, values in shares.items()}
    named["worse of the two"] = [min(column) for column in zip(*shares.values(), strict=True)]
    return [[name, *(f"{value:.0%}" for value in values)] for name, values in named.items()]


def demo_figure(data: Mapping[str, Any]) -> Any:
    """Return against confidence for both logs, with the adaptive policy's.

    Args:
        data: What `facts` found.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from common_core.plotting import COLORS, new_figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib, which is not installed: pip install "ccvf[plot]"') from error
    u = conservatism(data["deltas"])
    figure, axes = new_figure(5.6, 3.4)
    for k, (kind, of) in enumerate(data["logs"].items()):
        style = {"color": COLORS[k], "linewidth": 1.6}
        axes.plot(u, of["fixed"], marker="os"[k], markersize=4, linestyle="-", label=f"{kind} log, fixed δ", **style)
        axes.axhline(of["adaptive"], linestyle=("--", ":")[k], label=f"{kind} log, adaptive", **style)
    axes.set_xticks(u, [f"{delta:g}" for delta in data["deltas"]])
    axes.set(xlabel="confidence δ", ylabel="share of the optimal return", xlim=(u.max() + 0.1, u.min() - 0.1),
             ylim=(-0.03, 1.06))  # fmt: skip
    axes.legend(fontsize=8, frameon=False)
    return figure
