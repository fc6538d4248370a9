"""Ensemble variance: how far regressors disagree that were trained on the same pairs with independent noise."""

from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ccvf.logged_pairs import check_kind, check_unseen, need_fit, pair_chunks, regress, without_autocast
from ccvf.penalties import Bonus
from ccvf.standard_bodies import make_pair_network, make_standard_body, standardise
from ccvf.transitions import Transitions

__all__ = ["EnsembleVariance"]


@final
class EnsembleVariance(Bonus):
    r"""Spread $\sqrt{\frac1K \sum_k f_k(s,a)^2}$ of K regressors of coin flips; $1/\sqrt{n}$ where they fit.

    Bootstrapped predictors of rewards or next states agree wherever outcomes are deterministic, however few were seen:
    their spread measures the outcome's noise as much as the count. Here every logged transition gets K fair coin flips
    of $\pm 1$ of its own, and member k is trained on its flips. The best it can say of a pair is their mean over n
    visits, of variance 1/n whatever the environment. To each member a fixed random function is added, scaled to
    variance 1 over the log: where nothing was learnt it stays, and the spread is about 1, that of a pair seen once.

    Flips take K bytes a transition while fitting.

    Args:
        members: K; the relative error of one estimate is about $1/\sqrt{2K}$.
        body: Kind of body (see `ccvf.bodies.make_body`), shared by the members.
        width: Width of its features.
        n_states: Number of states, where observations are their numbers.
        steps: Updates.
        batch_size: Pairs an update.
        learning_rate: Of Adam at first; it falls linearly to 0.
        unseen: Largest bonus, at least 1.
        device: Where it is fitted and asked.
        progress: Whether to show a bar while fitting.

    Raises:
        ValueError: If an option is out of range.

    Reference:
        Osband, Aslanides, Cassirer (2018). Randomized prior functions (arXiv:1806.03335), section 3;
        Lobel, Bagaria, Konidaris (2023). Flipping coins to estimate pseudocounts (arXiv:2306.03186), section 3.
    """

    kind: ClassVar[str] = "ensemble"

    def __init__(
        self,
        *,
        members: int = 32,
        body: str = "auto",
        width: int = 128,
        n_states: int | None = None,
        steps: int = 5000,
        batch_size: int = 256,
        learning_rate: SupportsFloat = 1e-3,
        unseen: SupportsFloat = 1.0,
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> None:
        if min(members, width, steps, batch_size) < 1 or not float(learning_rate) > 0:
            raise ValueError(f"members, width, steps and batch_size are at least 1 and learning_rate above 0; "
                             f"{members=}, {width=}, {steps=}, {batch_size=}, {learning_rate=} given")  # fmt: skip
        self.members, self.body_kind, self.width, self.n_states = members, body, width, n_states
        self.steps, self.batch_size, self.learning_rate = steps, batch_size, float(learning_rate)
        self.unseen, self.device, self.progress = check_unseen(unseen), torch.device(device), progress
        self._networks: nn.ModuleDict | None = None
        self._prior: tuple[Tensor, Tensor] | None = None
        self._shape: tuple[int, ...] = ()
        self._actions = 0

    def fit(self, data: Transitions, generator: torch.Generator) -> "EnsembleVariance":
        """Train on the log (see `Bonus.fit`); the generator draws networks, flips and the order of the pairs."""
        self._shape, self._actions = tuple(data.observation_shape), data.n_actions
        networks = self._build(generator)
        standardise(networks, data)
        self._prior = self._prior_moments(data)
        flips = self.flips(len(data), generator).to(self.device)

        def error(observations: Tensor, actions: Tensor, rows: Tensor) -> Tensor:
            said = self._members(observations).gather(2, actions[:, None, None].expand(-1, self.members, 1)).squeeze(2)
            return (said - flips[rows]).square().mean()

        regress(networks["learnt"].parameters(), error, data, steps=self.steps, batch_size=self.batch_size,
                learning_rate=self.learning_rate, generator=generator, device=self.device, progress=self.progress,
                what="ensemble variance")  # fmt: skip
        networks.requires_grad_(False)
        return self

    def flips(self, size: int, generator: torch.Generator) -> Shaped[Tensor, "size members"]:
        """Coin flips of every transition.

        Args:
            size: Number of transitions.
            generator: Source of randomness.

        Returns:
            1 or -1, int8.
        """
        drawn = torch.randint(2, (size, self.members), generator=generator, device=generator.device, dtype=torch.int8)
        return 2 * drawn - 1

    @torch.no_grad()
    def __call__(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        """The estimate for every action (see `Bonus.__call__`)."""
        need_fit(self._prior)
        with without_autocast(self.device):
            spread = self._members(observations.to(self.device)).square().mean(1).sqrt()
            return spread.clamp_max(self.unseen)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs (see `Bonus.state`)."""
        need_fit(self._prior)
        assert self._networks is not None
        assert self._prior is not None
        tensors = {f"networks.{name}": value for name, value in self._networks.state_dict().items()}
        tensors |= {"prior.mean": self._prior[0], "prior.deviation": self._prior[1]}
        return tensors, {
            "bonus": self.kind,
            "members": self.members,
            "body": self.body_kind,
            "width": self.width,
            "n_states": self.n_states,
            "unseen": self.unseen,
            "observation_shape": list(self._shape),
            "n_actions": self._actions,
        }

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state` (see `Bonus.restore`)."""
        check_kind(extra, self.kind)
        self.members, self.body_kind, self.width = extra["members"], extra["body"], extra["width"]
        self.n_states, self.unseen = extra["n_states"], check_unseen(extra["unseen"])
        self._shape, self._actions = tuple(extra["observation_shape"]), extra["n_actions"]
        weights = {name[9:]: value for name, value in tensors.items() if name.startswith("networks.")}
        self._build(torch.Generator()).requires_grad_(False).load_state_dict(weights)
        self._prior = tensors["prior.mean"].to(self.device), tensors["prior.deviation"].to(self.device)

    def _members(self, observations: Tensor) -> Tensor:
        assert self._networks is not None
        assert self._prior is not None
        mean, deviation = self._prior
        return (self._networks["fixed"](observations) - mean) / deviation + self._networks["learnt"](observations)

    @torch.no_grad()
    def _prior_moments(self, data: Transitions) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the fixed functions over the log's observations, (members, actions)."""
        assert self._networks is not None
        fixed = self._networks["fixed"]
        with without_autocast(self.device):
            sums = torch.stack([fixed(x).double().sum(0) for x, _ in pair_chunks(data, self.device)]).sum(0)
            mean = sums / len(data)
            squares = [(fixed(x) - mean).square().sum(0) for x, _ in pair_chunks(data, self.device)]
        deviation = (torch.stack(squares).sum(0) / len(data)).sqrt()
        return mean.float(), torch.where(deviation > 1e-6, deviation, 1.0).float()

    def _build(self, generator: torch.Generator) -> nn.ModuleDict:
        def network() -> nn.Module:
            body = make_standard_body(
                self._shape, body=self.body_kind, width=self.width, n_states=self.n_states, generator=generator
            )
            return make_pair_network(body, self._actions, self.members, generator)

        self._networks = nn.ModuleDict({"learnt": network(), "fixed": network()}).to(self.device)
        self._networks["fixed"].requires_grad_(False)
        return self._networks
