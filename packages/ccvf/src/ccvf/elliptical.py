"""Counts for features: how much of a pair's feature vector the logged vectors of that action span."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, SupportsFloat, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ccvf.logged_pairs import check_kind, check_unseen, need_fit, pair_chunks, without_autocast
from ccvf.penalties import Bonus
from ccvf.standard_bodies import StandardBody, make_standard_body, standardise
from ccvf.transitions import Transitions

__all__ = ["EllipticalBonus", "inverse_factor"]


def inverse_factor(gram: Float[Tensor, "*rows size size"], ridge: SupportsFloat) -> Float[Tensor, "*rows size size"]:
    r"""$L^{-1}$ of the Cholesky factor $L L^\top = \lambda I + \Phi^\top \Phi$: norms of $L^{-1}\phi$ are bonuses.

    Args:
        gram: $\Phi^\top \Phi$, float64.
        ridge: lambda, above 0.

    Returns:
        Lower triangular matrices.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + float(ridge) * identity)
    return torch.linalg.solve_triangular(factor, identity.expand_as(gram), upper=False)


@final
class EllipticalBonus(Bonus):
    r"""$\sqrt{\phi^\top (\lambda I + \Phi_a^\top \Phi_a)^{-1} \phi}$, with the features that were logged with action a.

    For one-hot features it is $1/\sqrt{n + \lambda}$. It is at most `unseen`; lambda = 1 gives 1 to vectors of length
    1 in a direction that was never logged, and a smaller lambda more.

    Features are, unless given: one-hot for state numbers (`n_states`); else those of a body with random weights, less
    their mean over the log, brought to length 1.

    Args:
        features: From a batch of observations to (batch, F); used as they are. They are not part of the state: restore
            into a bonus made with the same.
        ridge: lambda, above 0.
        unseen: Largest bonus, at least 1.
        n_states: Number of states, where observations are their numbers.
        body: Kind of the random body (see `ccvf.bodies.make_body`).
        width: Width of its features.
        device: Where it is asked.

    Raises:
        ValueError: If an option is out of range.

    Reference:
        Abbasi-Yadkori, Pál, Szepesvári (2011). Improved algorithms for linear stochastic bandits, theorem 2.
    """

    kind: ClassVar[str] = "elliptical"

    def __init__(
        self,
        features: Callable[[Tensor], Tensor] | None = None,
        *,
        ridge: SupportsFloat = 1.0,
        unseen: SupportsFloat = 1.0,
        n_states: int | None = None,
        body: str = "auto",
        width: int = 128,
        device: str | torch.device = "cpu",
    ) -> None:
        self.ridge, self.unseen, self.device = float(ridge), check_unseen(unseen), torch.device(device)
        if not 0 < self.ridge < float("inf") or width < 1:
            raise ValueError(f"ridge is a number above 0 and width at least 1; {ridge=}, {width=} given")
        self.given, self.n_states, self.body_kind, self.width = features, n_states, body, width
        self._body: StandardBody | None = None
        self._centre: Tensor | None = None
        self._factors: Tensor | None = None
        self._shape: tuple[int, ...] = ()

    def fit(self, data: Transitions, generator: torch.Generator) -> "EllipticalBonus":
        """Sum the log's features (see `Bonus.fit`); the generator draws the random body."""
        self._shape = tuple(data.observation_shape)
        if self.given is None:
            standardise(self._build(generator), data)
            self._centre = self._mean(data) if self.n_states is None else None
        gram = None
        for observations, actions in pair_chunks(data, self.device):
            phi = self.features(observations)
            if gram is None:
                gram = phi.new_zeros(data.n_actions, phi.shape[1], phi.shape[1])
            for action in range(data.n_actions):
                rows = phi[actions == action]
                gram[action] += rows.T @ rows
        assert gram is not None
        self._factors = inverse_factor(gram, self.ridge)
        return self

    @torch.no_grad()
    def features(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """The feature vectors phi.

        Args:
            observations: As in the log.

        Returns:
            Vectors, float64.
        """
        found = self._raw(observations.to(self.device)).double()
        return found if self._centre is None else F.normalize(found - self._centre, dim=1)

    @torch.no_grad()
    def __call__(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch actions"]:
        """The estimate for every action (see `Bonus.__call__`)."""
        need_fit(self._factors)
        assert self._factors is not None
        with without_autocast(self.device):
            whitened = self.features(observations) @ self._factors.flatten(0, 1).T
            return whitened.unflatten(1, self._factors.shape[:2]).norm(dim=2).clamp_max(self.unseen).float()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs, but for features that were given (see `Bonus.state`)."""
        need_fit(self._factors)
        assert self._factors is not None
        tensors = {"factors": self._factors} | ({} if self._centre is None else {"centre": self._centre})
        if self._body is not None:
            tensors |= {f"body.{name}": value for name, value in self._body.state_dict().items()}
        return tensors, {
            "bonus": self.kind,
            "ridge": self.ridge,
            "unseen": self.unseen,
            "n_states": self.n_states,
            "body": self.body_kind,
            "width": self.width,
            "observation_shape": list(self._shape),
            "given": self.given is not None,
        }

    def restore(self, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Take over a `state` (see `Bonus.restore`).

        Raises:
            ValueError: If the state was made with features that were given and this bonus has none, or the reverse.
        """
        check_kind(extra, self.kind)
        if extra["given"] != (self.given is not None):
            raise ValueError("the state is of a bonus with features " + ("given: make this one with the same features"
                             if extra["given"] else "of its own: make this one without features="))  # fmt: skip
        self.ridge, self.unseen = float(extra["ridge"]), check_unseen(extra["unseen"])
        self.n_states, self.body_kind, self.width = extra["n_states"], extra["body"], extra["width"]
        self._shape = tuple(extra["observation_shape"])
        if self.given is None:
            weights = {name[5:]: value for name, value in tensors.items() if name.startswith("body.")}
            self._build(torch.Generator()).load_state_dict(weights)
        self._factors = tensors["factors"].to(self.device)
        self._centre = tensors["centre"].to(self.device) if "centre" in tensors else None

    def _build(self, generator: torch.Generator) -> StandardBody:
        body = make_standard_body(
            self._shape, body=self.body_kind, width=self.width, n_states=self.n_states, generator=generator
        )
        self._body = body.to(self.device).requires_grad_(False)
        return self._body

    def _mean(self, data: Transitions) -> Tensor:
        sums = [self._raw(observations).double().sum(0) for observations, _ in pair_chunks(data, self.device)]
        return torch.stack(sums).sum(0) / len(data)

    def _raw(self, observations: Tensor) -> Tensor:
        if self.given is not None:
            return self.given(observations)
        need_fit(self._body)
        assert self._body is not None
        with without_autocast(self.device):
            return self._body(observations)
