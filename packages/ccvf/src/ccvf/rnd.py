"""Random network distillation: a network learns on logged pairs what a random one says; its error is the estimate."""

from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ccvf.logged_pairs import (
    check_kind,
    check_unseen,
    logged_median,
    need_fit,
    regress,
    without_autocast,
)
from ccvf.penalties import Bonus
from ccvf.reference_counts import reference_counts
from ccvf.standard_bodies import make_pair_network, make_standard_body, standardise
from ccvf.transitions import Transitions

__all__ = ["RandomDistillation"]


@final
class RandomDistillation(Bonus):
    r"""Root mean squared error of a network that was trained on the logged pairs to repeat a random one.

    Both give K numbers for each pair of observation and action; those of actions that were not logged stay wrong. An
    error has no count in it: it is scaled so that its median over the logged pairs is that of `reference_counts`, and
    cut at `unseen`.

    Args:
        outputs: Numbers K that are repeated.
        body: Kind of body (see `ccvf.bodies.make_body`).
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
        Burda et al. (2019). Exploration by random network distillation (arXiv:1810.12894), section 2.2.
    """

    kind: ClassVar[str] = "rnd"

    def __init__(
        self,
        *,
        outputs: int = 32,
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
        if min(outputs, width, steps, batch_size) < 1 or not float(learning_rate) > 0:
            raise ValueError(f"outputs, width, steps and batch_size are at least 1 and learning_rate above 0; "
                             f"{outputs=}, {width=}, {steps=}, {batch_size=}, {learning_rate=} given")  # fmt: skip
        self.outputs, self.body_kind, self.width, self.n_states = outputs, body, width, n_states
        self.steps, self.batch_size, self.learning_rate = steps, batch_size, float(learning_rate)
        self.unseen, self.device, self.progress = check_unseen(unseen), torch.device(device), progress
        self._networks: nn.ModuleDict | None = None
        self._scale = 1.0
        self._shape: tuple[int, ...] = ()
        self._actions = 0

    def fit(self, data: Transitions, generator: torch.Generator) -> "RandomDistillation":
        """Train on the log (see `Bonus.fit`); the generator draws the counts, both networks and batches."""
        wanted = logged_median(reference_counts(data, generator, self.device), data, self.device)
        self._shape, self._actions = tuple(data.observation_shape), data.n_actions
        networks = self._build(generator)
        standardise(networks, data)
        learnt, fixed = networks["learnt"], networks["fixed"]

        def error(observations: Tensor, actions: Tensor, rows: Tensor) -> Tensor:
            wrong = learnt(observations) - fixed(observations)
            return wrong.gather(2, actions[:, None, None].expand(-1, self.outputs, 1)).square().mean()

        regress(learnt.parameters(), error, data, steps=self.steps, batch_size=self.batch_size,
                learning_rate=self.learning_rate, generator=generator, device=self.device, progress=self.progress,
                what="random network distillation")  # fmt: skip
        learnt.requires_grad_(False)
        found = logged_median(self._error, data, self.device)
        self._scale = wanted / max(found, torch.finfo(torch.float32).tiny)
        return self

    @torch.no_grad()
    def __call__(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        """The estimate for every action (see `Bonus.__call__`)."""
        return (self._scale * self._error(observations)).clamp_max(self.unseen)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs (see `Bonus.state`)."""
        need_fit(self._networks)
        assert self._networks is not None
        return dict(self._networks.state_dict()), {
            "bonus": self.kind,
            "outputs": self.outputs,
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
        self.outputs, self.body_kind, self.width = extra["outputs"], extra["body"], extra["width"]
        self.n_states, self.unseen, self._scale = extra["n_states"], check_unseen(extra["unseen"]), extra["scale"]
        self._shape, self._actions = tuple(extra["observation_shape"]), extra["n_actions"]
        self._build(torch.Generator()).requires_grad_(False).load_state_dict(tensors)

    @torch.no_grad()
    def _error(self, observations: Tensor) -> Tensor:
        need_fit(self._networks)
        assert self._networks is not None
        observations = observations.to(self.device)
        with without_autocast(self.device):
            wrong = self._networks["learnt"](observations) - self._networks["fixed"](observations)
            return wrong.square().mean(1).sqrt()

    def _build(self, generator: torch.Generator) -> nn.ModuleDict:
        def network() -> nn.Module:
            body = make_standard_body(
                self._shape, body=self.body_kind, width=self.width, n_states=self.n_states, generator=generator
            )
            return make_pair_network(body, self._actions, self.outputs, generator)

        self._networks = nn.ModuleDict({"learnt": network(), "fixed": network()}).to(self.device)
        self._networks["fixed"].requires_grad_(False)
        return self._networks
