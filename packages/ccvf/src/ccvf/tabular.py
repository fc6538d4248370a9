r"""Confidence-conditioned values of a tabular log: exact on a grid of confidences, with a say on what is certified.

The backup of a pair at confidence delta is

$$Q(s, a, \delta) = \max_{\delta_1, \delta_2} \hat r - \alpha \sqrt{\log(m / \delta_1)}\, b(s, a)
  + \gamma \sum_{s'} \hat P(s' | s, a) \max_{a'} Q(s', a', \delta_2),$$

with $b = 1/\sqrt{n \vee 1}$, the second maximum over actions seen in s', and splits as the budget admits (`splits`).

**What is certified.** Let returns lie in an interval of length R, and $\alpha = R/\sqrt{2}$ (``alpha="hoeffding"``).
By Hoeffding's inequality the event
$$E(s, a, \delta): \quad \hat r + \gamma \hat P V^* - \alpha \sqrt{\log(1/\delta)}\, b \le Q^*(s, a)$$
has probability at least 1 - delta: it is about the one fixed function V*, not about the estimate.

1. *Any problem, any budget, all pairs at once* (``union="pairs"``, m = S A). With probability at least 1 - delta the
   events $E(s, a, \delta / m)$ hold for all pairs, and then $T Q^* \le Q^*$ for the backup T of every budget, since no
   first confidence exceeds delta. T is monotone and a contraction, so its fixed point lies below Q*. No confidence need
   be spent on steps to come: the box is the tightest certified choice here, and the smaller budgets hold a fortiori.
   The number of visits of each pair must not depend on their outcomes. In a log of N transitions that an agent went
   through it does; ``union="pairs_and_counts"`` (m = S A N) covers that, each number of visits being one more event.
2. *Without a union* (m = 1) an event is promised for one pair, and the bound of a pair rests on the events of all
   pairs that can follow: it fails with probability at most delta times the number of those. It is at most delta
   itself where one action was seen in each state and always led to the same state, with independent outcomes and
   counts that do not depend on them: there the error is a fixed sum of means, whose deviation Hoeffding's moment bound
   adds up without a union; this again covers the box, and so all three, as long as the trivial bound is never the
   best. If only tail probabilities of the events are known, such a chain needs "sum", or "product" for independent
   steps, and splits that do not depend on the outcomes.
3. A float `alpha` below Hoeffding's certifies nothing; measure with `ccvf.coverage`. So does ``splits="interpolated"``.

Upper bounds are the mirror image, with a minimum over splits.

Reference:
    Hong, Kumar, Levine (2023). Confidence-Conditioned Value Functions for Offline Reinforcement Learning. ICLR 2023.
"""

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal, SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Float
from scipy import sparse

from ccvf.confidence import check_deltas, delta_grid
from ccvf.counts import Counts
from ccvf.splits import Budget
from ccvf.tabular_stages import Problem, Solved, solve
from ccvf.tabular_values import TabularValues
from ccvf.transitions import Transitions

__all__ = ["TabularCCVL"]

_CHOICES = {
    "budget": ("box", "sum", "product"),
    "bound": ("lower", "upper"),
    "union": ("none", "pairs", "pairs_and_counts"),
    "splits": ("certified", "interpolated"),
    "dtype": ("float64", "float32"),
}


@final
@dataclass(frozen=True, eq=False)
class TabularCCVL:
    """The tabular solver; see the module for the equation and for what is certified.

    Args:
        gamma: Discount of one step, in [0, 1).
        alpha: Size of the penalty in units of return, above 0; "hoeffding": length of the range of returns / sqrt(2).
        budget: "box" (the paper's print: the penalised backup at each confidence), "sum" or "product".
        bound: "lower" or "upper".
        deltas: Grid of confidences. None: 60 from 1e-6 to 1 in the box, where points do not depend on each other; else
            800 from 1e-8 to 1, because no certified chain of splits is longer than the grid.
        union: Which events hold together: "none", "pairs" or "pairs_and_counts".
        reward_range: Smallest and largest possible reward. None: those seen, which is an assumption.
        return_range: Smallest and largest possible discounted return from any state, if more is known than rewards
            imply; give at most one of the two ranges.
        trivial: Whether what follows may be left to its trivial bound, at no cost of confidence. None: in the sum and
            the product, which need it; not in the box, which then is the usual penalised backup.
        splits: "certified" second confidences lie on the grid; "interpolated" adds those between, which is closer to
            the optimum on a coarse grid, and certifies nothing.
        tol: Distance to the exact solution to stop at, in units of return (or what rounding allows, if more).
        max_sweeps: Most sweeps at one confidence.
        dtype: Precision of values and work.

    Raises:
        TypeError: If a number is none.
        ValueError: If an argument is out of range; the message says what is allowed.

    Example:
        >>> import numpy as np
        >>> counts = Counts.from_model(np.ones((1, 1, 1)), np.array([[1.0]]), visits=4)
        >>> found = TabularCCVL(0.5, alpha=1.0, deltas=[np.exp(-1), 1]).fit(counts)
        >>> found.q.round(6).tolist()  # (1 - 1 * 1 / sqrt(4)) / (1 - 0.5), and without a penalty
        [[[1.0, 2.0]]]
    """

    gamma: SupportsFloat
    _: KW_ONLY
    alpha: SupportsFloat | Literal["hoeffding"] = 0.1
    budget: Budget = "box"
    bound: Literal["lower", "upper"] = "lower"
    deltas: Iterable[SupportsFloat] | None = None
    union: Literal["none", "pairs", "pairs_and_counts"] = "none"
    reward_range: tuple[SupportsFloat, SupportsFloat] | None = None
    return_range: tuple[SupportsFloat, SupportsFloat] | None = None
    trivial: bool | None = None
    splits: Literal["certified", "interpolated"] = "certified"
    tol: SupportsFloat = 1e-8
    max_sweeps: SupportsInt = 100_000
    dtype: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        if not 0 <= float(self.gamma) < 1:
            raise ValueError(f"gamma is a discount in [0, 1), {float(self.gamma):g} given")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, not {getattr(self, name)!r}")
        if isinstance(self.alpha, str):
            if self.alpha != "hoeffding":
                raise ValueError(f'alpha is a number above 0 or "hoeffding", not {self.alpha!r}')
        elif not 0 < float(self.alpha) < np.inf:
            raise ValueError(
                f"alpha is above 0 and finite, {float(self.alpha):g} given; without a penalty ask the box at delta = 1"
            )
        if self.deltas is not None:
            grid = check_deltas(tuple(self.deltas))
            if (np.diff(grid) <= 0).any():
                raise ValueError("the grid of confidences must ascend; sort it and drop doubles")
            object.__setattr__(self, "deltas", tuple(grid.tolist()))
        if self.reward_range is not None and self.return_range is not None:
            raise ValueError("give reward_range or return_range, not both: the first implies the second")
        for name in ("reward_range", "return_range"):
            found = getattr(self, name)
            if found is not None and not -np.inf < float(found[0]) <= float(found[1]) < np.inf:
                raise ValueError(f"{name} is (smallest, largest), both finite, not {found!r}")
        if self.trivial is False and self.budget != "box":
            raise ValueError(f"the budget {self.budget!r} needs the trivial bound: leave trivial=None, or take the box")
        if not float(self.tol) > 0 or int(self.max_sweeps) < 1:
            raise ValueError(
                f"tol={float(self.tol):g} must be above 0 and max_sweeps={int(self.max_sweeps)} at least 1"
            )

    def grid(self) -> Float[np.ndarray, " confidences"]:
        """The confidences that are solved for, ascending.

        Returns:
            The grid.
        """
        if self.deltas is not None:
            return check_deltas(self.deltas)
        return delta_grid() if self.budget == "box" else delta_grid(800, 1e-8)

    def returns(self, counts: Counts) -> tuple[float, float]:
        """Smallest and largest discounted return from any state, as given or implied by rewards.

        An episode can end after any step, so rewards of one sign imply no more than one of them.

        Args:
            counts: The log, whose rewards bound them where nothing was given.

        Returns:
            The range.

        Raises:
            ValueError: If the log has rewards outside the range that was given.
        """
        if self.return_range is not None:
            return float(self.return_range[0]), float(self.return_range[1])
        low, high = counts.reward_range
        if self.reward_range is not None:
            given = float(self.reward_range[0]), float(self.reward_range[1])
            if low < given[0] or high > given[1]:
                raise ValueError(f"rewards from {low:g} to {high:g} were logged, outside reward_range={given}")
            low, high = given
        longest = 1 / (1 - float(self.gamma))
        return low * (longest if low < 0 else 1.0), high * (longest if high > 0 else 1.0)

    def penalty(self, counts: Counts) -> float:
        """The size of the penalty, in units of return.

        Args:
            counts: The log.

        Returns:
            alpha.

        Raises:
            ValueError: If it is Hoeffding's and all returns are known to be equal, or rewards are out of range.
        """
        if not isinstance(self.alpha, str):
            return float(self.alpha)
        low, high = self.returns(counts)
        if low == high:
            raise ValueError(
                f"all returns are taken to be {low:g}, so nothing is uncertain: give the reward_range that is possible"
            )
        return (high - low) / 2**0.5

    def fit(
        self,
        data: Counts | Transitions,
        *,
        start: TabularValues | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TabularValues:
        """Solve for the values of a log.

        Args:
            data: Counts, or a log whose observations are state numbers.
            start: Values to begin with, on the same grid; where the budget leads to an iteration they shorten it.
            progress: Called with the number of confidences done and their total.

        Returns:
            The values. Where sweeps run out their status says so; `unwrap` raises then.

        Raises:
            TypeError: If observations are not whole numbers.
            ValueError: If the data are not fit, rewards lie outside their range, or start has another shape.
        """
        counts = data if isinstance(data, Counts) else Counts.from_transitions(data)
        deltas, alpha, (low, high) = self.grid(), self.penalty(counts), self.returns(counts)
        problem = self._problem(counts, deltas, alpha, high if self.bound == "upper" else low)
        sign, shape = -1 if self.bound == "upper" else 1, (*counts.visits.shape, len(deltas))
        first = None
        if start is not None:
            if start.q.shape != shape or not np.array_equal(start.deltas, deltas) or start.bound != self.bound:
                raise ValueError(
                    f"start has shape {start.q.shape}; give {self.bound} bounds of shape {shape} on this grid"
                )
            first = np.ascontiguousarray(sign * start.q.max(axis=1).T)
        # An eighth of the tolerance is for the sweeps, a quarter for rounding that makes equal values equal again.
        contraction, wanted = 1 - float(self.gamma), float(self.tol) / 8 * (1 - float(self.gamma))
        precise = 16 * float(np.finfo(self.dtype).eps) * (max(abs(low), abs(high)) + abs(float(problem.unknown[0])))
        quantum = 2.0 ** np.floor(np.log2(float(self.tol) / 2)) if wanted > precise else 0.0
        tol = max(wanted, precise)
        solved = solve(problem, tol, int(self.max_sweeps), quantum, first, progress)
        q = _rank_unseen(solved, problem).reshape(len(deltas), *counts.visits.shape)
        if sign < 0:
            np.negative(q, out=q)
        swept = self.budget != "sum" or self.splits == "interpolated"
        # `precise` is twice what rounding can do to one backup; every step to come adds its own.
        error = (solved.residual + precise / 2) / contraction + (quantum / 2 if swept else 0.0)
        return TabularValues(
            np.moveaxis(q, 0, -1), deltas, counts.seen, self.bound, self.budget, alpha, (low, high),
            "converged" if solved.residual <= tol else "not_converged", solved.sweeps, error,
        )  # fmt: skip

    def _problem(self, counts: Counts, deltas: np.ndarray, alpha: float, extreme: float) -> Problem:
        sign, gamma = -1 if self.bound == "upper" else 1, float(self.gamma)
        trivial = self.budget != "box" if self.trivial is None else self.trivial
        union = {"none": 1, "pairs": counts.visits.size}.get(self.union, counts.visits.size * counts.visits.sum())
        if float(union) < 1:
            raise ValueError(f"{counts.visits.sum():g} transitions in all: fractions of one leave nothing to bound")
        # A state in which nothing was seen counts like a pair seen once with the worst outcome for ever: this is below
        # the trivial bound, and so a bound, and not above any seen pair, whose own penalties have pushed it down.
        depth = 1 if trivial else 1 / (1 - gamma)
        dtype = np.dtype(self.dtype)
        following = gamma * sign * extreme * counts.survival.ravel()
        return Problem(
            reward=(sign * counts.mean_reward).ravel().astype(dtype),
            penalty=(alpha * counts.bonus).ravel().astype(dtype),
            transition=sparse.csr_array(gamma * counts.probabilities).astype(dtype),
            trivial=(following if trivial else np.full(following.shape, -np.inf)).astype(dtype),
            seen=counts.seen,
            unknown=sign * extreme - alpha * depth * np.sqrt(np.log(float(union)) - np.log(deltas)),
            minimises=self.bound == "upper",
            deltas=deltas,
            budget=self.budget,
            interpolated=self.splits == "interpolated",
            union=float(union),
        )


def _rank_unseen(solved: Solved, problem: Problem) -> Float[np.ndarray, "confidences pairs"]:
    """Of lower bounds, put unseen actions below every seen one, where their state has a seen one."""
    seen = problem.seen.ravel()
    others = (problem.seen.any(axis=1, keepdims=True) & ~problem.seen).ravel()
    if problem.minimises or not others.any():
        return solved.q
    known = solved.q[:, seen]
    # At least a few units of the last place, or equal large values would stay equal.
    least = 8 * float(np.finfo(known.dtype).eps) * float(np.abs(known).max())
    offset = max(float(known.max() - known.min()) or 1.0, least)
    solved.q[:, others] = np.minimum(known.min(axis=1), problem.unknown)[:, None] - offset
    return solved.q
