"""The learners people use today, in the same trainer: DQN, discrete CQL, REM, discrete IQL, behaviour cloning.

They know no confidence: their values are the same at every one.
"""

from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ccvf.batches import Batch
from ccvf.bodies import make_body
from ccvf.configs import BCConfig, CQLConfig, DQNConfig, IQLConfig, LearnerConfig, REMConfig
from ccvf.heads import EnsembleHead, PlainHead
from ccvf.networks import ConfidenceNetwork, EnsembleNetwork
from ccvf.objectives import best_next, conservative_gap, expectile_loss, take, td_loss
from ccvf.value_learner import C, Drawn, ValueLearner

__all__ = ["DQN", "REM", "BehaviourCloning", "DiscreteCQL", "DiscreteIQL"]


def _network(
    learner: ValueLearner[Any], generator: torch.Generator, *, outputs: int | None = None, heads: int | None = None
) -> nn.Module:
    config = learner.config
    body = make_body(
        config.body, learner.observation_shape, n_states=config.n_states, hidden=config.hidden, generator=generator
    )
    outputs = learner.n_actions if outputs is None else outputs
    if heads is not None:
        return EnsembleNetwork(body, EnsembleHead(body.features, outputs, heads=heads, generator=generator))
    return ConfidenceNetwork(body, PlainHead(body.features, outputs, generator=generator))


class _OneValue(ValueLearner[C]):
    """One network without confidence."""

    default: ClassVar[type[LearnerConfig]]

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        n_actions: int,
        config: C | None = None,
        *,
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        found = config if config is not None else self.default()
        if not isinstance(found, self.default):
            raise TypeError(f"config is a {type(found).__name__}; {type(self).__name__} takes {self.default.__name__}")
        super().__init__(observation_shape, n_actions, cast("C", found), generator=generator, device=device)

    def build(self, generator: torch.Generator) -> dict[str, nn.Module]:
        """One network: trunk and a linear head."""
        return {"q": _network(self, generator)}

    def read(self, observations: Tensor, deltas: Tensor) -> Tensor:
        """Values, the same at every confidence."""
        return self.ask("online", "q", observations)

    def ask(
        self, which: Literal["online", "target"], name: str, observations: Tensor
    ) -> Float[Tensor, "batch heads _"]:
        """What a network says, float32."""
        network = getattr(self, which)[name]
        if isinstance(network, EnsembleNetwork):
            return network(observations)
        return network(observations, observations.new_ones(1, dtype=torch.float32))

    def _one_step(self, step: Drawn) -> Float[Tensor, "batch heads"]:
        """Targets of (double) Q-learning."""
        judge = self.ask("target", "q", step.next_observations)
        chooser = self.ask("online", "q", step.next_observations) if self.config.double else judge
        return step.rewards[:, None] + step.discounts[:, None] * best_next(chooser, judge)


@final
class DQN(_OneValue[DQNConfig]):
    """DQN; double DQN with `config.double`.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        config: Settings; the defaults if None.
        generator: Source of initial weights, on the CPU; seeded by 0 if None.
        device: Where to compute; the CPU if None.

    Reference:
        Mnih et al. (2015); van Hasselt, Guez, Silver (2016).
    """

    kind: ClassVar[str] = "dqn"
    default = DQNConfig

    def objective(
        self,
        step: Drawn,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Temporal-difference loss (see `ValueLearner.objective`)."""
        with torch.no_grad():
            target = self._one_step(step)
        predicted = take(self.ask("online", "q", step.observations), step.actions)
        loss = td_loss(predicted, target, self.config.huber)
        return loss, {"td": loss.detach(), "q": predicted.mean().detach()}


@final
class DiscreteCQL(_OneValue[CQLConfig]):
    """Conservative Q-learning of discrete actions at one fixed weight alpha.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        config: Settings; the defaults if None.
        generator: Source of initial weights, on the CPU; seeded by 0 if None.
        device: Where to compute; the CPU if None.

    Reference:
        Kumar, Zhou, Tucker, Levine (2020), CQL(H).
    """

    kind: ClassVar[str] = "cql"
    default = CQLConfig

    def objective(
        self,
        step: Drawn,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Temporal-difference loss and the regulariser (see `ValueLearner.objective`)."""
        with torch.no_grad():
            target = self._one_step(step)
        q = self.ask("online", "q", step.observations)
        predicted = take(q, step.actions)
        td, gap = td_loss(predicted, target, self.config.huber), conservative_gap(q, step.actions).mean()
        return td + self.config.alpha * gap, {"td": td.detach(), "gap": gap.detach(), "q": predicted.mean().detach()}


@final
class REM(_OneValue[REMConfig]):
    """Random ensemble mixture: each update trains a random convex combination of many value heads.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        config: Settings; the defaults if None.
        generator: Source of initial weights and of the mixtures, on the CPU; seeded by 0 if None.
        device: Where to compute; the CPU if None.

    Reference:
        Agarwal, Schuurmans, Norouzi (2020), section 3.3.
    """

    kind: ClassVar[str] = "rem"
    default = REMConfig

    def build(self, generator: torch.Generator) -> dict[str, nn.Module]:
        """One network: trunk and many linear heads."""
        return {"q": _network(self, generator, heads=self.config.heads)}

    def draw(self, batch: Batch) -> tuple[Tensor, ...]:
        """The mixture of one update: uniform draws, normalised."""
        weights = torch.rand(self.config.heads, generator=self.generator, device=self.device)
        return (weights / weights.sum(),)

    def objective(
        self,
        step: Drawn,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Temporal-difference loss of the mixture (see `ValueLearner.objective`)."""
        (weights,) = step.noise  # sums, not products of matrices: autocast would round those to bfloat16
        with torch.no_grad():
            mixed = (weights[:, None] * self.ask("target", "q", step.next_observations)).sum(1)
            target = step.rewards + step.discounts * mixed.amax(-1)
        q = (weights[:, None] * self.ask("online", "q", step.observations)).sum(1)
        predicted = take(q[:, None], step.actions).squeeze(1)
        loss = td_loss(predicted, target, self.config.huber)
        return loss, {"td": loss.detach(), "q": predicted.mean().detach()}

    def read(self, observations: Tensor, deltas: Tensor) -> Tensor:
        """Mean of the heads."""
        return self.ask("online", "q", observations).mean(1, keepdim=True)


@final
class BehaviourCloning(_OneValue[BCConfig]):
    """Imitation of the log; its "values" are log-probabilities of the logged behaviour, not returns.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        config: Settings; the defaults if None.
        generator: Source of initial weights, on the CPU; seeded by 0 if None.
        device: Where to compute; the CPU if None.
    """

    kind: ClassVar[str] = "bc"
    default = BCConfig

    def objective(
        self,
        step: Drawn,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Cross-entropy of the logged actions (see `ValueLearner.objective`)."""
        loss = functional.cross_entropy(self.ask("online", "q", step.observations)[:, 0], step.actions)
        return loss, {"cross_entropy": loss.detach()}

    def read(self, observations: Tensor, deltas: Tensor) -> Tensor:
        """Log-probabilities of the actions."""
        return self.ask("online", "q", observations).log_softmax(-1)


@final
class DiscreteIQL(_OneValue[IQLConfig]):
    """Implicit Q-learning of discrete actions; it acts by the policy it extracts.

    `values` are the log-probabilities of that policy, not returns: values of actions outside the log are never learnt.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions.
        config: Settings; the defaults if None.
        generator: Source of initial weights, on the CPU; seeded by 0 if None.
        device: Where to compute; the CPU if None.

    Reference:
        Kostrikov, Nair, Levine (2022), equations 5 to 7.
    """

    kind: ClassVar[str] = "iql"
    default = IQLConfig

    def build(self, generator: torch.Generator) -> dict[str, nn.Module]:
        """Action values, state value and policy."""
        return {
            "q": _network(self, generator),
            "v": _network(self, generator, outputs=1),
            "policy": _network(self, generator),
        }

    def objective(
        self,
        step: Drawn,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Expectile, temporal-difference and weighted cloning losses (see `ValueLearner.objective`)."""
        config = self.config
        with torch.no_grad():
            logged = take(self.ask("target", "q", step.observations), step.actions)
            following = self.ask("online", "v", step.next_observations)[:, :, 0]
            target = step.rewards[:, None] + step.discounts[:, None] * following
        value = self.ask("online", "v", step.observations)[:, :, 0]
        advantage = logged - value.detach()
        weight = torch.exp(config.temperature * advantage).clamp(max=config.largest_weight).squeeze(1)
        td = td_loss(take(self.ask("online", "q", step.observations), step.actions), target, config.huber)
        expectile = expectile_loss(logged - value, config.expectile)
        logits = self.ask("online", "policy", step.observations)[:, 0]
        cloning = (weight * functional.cross_entropy(logits, step.actions, reduction="none")).mean()
        metrics = {"td": td.detach(), "expectile": expectile.detach(), "cloning": cloning.detach()}
        return td + expectile + cloning, metrics

    def read(self, observations: Tensor, deltas: Tensor) -> Tensor:
        """Log-probabilities of the extracted policy."""
        return self.ask("online", "policy", observations).log_softmax(-1)
