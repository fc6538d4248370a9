"""The exact posterior of the two-level Gaussian model, from sufficient statistics, without inverting any of them.

With G_s = Σφφᵀ/σ² and B_s = Σφy/σ² of task s:

    Σ̃_s = (I + Σ_0 G_s)⁻¹ Σ_0,   C_s = (I + Σ_0 G_s)⁻¹           the task given μ: N(C_s μ + Σ̃_s B_s, Σ̃_s)
    W_s = C_sᵀ G_s,  b_s = C_sᵀ B_s,  W = Σ W_s,  b = Σ b_s         what task s says about μ
    Σ̄ = (I + Σ_q W)⁻¹ Σ_q,  μ̄ = μ_q + Σ̄ (b − W μ_q)              the hyper-posterior of μ
    θ̂_s = μ̄ + Σ̃_s (B_s − G_s μ̄),  Σ̂_s = Σ̃_s + C_s Σ̄ C_sᵀ         the task

G_s is singular whenever a task has fewer rows than features, and Σ_0, Σ_q may be; nothing above needs their inverses.
Cost: O(m d³) time and O(m d²) memory, whatever the number of rows.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float, Int

from hieropo.briefly import briefly
from hieropo.linalg import blocks, inverse_if_regular, psd_factor, smallest_scaled, symmetric
from hieropo.messages import TaskConditionals
from hieropo.prior import GaussianHierarchy
from hieropo.statistics import TaskStatistics

_SINGULAR = 1e-12  # smallest eigenvalue of W, scaled to a unit diagonal, that is told from rounding
_EXTREME = 1e10  # tr(Σ_0 G) above which it may leave nothing
_INVOLVED = 1e-6  # share of a feature in the directions without data from which on it is named
_NAMED = 8  # features named in a message
_WEIGHED = 1e-7  # the share of Σ̄ that rounding of W may decide


@final
@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """A Gaussian with its covariance split in two parts.

    Args:
        mean: Shape [d].
        cov: task_cov + hyper_cov, shape [d, d].
        task_cov: What would remain if μ were known, shape [d, d].
        hyper_cov: What comes from not knowing μ, shape [d, d].
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    task_cov: Float[np.ndarray, "d d"]
    hyper_cov: Float[np.ndarray, "d d"]

    __repr__ = briefly("mean")


@final
@dataclass(frozen=True, eq=False)
class HyperPosterior:
    """The posterior of the task mean μ.

    Args:
        mean: μ̄, shape [d].
        cov: Σ̄, shape [d, d].
        factor: F with F Fᵀ = Σ̄, shape [d, d].
        log_det: log|I + Σ_q W|, or log|W| − d log 2π under a flat prior: its share of the evidence, times −2.
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    factor: Float[np.ndarray, "d d"]
    log_det: float

    __repr__ = briefly("mean")


def condition(stats: TaskStatistics, prior: GaussianHierarchy) -> TaskConditionals:
    """Every task given μ.

    A well-conditioned Σ_0 gives Σ̃ = (Σ_0⁻¹ + G)⁻¹; otherwise, with Σ_0 = LLᵀ, Σ̃ = L (I + LᵀGL)⁻¹ Lᵀ.

    Args:
        stats: Statistics of m tasks with d features.
        prior: A prior with d features.

    Returns:
        The conditionals.

    Raises:
        numpy.linalg.LinAlgError: If rounding of a task's sums decides more than its prior.
    """
    scale = 1.0 / prior.sigma**2
    dominance = scale * (stats.gram.reshape(stats.m, prior.d**2) @ prior.Sigma_0.reshape(-1))
    _refuse_lopsided(stats, prior, np.flatnonzero(dominance > _EXTREME))
    cov = np.empty_like(stats.gram)
    precision, factor = inverse_if_regular(prior.Sigma_0), psd_factor(prior.Sigma_0)
    eye = np.eye(prior.d)
    for block in blocks(stats.m, prior.d):
        gram = stats.gram[block] * scale
        if precision is not None:
            gram += precision
            cov[block] = np.linalg.inv(gram)
        else:
            cov[block] = factor @ np.linalg.inv(eye + factor.T @ gram @ factor) @ factor.T
    largest = float(dominance.max(initial=0.0))
    return TaskConditionals(stats.gram, scale, stats.moment * scale, cov, precision, prior.Sigma_0, largest)


def hyper_posterior(
    information: Float[np.ndarray, "d d"],
    vector: Float[np.ndarray, " d"],
    prior: GaussianHierarchy,
    flat: bool = False,
) -> HyperPosterior:
    """The posterior of μ: Σ̄ = F Fᵀ with F = K chol(I + KᵀWK)⁻ᵀ, KKᵀ = Σ_q, and μ̄ = μ_q + Σ̄ (b − W μ_q).

    Args:
        information: W, shape [d, d].
        vector: b − W μ_q, shape [d].
        prior: The prior.
        flat: Take the limit of a flat prior of μ, Σ̄ = W⁻¹; μ_q then is only an origin.

    Returns:
        The posterior.

    Raises:
        numpy.linalg.LinAlgError: If `flat` and the data do not determine μ (W is singular), or if rounding decides.
    """
    d = prior.d
    if flat:
        _refuse_singular(information)
        root, inner, constant = np.eye(d), information, -d * math.log(2 * math.pi)
    else:
        root, constant = psd_factor(prior.Sigma_q), 0.0
        inner = np.eye(d) + root.T @ information @ root
        if smallest_scaled(inner) < _SINGULAR:
            raise np.linalg.LinAlgError(
                "Sigma_q is so wide, and the data leave a direction of μ so open, that rounding decides the posterior; "
                "give a narrower Sigma_q or rescale the features"
            )
    chol = np.linalg.cholesky(inner)
    factor = np.linalg.solve(chol, root.T).T
    log_det = 2.0 * float(np.log(np.diagonal(chol)).sum()) + constant
    mean = prior.mu_q + root @ np.linalg.solve(inner, root.T @ vector)
    return HyperPosterior(mean, factor @ factor.T, factor, log_det)


@final
@dataclass(frozen=True, eq=False)
class HierarchicalPosterior:
    """The joint posterior of μ and all θ_s in O(m d²) memory; what is d x d per task beyond Σ̃_s is made when asked.

    Args:
        prior: The prior.
        tasks: The tasks given μ.
        hyper: The posterior of μ.
        means: θ̂_s, shape [m, d].
        flat: Whether μ had a flat prior instead of N(μ_q, Σ_q).
    """

    prior: GaussianHierarchy
    tasks: TaskConditionals
    hyper: HyperPosterior
    means: Float[np.ndarray, "m d"]
    flat: bool = False

    __repr__ = briefly("prior", "hyper")

    def marginal(self, index: int) -> GaussianPosterior:
        """θ_s | D ~ N(θ̂_s, Σ̃_s + C_s Σ̄ C_sᵀ).

        Args:
            index: Position of the task.

        Returns:
            The posterior of the task.
        """
        spread = self.spread(slice(index, index + 1))[0]
        task_cov, hyper_cov = symmetric(self.tasks.cov[index]), spread @ spread.T
        return GaussianPosterior(self.means[index].copy(), task_cov + hyper_cov, task_cov, hyper_cov)

    def new_task(self) -> GaussianPosterior:
        """θ_new | D ~ N(μ̄, Σ_0 + Σ̄), a task without data.

        Returns:
            The posterior of a task that has not been seen.
        """
        cov = self.hyper.cov
        return GaussianPosterior(
            self.hyper.mean.copy(), self.prior.Sigma_0 + cov, self.prior.Sigma_0.copy(), cov.copy()
        )

    def spread(self, which: slice | Int[np.ndarray, " k"]) -> Float[np.ndarray, "k d d"]:
        """R_s = C_s F with F Fᵀ = Σ̄, so that R_s R_zᵀ is the covariance of θ_s and θ_z through μ.

        Args:
            which: Positions of tasks.

        Returns:
            R_s, shape [k, d, d].
        """
        tasks = self.tasks
        part = replace(tasks, sums=tasks.sums[which], moment=tasks.moment[which], cov=tasks.cov[which])
        return part.shrink(self.hyper.factor)

    def cross_cov(self, first: int, second: int) -> Float[np.ndarray, "d d"]:
        """cov(θ_s, θ_z | D) = C_s Σ̄ C_zᵀ, plus Σ̃_s when s = z.

        Args:
            first: Position of s.
            second: Position of z.

        Returns:
            The covariance, shape [d, d].
        """
        a, b = self.spread(np.array([first, second]))
        return a @ b.T + (symmetric(self.tasks.cov[first]) if first == second else 0.0)

    def covariances(self) -> Float[np.ndarray, "m d d"]:
        """Σ̂_s of all tasks.

        Returns:
            Symmetric matrices, shape [m, d, d].
        """
        out = np.empty_like(self.tasks.cov)
        for block in blocks(*out.shape[:2]):
            spread = self.spread(block)
            np.matmul(spread, np.swapaxes(spread, 1, 2), out=out[block])
            out[block] += symmetric(self.tasks.cov[block])
        return out

    def sample(
        self, rng: np.random.Generator, size: int, which: Int[np.ndarray, " k"] | None = None
    ) -> tuple[Float[np.ndarray, "{size} d"], Float[np.ndarray, "{size} k d"]]:
        """Joint draws: μ ~ N(μ̄, Σ̄), then θ_s | μ ~ N(C_s μ + Σ̃_s B_s, Σ̃_s).

        Args:
            rng: Source of randomness.
            size: Number of draws.
            which: Positions of tasks; -1 stands for a task without data. All tasks if not given.

        Returns:
            μ [size, d] and θ [size, k, d].
        """
        m, d = self.means.shape
        which = np.arange(m) if which is None else which
        noise = rng.standard_normal((size, d))
        theta = np.empty((size, len(which), d))
        factor_0 = psd_factor(self.prior.Sigma_0)
        first: dict[int, int] = {}
        for k, index in enumerate(which.tolist()):
            if index >= 0 and first.setdefault(index, k) < k:  # the same task once more
                theta[:, k] = theta[:, first[index]]
                continue
            spread = self.hyper.factor if index < 0 else self.spread(slice(index, index + 1))[0]
            mean = self.hyper.mean if index < 0 else self.means[index]
            root = factor_0 if index < 0 else psd_factor(symmetric(self.tasks.cov[index]))
            theta[:, k] = mean + noise @ spread.T + rng.standard_normal((size, d)) @ root.T
        return self.hyper.mean + noise @ self.hyper.factor.T, theta


def infer(stats: TaskStatistics, prior: GaussianHierarchy, flat: bool = False) -> HierarchicalPosterior:
    """The exact posterior of μ and of every task.

    Args:
        stats: Statistics of m tasks with d features.
        prior: A prior with d features.
        flat: Take the limit of a flat prior of μ (restricted likelihood); `prior.Sigma_q` is then ignored.

    Returns:
        The posterior.

    Raises:
        ValueError: If the numbers of features differ.
        numpy.linalg.LinAlgError: If `flat` and the data do not determine μ, or if the data outweigh the prior so far in
            some directions (10¹² times) and so little in others that double precision cannot hold both.

    Reference:
        Hong et al., ICML 2023, Section 4, in the inverse-free form of the module's docstring.

    Example:
        >>> stats = TaskStatistics.from_rows([[1.0], [1.0]], [2.0, 4.0], [0, 1])
        >>> post = infer(stats, GaussianHierarchy.isotropic(1, sigma_q=1.0, sigma_0=1.0, sigma=1.0))
        >>> post.hyper.mean.round(6).tolist(), post.means.ravel().round(6).tolist()
        ([1.5], [1.75, 2.75])
    """
    if stats.d != prior.d:
        raise ValueError(f"the statistics hold {stats.d} features, the prior {prior.d}")
    tasks = condition(stats, prior)
    residual = tasks.weigh(tasks.residual(prior.mu_q)).sum(axis=0)
    hyper = _careful_hyper_posterior(tasks, residual, prior, flat)
    means = hyper.mean + tasks.solve(tasks.residual(hyper.mean))
    return HierarchicalPosterior(prior, tasks, hyper, means, flat)


def _careful_hyper_posterior(
    tasks: TaskConditionals, residual: np.ndarray, prior: GaussianHierarchy, flat: bool
) -> HyperPosterior:
    """The posterior of μ, from the quick form of W unless its rounding shows: ΔW changes Σ̄ by Σ̄ ΔW Σ̄."""
    try:
        hyper = hyper_posterior(tasks.information(), residual, prior, flat)
        if tasks.information_rounding() * float(np.diagonal(hyper.cov).max()) <= _WEIGHED:
            return hyper
    except np.linalg.LinAlgError:  # said of the careful form, it is final
        pass
    return hyper_posterior(tasks.information(careful=True), residual, prior, flat)


def _refuse_lopsided(stats: TaskStatistics, prior: GaussianHierarchy, which: np.ndarray) -> None:
    """Sums of rows that are large in one direction carry rounding into all others; it must not outweigh the prior."""
    factor = psd_factor(prior.Sigma_0) / prior.sigma
    for index in which:
        if smallest_scaled(np.eye(prior.d) + factor.T @ stats.gram[index] @ factor) < _SINGULAR:
            raise np.linalg.LinAlgError(
                f"the rows of task {stats.tasks[index].item()!r} say so much more in some directions than in others "
                f"that rounding decides the latter: sigma = {prior.sigma:.3g} is too small for features and Sigma_0 of "
                "this size; raise sigma, narrow Sigma_0 or rescale the features"
            )


def _refuse_singular(information: np.ndarray) -> None:
    """A flat prior needs data in every direction; rounding alone would let a singular W pass the factorisation."""
    if smallest_scaled(information) >= _SINGULAR:
        return
    used = np.diagonal(information) > 0
    scale = np.sqrt(np.diagonal(information)[used])
    values, vectors = np.linalg.eigh(information[np.ix_(used, used)] / np.outer(scale, scale))
    share = np.sum(vectors[:, ~(values >= _SINGULAR)] ** 2, axis=1)  # of each feature, in what is not determined
    found = {"zero in every row": np.flatnonzero(~used), "collinear": np.flatnonzero(used)[share > _INVOLVED]}
    which = " and ".join(f"{_listed(columns)} {what}" for what, columns in found.items() if columns.size)
    raise np.linalg.LinAlgError(
        f"the data do not determine a flat μ: {which or 'the rows say too little'}; drop such features or fix sigma_q, "
        "e.g. sigma_q=1.0"
    )


def _listed(columns: np.ndarray) -> str:
    """Some columns in words, e.g. "features 3, 7 are"; of many, the first."""
    names = ", ".join(map(str, columns[:_NAMED].tolist())) + (", ..." if columns.size > _NAMED else "")
    return f"feature {names} is" if columns.size == 1 else f"features {names} are"
