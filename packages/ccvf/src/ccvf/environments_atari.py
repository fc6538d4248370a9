"""Atari games that step together in threads, through the vector environment of ale-py."""

from typing import Any, SupportsFloat, SupportsInt, final

import numpy as np
from jaxtyping import Int, Shaped

from ccvf.environments import Step, Stepper, imported
from common_core.seeding import Streams

__all__ = ["AtariStepper"]

_STEPS = 27_000  # of four frames: half an hour of play, the usual limit


@final
class AtariStepper(Stepper):
    """Atari games as the DQN-replay data saw them.

    Frames are 84 x 84 grey values, a maximum over the last two of `frame_skip`; observations are stacks of four, empty
    before the episode began. Rewards are the game's own: learners take their signs where they are told to.

    Args:
        game: Name of the game in snake case, such as "pong" or "space_invaders".
        n: How many environments.
        seed: Seed until `reset` gives another.
        sticky: Probability that a frame repeats the last action.
        frame_skip: Frames an action is held.
        max_steps: Time limit of an episode in steps, which truncates it.
        noops: Up to so many idle steps before an episode starts.
        fire_reset: Press fire at the start of an episode, in games that wait for it.
        all_actions: All 18 actions; otherwise those that matter in this game.
        threads: Of the environments; 0: as many as there are cores.

    Raises:
        ValueError: If there is no such game or a number is out of range.
        ImportError: If ale-py is not installed, or too old to tell the last observation of an episode.

    Reference:
        Machado et al. (2018). Revisiting the Arcade Learning Environment (sticky actions, 18 or minimal actions).
    """

    def __init__(
        self,
        game: str,
        n: SupportsInt = 1,
        *,
        seed: SupportsInt = 0,
        sticky: SupportsFloat = 0.25,
        frame_skip: SupportsInt = 4,
        max_steps: SupportsInt = _STEPS,
        noops: SupportsInt = 0,
        fire_reset: bool = False,
        all_actions: bool = False,
        threads: SupportsInt = 0,
    ) -> None:
        ale_py = imported("ale_py", "atari")
        self.name, self.n, self._seed = f"atari:{game}", int(n), int(seed)
        if self.n < 1 or not 0 <= float(sticky) < 1 or int(frame_skip) < 1 or int(max_steps) < 1 or int(noops) < 0:
            raise ValueError(
                f"n={n}, sticky={sticky}, frame_skip={frame_skip}, max_steps={max_steps}, noops={noops}: counts are at "
                "least 1 (noops 0) and sticky lies in [0, 1)"
            )
        if game not in (known := imported("ale_py.roms", "atari").get_all_rom_ids()):
            near = [name for name in known if name.replace("_", "") == game.lower().replace("_", "").replace("-", "")]
            hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(sorted(known)[:4])}, ..."
            raise ValueError(f"there is no Atari game {game!r}; {hint}")
        try:
            self.env = ale_py.AtariVectorEnv(
                game,
                self.n,
                num_threads=min(int(threads), self.n),
                max_num_frames_per_episode=int(max_steps) * int(frame_skip),
                repeat_action_probability=float(sticky),
                full_action_space=all_actions,
                autoreset_mode=_same_step(),
                frameskip=int(frame_skip),
                noop_max=int(noops),
                use_fire_reset=fire_reset,
                reward_clipping=False,
            )
        except TypeError as error:
            raise ImportError(f'this ale-py is too old ({error}); pip install "ccvf[atari]" brings a newer') from None
        self.observation_shape = tuple(self.env.single_observation_space.shape)
        self.dtype, self.stack = np.dtype(np.uint8), self.observation_shape[0]
        self.n_actions = int(self.env.single_action_space.n)
        self._resets = 0

    def reset(self, seed: SupportsInt | None = None) -> Shaped[np.ndarray, "envs ..."]:
        """Start a new episode everywhere (see `Stepper.reset`)."""
        if seed is not None:
            self._seed, self._resets = int(seed), 0
        self._resets += 1
        seeds = [Streams(self._seed, "episodes", self._resets, k).env() for k in range(self.n)]
        return np.array(self.env.reset(seed=np.array(seeds))[0])

    def step(self, actions: Int[np.ndarray, " envs"]) -> Step:
        """Act in every environment (see `Stepper.step`)."""
        observations, rewards, terminated, truncated, info = self.env.step(np.asarray(actions, dtype=np.int64))
        terminated = np.array(terminated, dtype=bool)
        truncated = np.array(truncated, dtype=bool) & ~terminated
        after = observations = np.array(observations)
        ended = np.flatnonzero(terminated | truncated)
        if ended.size:
            after = observations.copy()
            after[ended] = np.asarray(info["final_obs"])[ended]
        return Step(np.array(rewards, dtype=np.float64), after, terminated, truncated, observations)

    def close(self) -> None:
        """End the threads."""
        self.env.close()


def _same_step() -> Any:
    from gymnasium.vector import AutoresetMode

    return AutoresetMode.SAME_STEP
