"""Confidence-conditioned value learning with networks: values at every confidence from one training."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ccvf.batches import Batch
from ccvf.bodies import make_body
from ccvf.confidence import conservatism
from ccvf.configs import CCVLConfig
from ccvf.heads import CosineHead, MonotoneHead, monotonicity_hinge
from ccvf.learners import under
from ccvf.networks import ConfidenceNetwork
from ccvf.objectives import (
    best_next,
    conservative_gap,
    split_confidences,
    stratified_u,
    take,
    td_loss,
)
from ccvf.penalties import Bonus
from ccvf.value_learner import Drawn, ValueLearner

__all__ = ["DeepCCVL"]


@final
class DeepCCVL(ValueLearner[CCVLConfig]):
    r"""Confidence-conditioned values of discrete actions, learnt for all confidences at once.

    Each update trains `config.confidences` confidences per sample, drawn stratified and uniform in
    $u = \sqrt{\log(1/\delta)}$; the trunk is evaluated once for all of them. With method "cql" the loss is the mean
    over confidences of $\mathrm{TD}(\delta) + \alpha u(\delta)(\log\sum_a e^{Q(s,a,\delta)} - Q(s,a_{\log},\delta))$;
    with method "bonus" the backup takes $\alpha u(\delta_1)\, b(s, a)$ off, where b stands for $1/\sqrt{n}$.

    Args:
        observation_shape: Shape of one observation.
        n_actions: Number of actions, at least 2.
        config: Settings; the defaults if None.
        bonus: For method "bonus": the fitted estimate of $1/\sqrt{n}$.
        generator: Source of initial weights and of all draws while training, on the CPU; seeded by 0 if None.
        device: Where to compute; the CPU if None.

    Raises:
        ValueError: If the method needs a bonus and there is none, or the other way round, or shapes do not fit.

    Reference:
        Hong, Kumar, Levine (2023), sections 4 and 5.

    Example:
        >>> learner = DeepCCVL((4,), 2, CCVLConfig(hidden=(32,)))
        >>> q = learner.q(torch.zeros(1, 4), [0.01, 0.1, 1.0])
        >>> q.shape, bool((q.diff(dim=1) >= 0).all())
        (torch.Size([1, 3, 2]), True)
    """

    kind: ClassVar[str] = "ccvl"

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        n_actions: int,
        config: CCVLConfig | None = None,
        *,
        bonus: Bonus | None = None,
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        config = config if config is not None else CCVLConfig()
        if (config.method == "bonus") != (bonus is not None):
            raise ValueError(f"method {config.method!r} and {'a' if bonus is not None else 'no'} bonus: method 'bonus' "
                             "needs one, fitted on the log; method 'cql' takes none")  # fmt: skip
        self.bonus = bonus
        self.largest_u = float(conservatism(config.smallest)[0])
        super().__init__(observation_shape, n_actions, config, generator=generator, device=device)

    def build(self, generator: torch.Generator) -> dict[str, nn.Module]:
        """One network: trunk and head."""
        config = self.config
        body = make_body(
            config.body, self.observation_shape, n_states=config.n_states, hidden=config.hidden, generator=generator
        )
        if config.head == "monotone":
            head = MonotoneHead(
                body.features, self.n_actions, smallest=config.smallest, knots=config.knots, generator=generator
            )
        else:
            head = CosineHead(
                body.features, self.n_actions, variable="u", smallest=config.smallest, generator=generator
            )
        return {"q": ConfidenceNetwork(body, head)}

    def network(self, which: Literal["online", "target"]) -> ConfidenceNetwork:
        """The trained network, or the one that targets are computed by."""
        return cast("ConfidenceNetwork", getattr(self, which)["q"])

    def draw(self, batch: Batch) -> tuple[Tensor, ...]:
        """Confidences, positions of the splits in their strata, and the bonuses of both observations."""
        config = self.config
        u = stratified_u(len(batch.actions), config.confidences, self.largest_u, self.generator)
        if self.bonus is None:
            return (u,)
        noise = torch.rand(config.splits, generator=self.generator, device=self.device)
        if config.penalise == "rewards":
            here = self.bonus(batch.observations).gather(1, batch.actions[:, None]).squeeze(1)
            return u, noise, here
        return u, noise, self._charged(batch.next_observations)

    def objective(
        self,
        step: Drawn,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss over all confidences drawn (see `ValueLearner.objective`)."""
        u, network, config = step.noise[0], self.network("online"), self.config
        apart, deltas = config.method == "cql" and not config.lift, torch.exp(-u.square())
        if apart:
            deltas = torch.cat([torch.ones_like(deltas[:, :1]), deltas], 1)
        with torch.no_grad():
            target = self.backup(step.rewards, step.discounts, step.next_observations, deltas, step.noise[1:])
        features = network.encode(step.observations)
        q = _apart(network, features, deltas) if apart else network.decode(features, deltas)
        predicted = take(q, step.actions)
        # Where delta = 1 is learnt apart, its error counts as much as that of all the others together.
        parts = (slice(1), slice(1, None)) if apart else (slice(None),)
        td = torch.stack([td_loss(predicted[:, part], target[:, part], config.huber) for part in parts]).sum()
        loss, metrics = td, {"td": td.detach(), "q_sure": predicted[:, -1].mean().detach(),
                             "q_free": predicted[:, 0].mean().detach()}  # fmt: skip
        if config.method == "cql":
            gap = conservative_gap(q[:, 1:] if apart else q, step.actions)
            loss = loss + config.alpha * (u * gap).mean()
            metrics["gap"] = gap.mean().detach()
        if config.hinge:
            loss = loss + config.hinge * monotonicity_hinge(q, deltas)
        return loss, metrics

    def backup(
        self, rewards: Tensor, discounts: Tensor, next_observations: Tensor, deltas: Tensor, noise: tuple[Tensor, ...]
    ) -> Float[Tensor, "batch confidences"]:
        """The backed-up values of logged transitions."""
        online, target, config = self.network("online"), self.network("target"), self.config
        features = target.encode(next_observations)
        own = online.encode(next_observations) if config.double else features
        chooser = online if config.double else target
        if not noise:
            future = best_next(chooser.decode(own, deltas), target.decode(features, deltas))
            return rewards[:, None] + discounts[:, None] * future
        shifts, bonus = noise
        first, rest = split_confidences(deltas, shifts, config.budget, config.smallest)
        batch, confidences, splits = rest.shape
        shape = (batch, confidences, splits, self.n_actions)
        chosen = chooser.decode(own, rest.flatten(1)).view(shape)
        judged = target.decode(features, rest.flatten(1)).view(shape) if config.double else chosen
        cost = config.alpha * torch.sqrt(-torch.log(first))
        if config.penalise == "rewards":
            future = best_next(chosen.flatten(1, 2), judged.flatten(1, 2)).view(rest.shape)
            backed = rewards[:, None, None] - cost * bonus[:, None, None] + discounts[:, None, None] * future
            return backed.amax(-1)
        penalty = cost[..., None] * bonus[:, None, None, :]
        future = best_next((chosen - penalty).flatten(2), (judged - penalty).flatten(2))
        return rewards[:, None] + discounts[:, None] * future

    def read(self, observations: Tensor, deltas: Tensor) -> Tensor:
        """Values at the confidences; with a bonus on values, less what the best split costs."""
        network, config = self.network("online"), self.config
        features = network.encode(observations)
        if self.bonus is None or config.penalise == "rewards":
            return network.decode(features, deltas)
        middle = torch.full((config.splits,), 0.5, device=self.device)
        first, rest = split_confidences(deltas[None], middle, config.budget, config.smallest)
        q = network.decode(features, rest.flatten()).unflatten(1, rest.shape[1:])
        cost = config.alpha * torch.sqrt(-torch.log(first))
        return (q - cost[..., None] * self._charged(observations)[:, None, None, :]).amax(2)

    def _charged(self, observations: Tensor) -> Float[Tensor, "batch actions"]:
        """What every action is charged for, per unit of u and alpha."""
        assert self.bonus is not None
        found = self.bonus(observations)
        return found - found.amin(-1, keepdim=True) if self.config.relative else found

    def q(self, observations: Any, deltas: Any) -> Float[Tensor, "batch confidences actions"]:
        """Values of a batch of observations at the given confidences.

        Args:
            observations: (batch, *observation shape), tensor or array.
            deltas: One or several confidences in (0, 1].

        Returns:
            Values, float32, on the learner's device.

        Raises:
            ValueError: If a confidence is outside (0, 1], or the observations have another shape.
        """
        return self.values(self.checked(observations), self.checked_deltas(deltas))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that exact resumption needs, with the bonus (see `Learner.state`)."""
        tensors, extra = super().state()
        if self.bonus is not None:
            more, about = self.bonus.state()
            tensors |= {f"bonus.{name}": value for name, value in more.items()}
            extra["bonus"] = about
        return tensors, extra

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state` (see `Learner.restore`)."""
        super().restore(tensors, extra)
        if self.bonus is not None:
            self.bonus.restore(under(tensors, "bonus."), extra["bonus"])


def _apart(network: ConfidenceNetwork, features: Tensor, deltas: Tensor) -> Float[Tensor, "batch confidences actions"]:
    """Values at delta = 1, which comes first, and at the rest, whose gradient moves only what the head takes off those.

    Else errors at small confidences, which the regulariser keeps up, would lift the values at delta = 1 until they
    cancel on average, and bootstrapping would multiply that.
    """
    free = network.decode(features, deltas[:, :1])
    q, same = network.decode_with_free(features.detach(), deltas[:, 1:])
    return torch.cat([free, q - (same - same.detach())], 1)
