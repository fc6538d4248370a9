"""Counts by how often the log's own behaviour takes an action: what a policy learnt from the log says of each."""

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ccvf.logged_pairs import check_kind, check_unseen, logged_median, need_fit, without_autocast
from ccvf.penalties import Bonus
from ccvf.progress import bar
from ccvf.reference_counts import reference_counts
from ccvf.sampling import Sampler
from ccvf.standard_bodies import make_pair_network, make_standard_body, standardise
from ccvf.transitions import Transitions

__all__ = ["BehaviourCounts"]

_LOOKS = 25  # times that the held-out part is looked at


@final
class BehaviourCounts(Bonus):
    r"""Pseudo-counts $n(s, a) = \bar n\, \hat\pi(a | s)$ of a behaviour learnt from the log.

    The policy is trained by cross-entropy on nine tenths of the log; the weights that predict the other tenth best are
    kept, so that a small log is not learnt by heart. $\bar n$ makes the median over logged pairs that of
    `reference_counts`. Where logged observations hardly repeat, this tells familiar from unfamiliar actions, which
    counts of observations cannot.

    Args:
        body: Kind of body (see `ccvf.bodies.make_body`).
        width: Width of its features.
        n_states: Number of states, where observations are their numbers.
        steps: Updates at most.
        batch_size: Pairs an update.
        learning_rate: Of Adam.
        unseen: Largest bonus, at least 1.
        device: Where it is fitted and asked.
        progress: Whether to show a bar while fitting.

    Raises:
        ValueError: If an option is out of range.

    Reference:
        A pair's count as that of its state times the share of its action; the behaviour as in Fujimoto et al. (2019),
        discrete BCQ (arXiv:1910.01708).
    """

    kind: ClassVar[str] = "behaviour"

    def __init__(
        self,
        *,
        body: str = "auto",
        width: int = 128,
        n_states: int | None = None,
        steps: int = 3000,
        batch_size: int = 128,
        learning_rate: SupportsFloat = 1e-3,
        unseen: SupportsFloat = 10.0,
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> None:
        if min(width, steps, batch_size) < 1 or not float(learning_rate) > 0:
            raise ValueError(f"width, steps and batch_size are at least 1 and learning_rate above 0; "
                             f"{width=}, {steps=}, {batch_size=}, {learning_rate=} given")  # fmt: skip
        self.body_kind, self.width, self.n_states = body, width, n_states
        self.steps, self.batch_size, self.learning_rate = steps, batch_size, float(learning_rate)
        self.unseen, self.device, self.progress = check_unseen(unseen), torch.device(device), progress
        self._network: nn.Module | None = None
        self._scale = 1.0
        self._shape: tuple[int, ...] = ()
        self._actions = 0

    def fit(self, data: Transitions, generator: torch.Generator) -> "BehaviourCounts":
        """Learn the behaviour (see `Bonus.fit`); the generator draws counts, weights, the part held out and batches."""
        wanted = logged_median(reference_counts(data, generator, self.device), data, self.device)
        self._shape, self._actions = tuple(data.observation_shape), data.n_actions
        network = self._build(generator)
        standardise(network, data)
        rows = torch.randperm(len(data), generator=generator).numpy()
        held = data.select(rows[: max(1, len(rows) // 10)])
        kept = data.select(rows[len(rows) // 10 :])
        self._learn(network, kept, held, generator)
        network.requires_grad_(False)
        self._scale = 1.0
        found = logged_median(self._rarity, data, self.device)
        self._scale = wanted / found
        return self

    @torch.no_grad()
    def __call__(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        """The estimate for every action (see `Bonus.__call__`)."""
        return self._rarity(observations).clamp_max(self.unseen)

    @torch.no_grad()
    def log_behaviour(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        """Log-probabilities of the behaviour.

        Args:
            observations: As in the log.

        Returns:
            Natural logarithms, float32.
        """
        need_fit(self._network)
        assert self._network is not None
        with without_autocast(self.device):
            return self._network(observations.to(self.device))[:, 0].log_softmax(-1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs (see `Bonus.state`)."""
        need_fit(self._network)
        assert self._network is not None
        return dict(self._network.state_dict()), {
            "bonus": self.kind,
            "body": self.body_kind,
            "width": self.width,
            "n_states": self.n_states,
            "unseen": self.unseen,
            "scale": self._scale,
            "observation_shape": list(self._shape),
            "n_actions": self._actions,
        }

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state` (see `Bonus.restore`)."""
        check_kind(extra, self.kind)
        self.body_kind, self.width, self.n_states = extra["body"], extra["width"], extra["n_states"]
        self.unseen, self._scale = check_unseen(extra["unseen"]), float(extra["scale"])
        self._shape, self._actions = tuple(extra["observation_shape"]), extra["n_actions"]
        self._build(torch.Generator()).requires_grad_(False).load_state_dict(tensors)

    def _rarity(self, observations: Tensor) -> Tensor:
        return self._scale * torch.exp(-0.5 * self.log_behaviour(observations))

    def _build(self, generator: torch.Generator) -> nn.Module:
        body = make_standard_body(
            self._shape, body=self.body_kind, width=self.width, n_states=self.n_states, generator=generator
        )
        self._network = make_pair_network(body, self._actions, 1, generator).to(self.device)
        return self._network

    def _learn(self, network: nn.Module, kept: Transitions, held: Transitions, generator: torch.Generator) -> None:
        """Train until `steps`, and go back to the weights that predicted the held-out part best."""
        sampler = Sampler(kept, min(self.batch_size, len(kept)), generator, self.device, shuffle="epochs")
        judge = Sampler(held, 1, torch.Generator(), self.device)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        best, weights = math.inf, copy.deepcopy(network.state_dict())
        span = max(1, self.steps // _LOOKS)
        with torch.enable_grad(), without_autocast(self.device), bar(self.progress, "behaviour", self.steps) as show:
            for step in range(1, self.steps + 1):
                batch = sampler.next()
                loss = functional.cross_entropy(network(batch.observations)[:, 0], batch.actions)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                if step % span == 0 or step == self.steps:
                    found = _cross_entropy(network, judge, len(held))
                    if found < best:
                        best, weights = found, copy.deepcopy(network.state_dict())
                    show(step, f"held-out cross-entropy {best:.3f} nats")
        network.load_state_dict(weights)


@torch.no_grad()
def _cross_entropy(network: nn.Module, sampler: Sampler, size: int) -> float:
    total = 0.0
    for rows in torch.arange(size).split(4096):
        batch = sampler.take(rows)
        total += float(functional.cross_entropy(network(batch.observations)[:, 0], batch.actions, reduction="sum"))
    return total / size
