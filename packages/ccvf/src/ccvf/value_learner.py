"""The part of a learner that all methods share: networks and their targets, optimiser, precision, exact state."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ccvf.batches import Batch
from ccvf.confidence import check_deltas
from ccvf.configs import LearnerConfig
from ccvf.learners import Learner, under
from ccvf.networks import soft_update, target_copy

__all__ = ["C", "Drawn", "ValueLearner"]


C = TypeVar("C", bound=LearnerConfig)


class Drawn(NamedTuple):
    """All that the loss of one update is a function of, beside the networks.

    Attributes:
        observations: (batch, *observation shape).
        actions: (batch,).
        rewards: (batch,).
        discounts: (batch,), 0 where no future follows.
        next_observations: (batch, *observation shape).
        noise: What `ValueLearner.draw` gave.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    next_observations: Tensor
    noise: tuple[Tensor, ...] = ()


class ValueLearner(Learner, Generic[C]):
    """A learner whose methods differ in their networks, their loss and their reading of the values.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        config: Settings.
        generator: Source of initial weights and of all draws while training, on the CPU; seeded by 0 if None.
        device: Where to compute; the CPU if None.

    Raises:
        ValueError: If there are fewer than two actions, or the trunk does not fit the observations.
    """

    kind: ClassVar[str]
    config: C

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        n_actions: int,
        config: C,
        *,
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if n_actions < 2:
            raise ValueError(f"n_actions is {n_actions}; there is something to choose from 2 actions on")
        self.observation_shape, self.n_actions = tuple(observation_shape), int(n_actions)
        self.config, self.gamma, self.updates = config, config.gamma, 0
        self._device = torch.device("cpu" if device is None else device)
        given = generator if generator is not None else torch.Generator().manual_seed(0)
        seed = int(torch.randint(2**62, (), generator=given))
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.online = nn.ModuleDict(self.build(given)).to(self.device)
        self.target = target_copy(self.online)
        self.optimiser = torch.optim.Adam(
            self.online.parameters(), lr=config.learning_rate, eps=config.adam_epsilon, fused=True
        )
        self._objective = self._compiled()

    def _compiled(self) -> Callable[[Drawn], tuple[Tensor, dict[str, Tensor]]]:
        return torch.compile(self.objective) if self.config.compile else self.objective

    def __getstate__(self) -> dict[str, Any]:
        # A compiled loss stays that of the learner it was made for, also in a copy: copies make their own.
        return {name: value for name, value in vars(self).items() if name != "_objective"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._objective = self._compiled()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @abstractmethod
    def build(self, generator: torch.Generator) -> dict[str, nn.Module]:
        """The networks by name, with weights drawn from the generator."""

    @abstractmethod
    def objective(
        self,
        step: Drawn,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of a batch and figures of it; pure but for the networks it reads.

        Args:
            step: The batch and what was drawn for it.

        Returns:
            The loss, and 0-d tensors without gradient.
        """

    # Most methods draw nothing.
    def draw(self, batch: Batch) -> tuple[Tensor, ...]:
        """Random numbers and side values of one update, made outside what is compiled."""
        return ()

    def autocast(self) -> Any:
        """The precision of the trunks."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.amp else nullcontext()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step (see `Learner.update`)."""
        rewards = batch.rewards.sign() if self.config.clip_rewards else batch.rewards
        with self.autocast():
            step = Drawn(batch.observations, batch.actions, rewards, batch.discounts(self.gamma),
                         batch.next_observations, self.draw(batch))  # fmt: skip
            loss, metrics = self._objective(step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_gradient is not None:
            norm = nn.utils.clip_grad_norm_(self.online.parameters(), self.config.clip_gradient)
            metrics["gradient"] = norm.detach()
        self.optimiser.step()
        self.updates += 1
        if self.updates % self.config.target_period == 0:
            soft_update(self.target, self.online, self.config.tau)
        return {"loss": loss.detach(), **metrics}

    @torch.no_grad()
    def values(
        self, observations: Shaped[Tensor, "batch ..."], deltas: Float[Tensor, " confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values of a batch on the device (see `Learner.values`)."""
        with self.autocast():
            found = self.read(observations, deltas).float()
        return found.expand(-1, len(deltas), -1)

    def checked(self, observations: Any) -> Shaped[Tensor, "batch ..."]:
        """Observations on the device.

        Args:
            observations: (batch, *observation shape), tensor or array.

        Returns:
            A tensor.

        Raises:
            ValueError: If the shape is another.
        """
        found = torch.as_tensor(observations, device=self.device)
        if tuple(found.shape[1:]) != self.observation_shape or found.ndim == 0:
            wanted = ("batch", *self.observation_shape)
            raise ValueError(f"observations have shape {tuple(found.shape)}; give {wanted}, a batch first")
        return found

    def checked_deltas(self, deltas: Any) -> Float[Tensor, " confidences"]:
        """Confidences on the device.

        Args:
            deltas: One or several confidences in (0, 1].

        Returns:
            A float32 tensor.

        Raises:
            ValueError: If one is outside (0, 1].
        """
        given = deltas.detach().cpu().numpy() if isinstance(deltas, Tensor) else deltas
        return torch.as_tensor(check_deltas(given), dtype=torch.float32, device=self.device)

    @abstractmethod
    def read(self, observations: Tensor, deltas: Tensor) -> Tensor:
        """Values (batch, confidences or 1, actions) of the online networks."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that exact resumption needs (see `Learner.state`)."""
        tensors = {f"online.{name}": value for name, value in self.online.state_dict().items()}
        tensors |= {f"target.{name}": value for name, value in self.target.state_dict().items()}
        for number, entries in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in entries.items()}
        tensors["generator"] = self.generator.get_state()
        # Copies: what was saved must not go on learning.
        return {name: value.clone() for name, value in tensors.items()}, {
            "kind": self.kind,
            "config": asdict(self.config),
            "observation_shape": list(self.observation_shape),
            "n_actions": self.n_actions,
            "updates": self.updates,
        }

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state` (see `Learner.restore`)."""
        own = {
            "kind": self.kind,
            "observation_shape": list(self.observation_shape),
            "n_actions": self.n_actions,
        } | _plain(asdict(self.config))
        saved = {name: extra[name] for name in ("kind", "observation_shape", "n_actions")} | _plain(extra["config"])
        names = [*own, *(name for name in saved if name not in own)]
        differ = [f"{name} {saved.get(name)!r} (here {own.get(name)!r})" for name in names
                  if name not in _FREE and saved.get(name) != own.get(name)]  # fmt: skip
        if differ:
            raise ValueError(f"the saved learner has {', '.join(differ)}; make this one alike, or start afresh")
        self.online.load_state_dict(under(tensors, "online."))
        self.target.load_state_dict(under(tensors, "target."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in under(tensors, "optimiser.").items():
            number, entry = name.split(".", 1)
            moments.setdefault(int(number), {})[entry] = value.clone()  # the optimiser keeps what it is given
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        kept = tensors["generator"].cpu()
        if kept.numel() == self.generator.get_state().numel():  # a generator of another kind of device has another
            self.generator.set_state(kept)
        self.updates = int(extra["updates"])


# How it is computed may differ between a run and its continuation: what is computed may not.
_FREE = ("compile",)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
