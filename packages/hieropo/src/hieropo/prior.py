"""The two-level Gaussian prior: μ ~ N(μ_q, Σ_q), θ_s | μ ~ N(μ, Σ_0), rewards with noise σ."""

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from hieropo.briefly import briefly
from hieropo.checks import as_generator, as_spread
from hieropo.linalg import as_covariance, as_noise, as_real, psd_factor


@final
@dataclass(frozen=True, eq=False)
class GaussianHierarchy:
    """Hierarchical prior μ ~ N(μ_q, Σ_q), θ_s | μ ~ N(μ, Σ_0), y = φᵀθ_s + N(0, σ²).

    Σ_q and Σ_0 may be singular, zero included: Σ_q = 0 says that the mean is known, Σ_0 = 0 that all tasks are equal.

    Args:
        mu_q: Mean of the task mean, shape [d].
        Sigma_q: Covariance of the task mean, shape [d, d].
        Sigma_0: Covariance of a task around the mean, shape [d, d].
        sigma: Standard deviation of the reward noise, in units of the reward.

    Raises:
        ValueError: If a shape is wrong, a number is not finite, a covariance is not positive semi-definite or σ <= 0.

    Reference:
        Hong et al., ICML 2023, Section 3 (the hierarchical model) and Section 4 (its linear-Gaussian case).

    Example:
        >>> prior = GaussianHierarchy.isotropic(2, sigma_q=1.0, sigma_0=0.5, sigma=0.5)
        >>> prior.marginal.Sigma_0.diagonal().tolist()
        [1.25, 1.25]
    """

    mu_q: np.ndarray
    Sigma_q: np.ndarray
    Sigma_0: np.ndarray
    sigma: float

    __repr__ = briefly("d", "sigma")

    def __post_init__(self) -> None:
        mu_q = np.array(as_real(self.mu_q, "mu_q"))
        if mu_q.ndim != 1 or mu_q.size == 0:
            raise ValueError(f"mu_q has shape {mu_q.shape}; give [d] with d >= 1")
        if not np.isfinite(mu_q).all():
            raise ValueError("mu_q holds a number that is not finite")
        sigma = as_noise(self.sigma)
        fields = {
            "mu_q": mu_q,
            "Sigma_q": as_covariance(self.Sigma_q, mu_q.size, "Sigma_q"),
            "Sigma_0": as_covariance(self.Sigma_0, mu_q.size, "Sigma_0"),
        }
        for name, array in fields.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "sigma", sigma)

    @classmethod
    def isotropic(
        cls, d: int, sigma_q: float, sigma_0: float, sigma: float, mu_q: npt.ArrayLike | float = 0.0
    ) -> "GaussianHierarchy":
        """Prior with Σ_q = σ_q² I and Σ_0 = σ_0² I.

        Args:
            d: Number of features.
            sigma_q: Standard deviation of each coordinate of the task mean.
            sigma_0: Standard deviation of each coordinate of a task around the mean.
            sigma: Standard deviation of the reward noise.
            mu_q: Mean of the task mean: a number, or shape [d].

        Returns:
            The prior.

        Raises:
            ValueError: If d < 1 or a standard deviation is negative or not finite.
        """
        if d < 1:
            raise ValueError(f"d is {d}; at least one feature is needed")
        sigma_q, sigma_0 = as_spread(sigma_q, "sigma_q"), as_spread(sigma_0, "sigma_0")
        eye = np.eye(d)
        return cls(np.broadcast_to(np.asarray(mu_q, float), (d,)), sigma_q**2 * eye, sigma_0**2 * eye, sigma)

    @property
    def d(self) -> int:
        """Number of features."""
        return self.mu_q.size

    @property
    def marginal(self) -> "GaussianHierarchy":
        """The prior that treats tasks as independent: θ_s ~ N(μ_q, Σ_q + Σ_0), the same marginal for every task."""
        return GaussianHierarchy(self.mu_q, np.zeros_like(self.Sigma_q), self.Sigma_q + self.Sigma_0, self.sigma)

    @property
    def pooled(self) -> "GaussianHierarchy":
        """The prior under which all tasks share one parameter: θ_s = μ ~ N(μ_q, Σ_q)."""
        return GaussianHierarchy(self.mu_q, self.Sigma_q, np.zeros_like(self.Sigma_0), self.sigma)

    def given_mean(self, mu: npt.ArrayLike) -> "GaussianHierarchy":
        """The prior for a known task mean: θ_s ~ N(μ, Σ_0).

        Args:
            mu: The task mean, shape [d].

        Returns:
            The prior with μ_q = μ and Σ_q = 0.

        Raises:
            ValueError: If μ does not have d finite entries.
        """
        mu = np.asarray(mu, dtype=np.float64)
        if mu.shape != (self.d,):
            raise ValueError(f"mu has shape {mu.shape}; it must be {(self.d,)}")
        return GaussianHierarchy(mu, np.zeros_like(self.Sigma_q), self.Sigma_0, self.sigma)

    def sample(
        self, tasks: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "tasks d"]]:
        """Draw a task mean and task parameters.

        Args:
            tasks: Number of tasks.
            rng: Source of randomness.

        Returns:
            μ [d] and θ [tasks, d].
        """
        rng = as_generator(rng)
        mu = self.mu_q + psd_factor(self.Sigma_q) @ rng.standard_normal(self.d)
        return mu, mu + rng.standard_normal((tasks, self.d)) @ psd_factor(self.Sigma_0).T
