"""What a tabular log amounts to: visits, sums of rewards, and where each state and action led to."""

from dataclasses import dataclass
from functools import cached_property
from typing import SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy import sparse

from ccvf.transitions import Transitions

__all__ = ["Counts"]

_SLACK = 1e-9  # relative, for expected counts, which are sums of fractions


@final
@dataclass(frozen=True, eq=False)
class Counts:
    """Sufficient statistics of a tabular log; make them with `from_transitions`, `from_arrays` or `from_model`.

    A transition after which the environment ended the episode is counted in `terminations` and has no next state; one
    that a time limit cut counts like any other. Expected counts may be fractions.

    Args:
        visits: How often each action was taken in each state, n(s, a).
        reward_sum: Sum of the rewards that followed.
        transitions: How often each next state followed without an end; row s A + a, column s'.
        terminations: How often the episode ended there.
        reward_range: Smallest and largest reward seen.

    Raises:
        ValueError: If shapes do not match, a count is negative or not finite, there is no visit at all, or the visits
            of a pair are not its transitions and terminations together.
    """

    visits: Float[np.ndarray, "states actions"]
    reward_sum: Float[np.ndarray, "states actions"]
    transitions: sparse.csr_array
    terminations: Float[np.ndarray, "states actions"]
    reward_range: tuple[float, float]

    def __post_init__(self) -> None:
        shape, pairs = self.visits.shape, (self.visits.size, self.visits.shape[0])
        if self.reward_sum.shape != shape or self.terminations.shape != shape or self.transitions.shape != pairs:
            raise ValueError(
                f"visits have shape {shape}; reward sums {self.reward_sum.shape} and terminations "
                f"{self.terminations.shape} must have it too, and transitions {pairs}, not {self.transitions.shape}"
            )
        for name, values in (
            ("visits", self.visits), ("terminations", self.terminations), ("transitions", self.transitions.data)
        ):  # fmt: skip
            if not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f"{name} must be finite and at least 0; one is {_first_bad(values):g}")
        if not self.visits.sum():
            raise ValueError("there is no transition: give at least one")
        low, high = self.reward_range
        if not np.isfinite(self.reward_sum).all() or not np.isfinite([low, high]).all() or low > high:
            raise ValueError(f"rewards must be finite; sums are not, or their range {self.reward_range} is not a range")
        total = self.transitions.sum(axis=1).reshape(shape) + self.terminations
        if not np.allclose(total, self.visits, rtol=_SLACK, atol=_SLACK):
            s, a = np.unravel_index(np.abs(total - self.visits).argmax(), shape)
            raise ValueError(
                f"state {s}, action {a}: {self.visits[s, a]:g} visits, but {total[s, a]:g} transitions and "
                "terminations together; count each visit once, as one of the two"
            )

    def __repr__(self) -> str:
        return (
            f"Counts(n_states={self.n_states}, n_actions={self.n_actions}, visits={self.visits.sum():g}, "
            f"pairs_seen={int(self.seen.sum())})"
        )

    @property
    def n_states(self) -> int:
        """Number of states S; states are 0 to S - 1."""
        return self.visits.shape[0]

    @property
    def n_actions(self) -> int:
        """Number of actions A; actions are 0 to A - 1."""
        return self.visits.shape[1]

    @cached_property
    def seen(self) -> Bool[np.ndarray, "states actions"]:
        """Which actions were taken at all."""
        return self.visits > 0

    @cached_property
    def bonus(self) -> Float[np.ndarray, "states actions"]:
        r"""Sampling error of a pair up to its constant: $b(s, a) = 1/\sqrt{n(s, a) \vee 1}$."""
        return 1 / np.sqrt(np.maximum(self.visits, 1))

    @cached_property
    def mean_reward(self) -> Float[np.ndarray, "states actions"]:
        """Mean reward of each pair, 0 where it was not seen."""
        return self.reward_sum / np.where(self.seen, self.visits, 1)

    @cached_property
    def survival(self) -> Float[np.ndarray, "states actions"]:
        """Share of the visits after which the episode went on, 0 where a pair was not seen."""
        return self.transitions.sum(axis=1).reshape(self.visits.shape) / np.where(self.seen, self.visits, 1)

    @cached_property
    def probabilities(self) -> sparse.csr_array:
        """Share of the visits that led to each next state, (S A, S); rows add up to `survival`."""
        return _scale_rows(self.transitions, 1 / np.where(self.seen, self.visits, 1).ravel())

    def merge(self, other: "Counts") -> "Counts":
        """Counts of both logs together.

        Args:
            other: Counts over the same states and actions.

        Returns:
            Their sum.

        Raises:
            ValueError: If the numbers of states or actions differ.
        """
        if other.visits.shape != self.visits.shape:
            raise ValueError(
                f"counts over (states, actions) = {self.visits.shape} and {other.visits.shape} do not add up; "
                "give n_states and n_actions when counting"
            )
        low, high = zip(self.reward_range, other.reward_range, strict=True)
        return Counts(
            self.visits + other.visits,
            self.reward_sum + other.reward_sum,
            sparse.csr_array(self.transitions + other.transitions),
            self.terminations + other.terminations,
            (min(low), max(high)),
        )

    @staticmethod
    def from_transitions(data: Transitions, n_states: SupportsInt | None = None) -> "Counts":
        """Count logged transitions whose observations are state numbers.

        Args:
            data: The log; frames are whole numbers, (frames,), and each observation is one of them.
            n_states: Number of states; None: one more than the largest in the log's pool of frames.

        Returns:
            The counts.

        Raises:
            TypeError: If observations are not whole numbers.
            ValueError: If observations are stacked or of several steps, or anything that `from_arrays` refuses.
        """
        if data.frames.ndim != 1 or data.stack != 1:
            raise ValueError(
                f"observations have shape {data.observation_shape}; tabular counts need one state number each"
            )
        if len(data) and (data.steps != 1).any():
            raise ValueError("transitions of several steps cannot be counted; give the log as it was before n_step")
        if n_states is None and data.frames.size:
            n_states = _numbers("state", data.frames).max() + 1
        return Counts.from_arrays(
            data.observations(),
            data.actions,
            data.rewards,
            data.next_observations(),
            data.terminated,
            n_states=n_states,
            n_actions=data.n_actions,
        )

    @staticmethod
    def from_arrays(
        observations: Shaped[np.ndarray, " transitions"],
        actions: Shaped[np.ndarray, " transitions"],
        rewards: Shaped[np.ndarray, " transitions"],
        next_observations: Shaped[np.ndarray, " transitions"],
        terminated: Shaped[np.ndarray, " transitions"],
        *,
        n_states: SupportsInt | None = None,
        n_actions: SupportsInt | None = None,
    ) -> "Counts":
        """Count transitions given as parallel columns.

        Args:
            observations: State numbers.
            actions: Action numbers.
            rewards: Finite rewards.
            next_observations: State numbers; those of terminated transitions are not looked at.
            terminated: Whether the environment ended the episode. A time limit's cut is no such end.
            n_states: Number of states; None: one more than the largest given.
            n_actions: Number of actions; None: one more than the largest given, which misses unseen last actions.

        Returns:
            The counts.

        Raises:
            TypeError: If states or actions are not whole numbers.
            ValueError: If there is no transition, a reward is not finite, or a state or action is out of range.

        Example:
            >>> import numpy as np
            >>> column = np.array
            >>> log = column([0, 0, 1]), column([1, 0, 1]), column([0.0, 0.0, 1.0]), column([1, 0, 0])
            >>> counts = Counts.from_arrays(*log, column([False, False, True]))
            >>> counts.visits.tolist(), counts.survival.tolist()
            ([[1.0, 1.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]])
        """
        shapes = [np.shape(column) for column in (observations, actions, rewards, next_observations, terminated)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise ValueError(f"columns have shapes {shapes}: give one number a transition in each, all alike")
        if not len(actions):
            raise ValueError("there is no transition: give at least one")
        ends = np.asarray(terminated, dtype=bool)
        going = ~ends
        states = _numbers("state", observations)
        arrived = _numbers("next state", next_observations)
        taken = _numbers("action", actions)
        S = _size("states", n_states, max(states.max(), arrived[going].max(initial=0)))
        A = _size("actions", n_actions, taken.max())
        for name, numbers, size in (("state", states, S), ("next state", arrived[going], S), ("action", taken, A)):
            _check_range(name, numbers, size)
        gains = np.asarray(rewards, dtype=np.float64)
        if not np.isfinite(gains).all():
            row = int(np.flatnonzero(~np.isfinite(gains))[0])
            raise ValueError(f"reward {row} is {gains[row]}: rewards must be finite; drop or mend that transition")
        pairs = states * A + taken

        def total(rows: np.ndarray, weights: np.ndarray | None = None) -> Float[np.ndarray, "states actions"]:
            return np.bincount(rows, weights, minlength=S * A).astype(np.float64).reshape(S, A)

        moves = sparse.coo_array((np.ones(going.sum()), (pairs[going], arrived[going])), shape=(S * A, S))
        span = float(gains.min()), float(gains.max())
        return Counts(total(pairs), total(pairs, gains), sparse.csr_array(moves), total(pairs[ends]), span)

    @staticmethod
    def from_model(
        transition: Float[np.ndarray, "states actions states"] | sparse.csr_array,
        reward: Float[np.ndarray, "states actions"],
        visits: SupportsFloat | Num[np.ndarray, "states actions"],
        terminal: Bool[np.ndarray, " states"] | None = None,
    ) -> "Counts":
        """The counts that a known model leads to on average, for limits and tests.

        Args:
            transition: Probabilities of next states, (S, A, S) or sparse (S A, S).
            reward: Expected rewards.
            visits: Visits of every pair, or of each; terminal states get none.
            terminal: States that end the episode when entered; none unless said.

        Returns:
            The expected counts, fractions included.

        Raises:
            ValueError: If shapes do not match or a number is out of range.
        """
        S, A = reward.shape
        ends = np.zeros(S, dtype=bool) if terminal is None else terminal
        number = np.broadcast_to(np.asarray(visits, dtype=np.float64), (S, A)) * ~ends[:, None]
        if transition.shape not in ((S, A, S), (S * A, S)):
            raise ValueError(f"transition probabilities have shape {transition.shape}; rewards want {(S, A, S)}")
        flat = transition if isinstance(transition, sparse.csr_array) else transition.reshape(S * A, S)
        expected = _scale_rows(sparse.csr_array(flat), number.ravel())
        ended = (expected @ ends.astype(np.float64)).reshape(S, A)
        going = sparse.csr_array(expected @ sparse.diags_array((~ends).astype(np.float64)))
        going.eliminate_zeros()
        occurring = reward[number > 0]
        span = (float(occurring.min()), float(occurring.max())) if occurring.size else (0.0, 0.0)
        return Counts(number, number * reward, going, ended, span)


def _scale_rows(matrix: sparse.csr_array, factors: Float[np.ndarray, " rows"]) -> sparse.csr_array:
    scaled = sparse.csr_array(matrix, dtype=np.float64, copy=True)
    scaled.data *= np.repeat(factors, np.diff(scaled.indptr))
    return scaled


def _first_bad(values: np.ndarray) -> float:
    return float(values[~(np.isfinite(values) & (values >= 0))][0])


def _numbers(name: str, column: np.ndarray) -> Int[np.ndarray, " transitions"]:
    found = np.asarray(column)
    if found.dtype.kind not in "iu":
        raise TypeError(
            f"{name} numbers have dtype {found.dtype}: give whole numbers; other observations need a deep learner"
        )
    return found.astype(np.int64)


def _size(name: str, given: SupportsInt | None, largest: SupportsInt) -> int:
    size = int(largest) + 1 if given is None else int(given)
    if size < 1:
        raise ValueError(f"{size} {name} given; at least 1 is needed")
    return size


def _check_range(name: str, numbers: Int[np.ndarray, " n"], size: int) -> None:
    bad = np.flatnonzero((numbers < 0) | (numbers >= size))
    if bad.size:
        raise ValueError(
            f"{name} {numbers[bad[0]]} is outside 0 to {size - 1}: "
            f"give n_{name.split()[-1]}s large enough, or mend the log"
        )
