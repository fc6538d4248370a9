"""Known finite Markov decision processes: exact values, returns of policies, and samples."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import sparse
from scipy.sparse.linalg import spsolve

from ccvf.counts import Counts
from ccvf.transitions import Transitions

__all__ = ["Optimum", "TabularMDP"]

_SLACK = 1e-9
_ROUNDS = 1000


class Optimum(NamedTuple):
    """Optimal values of a known problem.

    Args:
        v: V*(s).
        q: Q*(s, a).
        policy: An optimal action of each state.
    """

    v: Float[np.ndarray, " states"]
    q: Float[np.ndarray, "states actions"]
    policy: Int[np.ndarray, " states"]


@final
@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite Markov decision process; make it with `from_arrays`.

    A transition from s by a to s' earns ``reward[s, a] + entry_reward[s']``, plus or minus `noise` with even odds where
    it is sampled. Entering a terminal state ends the episode: nothing follows, and terminal states are worth 0.

    Args:
        transition: Probabilities of next states; row s A + a, column s'.
        reward: Reward of each state and action.
        entry_reward: Reward for entering each state.
        terminal: Which states end an episode.
        initial: Probabilities of the first state.
        noise: Half-width of the two-point noise of sampled rewards.

    Raises:
        ValueError: If shapes do not match, probabilities are negative or do not add up to 1, or a number is not finite.
    """

    transition: sparse.csr_array
    reward: Float[np.ndarray, "states actions"]
    entry_reward: Float[np.ndarray, " states"]
    terminal: Bool[np.ndarray, " states"]
    initial: Float[np.ndarray, " states"]
    noise: float = 0.0

    def __post_init__(self) -> None:
        S, A = self.reward.shape
        vectors = (self.entry_reward.shape, self.terminal.shape, self.initial.shape)
        if self.transition.shape != (S * A, S) or vectors != ((S,),) * 3:
            raise ValueError(
                f"rewards are of {S} states and {A} actions: transition probabilities must be {(S * A, S)} or "
                f"{(S, A, S)}, not {self.transition.shape}, and vectors {(S,)}, not {vectors}"
            )
        if not (np.isfinite(self.reward).all() and np.isfinite(self.entry_reward).all()) or not self.noise >= 0:
            raise ValueError("rewards must be finite and the noise at least 0")
        rows = self.transition.sum(axis=1)
        if (self.transition.data < 0).any() or np.abs(rows - 1).max() > _SLACK:
            worst = int(np.abs(rows - 1).argmax())
            raise ValueError(
                f"state {worst // A}, action {worst % A}: probabilities of next states add up to {rows[worst]:g}; they "
                "must be at least 0 and add up to 1 (terminal states may lead to themselves)"
            )
        if (self.initial < 0).any() or abs(self.initial.sum() - 1) > _SLACK or self.initial[self.terminal].any():
            raise ValueError("initial probabilities must be at least 0, add up to 1 and leave out terminal states")

    @staticmethod
    def from_arrays(
        transition: Num[np.ndarray, "..."] | sparse.sparray,
        reward: Num[np.ndarray, "states actions"],
        *,
        terminal: Bool[np.ndarray, "..."] | None = None,
        initial: Num[np.ndarray, "..."] | None = None,
        entry_reward: Num[np.ndarray, "..."] | None = None,
        noise: SupportsFloat = 0.0,
    ) -> "TabularMDP":
        """A process of dense or sparse arrays.

        Args:
            transition: Probabilities of next states, (S, A, S) or sparse (S A, S).
            reward: Reward of each state and action.
            terminal: Which states end an episode; none unless said.
            initial: Probabilities of the first state; even over states that are not terminal unless said.
            entry_reward: Reward for entering each state; 0 unless said.
            noise: Half-width of the two-point noise of sampled rewards.

        Returns:
            The process.

        Raises:
            ValueError: If shapes do not match or numbers are out of range.

        Example:
            >>> import numpy as np
            >>> move = np.array([[[0.0, 1.0]], [[0.0, 1.0]]])
            >>> mdp = TabularMDP.from_arrays(move, np.array([[1.0], [0.0]]), terminal=np.array([False, True]))
            >>> mdp.optimal(0.9).v.tolist()
            [1.0, 0.0]
        """
        S, A = reward.shape
        if isinstance(transition, np.ndarray):
            if transition.shape != (S, A, S):
                raise ValueError(f"transition probabilities have shape {transition.shape}; rewards want {(S, A, S)}")
            transition = transition.reshape(S * A, S)
        ends = np.zeros(S, dtype=bool) if terminal is None else terminal
        if initial is None:
            initial = ~ends / max((~ends).sum(), 1)
        return TabularMDP(
            sparse.csr_array(transition, dtype=np.float64),
            np.asarray(reward, dtype=np.float64),
            np.zeros(S) if entry_reward is None else np.asarray(entry_reward, dtype=np.float64),
            ends,
            np.asarray(initial, dtype=np.float64),
            float(noise),
        )

    @property
    def n_states(self) -> int:
        """Number of states S, terminal ones included."""
        return self.reward.shape[0]

    @property
    def n_actions(self) -> int:
        """Number of actions A."""
        return self.reward.shape[1]

    @cached_property
    def expected_reward(self) -> Float[np.ndarray, "states actions"]:
        """Expected reward of each state and action, 0 in terminal states."""
        entering = (self.transition @ self.entry_reward).reshape(self.reward.shape)
        return (self.reward + entering) * ~self.terminal[:, None]

    @cached_property
    def continuing(self) -> sparse.csr_array:
        """Probabilities of next states after which something follows, (S A, S): neither from nor to terminal states."""
        A, live = self.n_actions, (~self.terminal).astype(np.float64)
        kept = sparse.diags_array(np.repeat(live, A)) @ self.transition @ sparse.diags_array(live)
        found = sparse.csr_array(kept)
        found.eliminate_zeros()
        return found

    @cached_property
    def reward_range(self) -> tuple[float, float]:
        """Smallest and largest reward that a sample can have."""
        pairs, arrived = self.transition.tocoo().coords
        live = ~self.terminal[pairs // self.n_actions] & (self.transition.tocoo().data > 0)
        earned = self.reward.ravel()[pairs[live]] + self.entry_reward[arrived[live]]
        return float(earned.min() - self.noise), float(earned.max() + self.noise)

    def q_of(self, v: Float[np.ndarray, " states"], gamma: SupportsFloat) -> Float[np.ndarray, "states actions"]:
        r"""One look ahead: $r(s, a) + \gamma \sum_{s'} P(s' | s, a) V(s')$.

        Args:
            v: Values of the states.
            gamma: Discount of one step.

        Returns:
            Values of the actions.
        """
        return self.expected_reward + float(gamma) * (self.continuing @ v).reshape(self.reward.shape)

    def optimal(self, gamma: SupportsFloat) -> Optimum:
        """Optimal values by policy iteration, exact up to rounding.

        Args:
            gamma: Discount of one step, in [0, 1).

        Returns:
            Values and a policy.

        Raises:
            ValueError: If gamma is out of range.
        """
        policy = self.expected_reward.argmax(1)
        for _ in range(_ROUNDS):
            v = self.evaluate(policy, gamma)
            q = self.q_of(v, gamma)
            better = q.max(1) > v + 1e-12 * (1 + np.abs(v))  # keeps an action among equals: no cycles
            if not better.any():
                break
            policy = np.where(better, q.argmax(1), policy)
        return Optimum(v, q, policy)

    def evaluate(
        self, policy: Int[np.ndarray, " states"] | Float[np.ndarray, "states actions"], gamma: SupportsFloat
    ) -> Float[np.ndarray, " states"]:
        """Values of a policy, from one sparse linear system.

        Args:
            policy: An action of each state, or probabilities of the actions.
            gamma: Discount of one step, in [0, 1).

        Returns:
            V(s).

        Raises:
            ValueError: If gamma, an action or a probability is out of range.
        """
        discount = float(gamma)
        if not 0 <= discount < 1:
            raise ValueError(f"gamma is a discount in [0, 1), {discount:g} given")
        S, A = self.reward.shape
        chosen = self.probabilities(policy)
        spread = sparse.csr_array((chosen.ravel(), np.arange(S * A), np.arange(0, S * A + 1, A)), shape=(S, S * A))
        system = sparse.csc_array(sparse.eye_array(S) - discount * (spread @ self.continuing))
        return np.asarray(spsolve(system, spread @ self.expected_reward.ravel()))

    def expected_return(
        self, policy: Int[np.ndarray, " states"] | Float[np.ndarray, "states actions"], gamma: SupportsFloat
    ) -> float:
        """Expected discounted return of a policy from the initial states.

        Args:
            policy: An action of each state, or probabilities of the actions.
            gamma: Discount of one step, in [0, 1).

        Returns:
            The return.
        """
        return float(self.initial @ self.evaluate(policy, gamma))

    def probabilities(
        self, policy: Int[np.ndarray, " states"] | Float[np.ndarray, "states actions"]
    ) -> Float[np.ndarray, "states actions"]:
        """A policy as probabilities of actions.

        Args:
            policy: An action of each state, or probabilities of the actions.

        Returns:
            Probabilities, rows add up to 1.

        Raises:
            ValueError: If it is not a policy of this process.
        """
        S, A = self.reward.shape
        if policy.shape == (S,) and policy.dtype.kind in "iu":
            if policy.min() < 0 or policy.max() >= A:
                raise ValueError(f"an action of the policy is outside 0 to {A - 1}")
            return np.eye(A)[policy]
        if policy.shape != (S, A) or (policy < 0).any() or np.abs(policy.sum(1) - 1).max() > _SLACK:
            raise ValueError(
                f"a policy is one action for each of {S} states, or probabilities {(S, A)} that add up to 1"
            )
        return policy

    def sample(
        self,
        policy: Int[np.ndarray, " states"] | Float[np.ndarray, "states actions"],
        transitions: SupportsInt,
        rng: np.random.Generator,
        *,
        starts: Float[np.ndarray, " states"] | None = None,
        horizon: SupportsInt = 1000,
    ) -> Transitions:
        """Run a policy for a number of transitions, episode after episode.

        Args:
            policy: An action of each state, or probabilities of the actions.
            transitions: How many; the last episode is cut there, which counts as truncated.
            rng: Source of randomness.
            starts: Probabilities of first states; those of the process unless said.
            horizon: Time limit of an episode in steps; it truncates.

        Returns:
            The log; observations are state numbers.

        Raises:
            ValueError: If a number is out of range.
        """
        count, limit = int(transitions), int(horizon)
        if count < 1 or limit < 1:
            raise ValueError(f"{count} transitions with a time limit of {limit} steps: both must be at least 1")
        first = np.cumsum(self.initial if starts is None else starts)
        doing = np.cumsum(self.probabilities(policy), axis=1)
        if first.shape != (self.n_states,) or abs(first[-1] - 1) > _SLACK:
            raise ValueError(f"starts are probabilities of {self.n_states} states that add up to 1")
        states, arrived = np.empty(count, np.int64), np.empty(count, np.int64)
        actions, episodes = np.empty(count, np.int64), np.empty(count, np.int64)
        truncated = np.zeros(count, dtype=bool)
        draws, state, age, episode = rng.random((count, 3)), -1, 0, -1
        for t, (start, choice, move) in enumerate(draws):
            if state < 0:
                state, age, episode = _pick(first, start), 0, episode + 1
            action = _pick(doing[state], choice)
            following = int(self._next(np.array([state * self.n_actions + action]), np.array([move]))[0])
            states[t], actions[t], arrived[t], episodes[t] = state, action, following, episode
            age += 1
            truncated[t] = not self.terminal[following] and (age == limit or t == count - 1)
            state = -1 if self.terminal[following] or truncated[t] else following
        noise = self.noise * rng.choice([-1.0, 1.0], size=count) if self.noise else 0.0
        return Transitions(
            frames=np.arange(self.n_states),
            index=states[:, None],
            next_index=arrived[:, None],
            actions=actions,
            rewards=self.reward[states, actions] + self.entry_reward[arrived] + noise,
            terminated=self.terminal[arrived],
            truncated=truncated,
            episodes=episodes,
            steps=np.ones(count, np.int64),
            n_actions=self.n_actions,
        )

    @cached_property
    def _cumulative(self) -> np.ndarray:
        return np.cumsum(self.transition.data)

    def _next(self, pairs: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Next states of pairs s A + a, one for each draw from [0, 1)."""
        first, last = self.transition.indptr[pairs], self.transition.indptr[pairs + 1] - 1
        ahead = np.where(first > 0, self._cumulative[first - 1], 0.0)
        found = np.searchsorted(self._cumulative, ahead + draws * (self._cumulative[last] - ahead), side="right")
        return self.transition.indices[np.clip(found, first, last)].astype(np.int64)

    def draw_counts(self, visits: Int[np.ndarray, "states actions"], rng: np.random.Generator) -> Counts:
        """Counts of a log in which each pair was visited a given number of times, its outcomes independent.

        The setting in which a bound is certified as it stands: how often a pair occurs does not depend on outcomes.

        Args:
            visits: Visits of each pair; those of terminal states are left out.
            rng: Source of randomness.

        Returns:
            The counts.

        Raises:
            ValueError: If there is no visit or a negative one.
        """
        if visits.shape != self.reward.shape or (visits < 0).any():
            raise ValueError(f"visits are counts of shape {self.reward.shape}, at least 0")
        pairs = np.repeat(np.arange(visits.size), (visits * ~self.terminal[:, None]).ravel())
        arrived = self._next(pairs, rng.random(pairs.size))
        noise = self.noise * rng.choice([-1.0, 1.0], size=pairs.size) if self.noise else 0.0
        states, actions = pairs // self.n_actions, pairs % self.n_actions
        rewards = self.reward[states, actions] + self.entry_reward[arrived] + noise
        sizes = {"n_states": self.n_states, "n_actions": self.n_actions}
        return Counts.from_arrays(states, actions, rewards, arrived, self.terminal[arrived], **sizes)


def _pick(cumulative: Float[np.ndarray, " choices"], draw: float) -> int:
    # Rounding can leave the last sum a little below 1.
    return min(int(np.searchsorted(cumulative, draw * cumulative[-1], side="right")), len(cumulative) - 1)
