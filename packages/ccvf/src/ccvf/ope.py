r"""Fitted Q evaluation: what the greedy policy of every confidence is worth, learnt from the log alone.

One network has values for all confidences of a grid; those at delta are fitted to

    r + gamma^steps (1 - terminated) Q'(s', pi_delta(s'), delta),

pi_delta being greedy on the given values at delta. Unlike the values it evaluates, it is no lower bound: where a policy
leaves the data its estimate is extrapolation, and tends to be too high, the more so the less conservative the policy.
Trust differences between confidences only where the log covers what both do.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, SupportsInt, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from ccvf.batches import Batch
from ccvf.bodies import BodyKind, make_body
from ccvf.confidence import check_deltas
from ccvf.layers import linear
from ccvf.learners import Learner, under
from ccvf.ope_estimates import ReturnEstimates, episode_starts, mean_over_starts
from ccvf.transitions import Transitions
from ccvf.values import ConfidenceValues

__all__ = ["FittedQEvaluation", "estimate_returns"]

_CHUNK = 4096  # first observations evaluated at a time


@final
class FittedQEvaluation(Learner):
    """Values of the greedy policies of a grid of confidences; train it like any learner, with `ccvf.training.train`.

    Args:
        values: The learnt values whose policies are evaluated; they stay as they are.
        deltas: The grid.
        observation_shape: Shape of one observation.
        gamma: Discount of one environment step.
        seed: Seed of the weights.
        body: Kind of the body (see `ccvf.bodies.make_body`).
        n_states: Number of states where observations are state numbers.
        hidden: Widths of the layers, for body "mlp".
        learning_rate: Of Adam.
        target_every: Updates between two copies into the target network.
        clip: Largest norm of a gradient.
        device: Where it computes.

    Raises:
        ValueError: If a number is out of range or the body does not suit the observations.
    """

    def __init__(
        self,
        values: ConfidenceValues,
        deltas: Iterable[SupportsFloat],
        observation_shape: tuple[int, ...],
        *,
        gamma: SupportsFloat,
        seed: SupportsInt = 0,
        body: BodyKind | str = "auto",
        n_states: int | None = None,
        hidden: tuple[int, ...] = (256, 256),
        learning_rate: SupportsFloat = 3e-4,
        target_every: SupportsInt = 200,
        clip: SupportsFloat = 10.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.evaluated, self.deltas = values, check_deltas(deltas)
        self.observation_shape, self.n_actions = tuple(observation_shape), values.n_actions
        self.gamma, self._device, self.updates = float(gamma), torch.device(device), 0
        self.target_every, self.clip = int(target_every), float(clip)
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={gamma} is out of range: give a discount in [0, 1]")
        if self.target_every < 1 or not self.clip > 0 or not float(learning_rate) > 0:
            raise ValueError(f"target_every={target_every} is at least 1, learning_rate={learning_rate} and "
                             f"clip={clip} are above 0")  # fmt: skip
        generator = torch.Generator().manual_seed(int(seed))
        trunk = make_body(body, self.observation_shape, generator=generator, n_states=n_states, hidden=hidden)
        head = linear(trunk.features, len(self.deltas) * self.n_actions, generator)
        self.network = nn.Sequential(trunk, head).to(self.device)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=float(learning_rate), fused=True)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on the mean squared error over confidences (see `Learner.update`)."""
        chosen = self._greedy(batch.next_observations)
        with torch.no_grad():
            ahead = self._values(self.target, batch.next_observations).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
            wanted = batch.rewards.unsqueeze(-1) + batch.discounts(self.gamma).unsqueeze(-1) * ahead
        q = self._values(self.network, batch.observations)
        said = q.gather(-1, batch.actions[:, None, None].expand(-1, q.shape[1], 1)).squeeze(-1)
        loss = (said - wanted).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.updates += 1
        if self.updates % self.target_every == 0:
            self.target.load_state_dict(self.network.state_dict())
        return {"loss": loss.detach(), "gradient_norm": norm.detach(), "mean_value": said.detach().mean()}

    def values(
        self, observations: Shaped[Tensor, "batch ..."], deltas: Float[Tensor, " confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values at confidences of the grid (see `Learner.values`).

        Raises:
            ValueError: If a confidence is not on the grid.
        """
        grid = torch.as_tensor(self.deltas, device=deltas.device)
        near = (grid.log() - deltas.double().log()[:, None]).abs()
        gap, place = near.min(-1)
        if bool((gap > 1e-4).any()):
            raise ValueError(
                f"evaluated at {self.deltas.tolist()}; {deltas.tolist()} asked for: make it with that grid"
            )
        with torch.no_grad():
            return self._values(self.network, observations)[:, place.to(self.device)]

    def returns(self, observations: np.ndarray) -> Float[np.ndarray, "batch confidences"]:
        """Estimated return of each policy from each observation.

        Args:
            observations: (batch, *observation shape).

        Returns:
            Values of what the policy of each confidence does first.
        """
        found = []
        for start in range(0, len(observations), _CHUNK):
            part = torch.as_tensor(np.ascontiguousarray(observations[start : start + _CHUNK]), device=self.device)
            with torch.no_grad():
                q = self._values(self.network, part)
                found.append(q.gather(-1, self._greedy(part).unsqueeze(-1)).squeeze(-1).double().cpu().numpy())
        return np.concatenate(found)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that exact resumption needs (see `Learner.state`)."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"target.{k}": v for k, v in self.target.state_dict().items()}
        for place, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        tensors = {name: value.clone() for name, value in tensors.items()}  # what was saved must not go on learning
        return tensors, {"learner": "fitted-q-evaluation", "updates": self.updates, "deltas": self.deltas.tolist()}

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state` (see `Learner.restore`)."""
        if extra.get("learner") != "fitted-q-evaluation" or extra["deltas"] != self.deltas.tolist():
            raise ValueError(f"the state is of {extra.get('learner')!r} at {extra.get('deltas')}; this evaluates "
                             f"{self.deltas.tolist()}: make it as it was")  # fmt: skip
        for name, module in (("network", self.network), ("target", self.target)):
            module.load_state_dict(under(tensors, f"{name}."))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in under(tensors, "optimizer.").items():
            place, _, name = key.partition(".")
            moments.setdefault(int(place), {})[name] = value.clone()  # the optimiser keeps what it is given
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.updates = int(extra["updates"])

    def _values(self, network: nn.Module, observations: Tensor) -> Tensor:
        return network(observations).unflatten(-1, (len(self.deltas), self.n_actions))

    def _greedy(self, observations: Tensor) -> Tensor:
        """What the policy of each confidence does: (batch, confidences)."""
        if isinstance(self.evaluated, Learner):
            grid = torch.as_tensor(self.deltas, dtype=torch.float32, device=self.evaluated.device)
            return self.evaluated.values(observations.to(self.evaluated.device), grid).argmax(-1).to(self.device)
        best = self.evaluated.q_values(observations.cpu().numpy(), self.deltas).argmax(-1)
        return torch.as_tensor(best, device=self.device)


def estimate_returns(
    evaluation: FittedQEvaluation,
    data: Transitions,
    *,
    starts: Bool[np.ndarray, " transitions"] | None = None,
    seed: SupportsInt = 0,
    confidence: SupportsFloat = 0.95,
) -> ReturnEstimates:
    """Estimated return of each policy from the episode starts of a log, with intervals over them.

    Args:
        evaluation: A trained evaluation.
        data: The log.
        starts: Which transitions are starts; None: the first of each episode.
        seed: Seed of the intervals.
        confidence: Nominal coverage.

    Returns:
        The estimates; the intervals hold which starts were drawn, not the errors of the fit.

    Raises:
        ValueError: If there is no start.
    """
    rows = episode_starts(data) if starts is None else starts
    if not rows.any():
        raise ValueError("no transition is a start: give at least one")
    found = evaluation.returns(data.observations(rows))
    return mean_over_starts(evaluation.deltas, found, method="fitted Q evaluation", seed=seed, confidence=confidence)
