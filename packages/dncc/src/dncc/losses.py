"""Losses of an ensemble: one call takes the logits of all members and the labels, and gives the loss and its terms."""

from typing import Any, Literal, SupportsFloat, final

from jaxtyping import Float
from torch import Tensor

from dncc.aggregation import Aggregate
from dncc.base_loss import Batch, EnsembleLoss, Lambda, Reduction
from dncc.controllers import LambdaController
from dncc.objectives import adp, interpolate, kl_to_mean, mse_ncl

__all__ = ["ADPLoss", "DNCCLoss", "EndToEndLoss", "IndependentLoss", "KLToMeanLoss", "MSENCLLoss"]

_Fused = bool | Literal["auto"]


@final
class DNCCLoss(EnsembleLoss):
    """L = (1 - lambda) mean_m CE(p_m) + lambda CE(ensemble), the exact closed form of the DNCC loss.

    Equal to mean_m [CE(p_m) - lambda d(p_m, q)] with the divergence d that belongs to the aggregate: Itakura-Saito of
    the label's probability for the arithmetic mean, KL(g || p_m) for the geometric one. For the arithmetic mean, member
    m's usual gradient p_m - t by its logits is multiplied by (1 - lambda) + lambda p_m,y / q_y: with lambda > 0 a
    sample goes to the members that are already good at it. lambda = 0: members on their own. lambda = 1: the average as
    one model. Holding the aggregate constant (`detach`) gives the same gradient: the mean divergence has derivative 0
    by the aggregate.

    Args:
        lam: lambda in [0, 1]: a number, a tensor without axes, or a `LambdaController`. A parameter's gradient is minus
            the ambiguity: this loss alone would drive it up to 1 and past it, so learn it on a validation loss
            (`HyperGradientLambda`).
        aggregate: "arithmetic" averages probabilities, "geometric" log-probabilities. Predict with the same.
        reduction: Over members: "mean", "sum" (separate networks: as if each were alone at lambda = 0), or "none"
            (a value a sample, mean over members).
        weight: What each class counts: a sample counts the weight of its label in the mean over the batch (a soft
            label, its mean weight; torch's cross-entropy weights classes one by one there, and with smoothing).
        ignore_index: Samples with this label are left out.
        label_smoothing: s: the label becomes (1 - s) t + s / classes.
        validate: Whether to check values (NaN, labels' range); None: on the CPU only, never while compiling.
        fused: "auto" takes the fused kernel on a GPU where it applies; its result carries the gradient in `loss` only.

    Raises:
        ValueError: If lambda is outside [0, 1] or an option is unknown.
        TypeError: If lambda is no number, tensor or controller.

    Reference:
        Zhang et al. (2022), Deep Negative Correlation Classification, arXiv:2212.07070.

    Example:
        >>> import torch
        >>> from dncc import DNCCLoss
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]], requires_grad=True)  # 2 members, 1 sample, 2 classes
        >>> out = DNCCLoss(lam=0.5)(logits, torch.tensor([0]))
        >>> out.loss.backward()
        >>> [round(value.item(), 3) for value in (out.loss, out.ce, out.ensemble_ce, out.ambiguity)]
        [0.637, 0.72, 0.554, 0.166]
    """

    fusable = True

    def __init__(
        self,
        lam: SupportsFloat | LambdaController = 0.5,
        *,
        aggregate: Aggregate = "arithmetic",
        reduction: Reduction = "mean",
        weight: Float[Tensor, " classes"] | None = None,
        ignore_index: int = -100,
        label_smoothing: SupportsFloat = 0.0,
        validate: bool | None = None,
        fused: _Fused = "auto",
    ) -> None:
        super().__init__(lam, aggregate=aggregate, reduction=reduction, weight=weight, ignore_index=ignore_index,
                         label_smoothing=label_smoothing, validate=validate, fused=fused)  # fmt: skip

    def values(self, batch: Batch, lam: Lambda) -> Float[Tensor, " samples"]:
        """(1 - lambda) CE of the members + lambda CE of the ensemble.

        Args:
            batch: Log-probabilities, labels and decomposition.
            lam: lambda in force.

        Returns:
            Nats a sample.
        """
        return interpolate(batch.terms, lam)


@final
class IndependentLoss(EnsembleLoss):
    """lambda = 0: the mean of the members' cross-entropies, each trained as if alone.

    Args:
        aggregate: For the reported terms.
        reduction: Over members; "sum" gives every separate network the gradient it would have alone.
        **options: `weight`, `ignore_index`, `label_smoothing`, `validate`, `fused` as for `DNCCLoss`.
    """

    fusable = True
    fixed_lambda = 0.0

    def __init__(self, *, aggregate: Aggregate = "arithmetic", reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(0.0, aggregate=aggregate, reduction=reduction, **options)

    def values(self, batch: Batch, lam: Lambda) -> Float[Tensor, " samples"]:
        """Mean cross-entropy of the members.

        Args:
            batch: Log-probabilities, labels and decomposition.
            lam: Not used.

        Returns:
            Nats a sample.
        """
        return batch.terms.ce


@final
class EndToEndLoss(EnsembleLoss):
    """lambda = 1: the cross-entropy of the aggregate, which is trained as one model. Members may collude.

    Args:
        aggregate: How members are averaged.
        reduction: Over members.
        **options: `weight`, `ignore_index`, `label_smoothing`, `validate`, `fused` as for `DNCCLoss`.

    Reference:
        Webb et al. (2019), To Ensemble or Not Ensemble: When does End-To-End Training Fail?
    """

    fusable = True
    fixed_lambda = 1.0

    def __init__(self, *, aggregate: Aggregate = "arithmetic", reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(1.0, aggregate=aggregate, reduction=reduction, **options)

    def values(self, batch: Batch, lam: Lambda) -> Float[Tensor, " samples"]:
        """Cross-entropy of the aggregate.

        Args:
            batch: Log-probabilities, labels and decomposition.
            lam: Not used.

        Returns:
            Nats a sample.
        """
        return batch.terms.ensemble_ce


@final
class MSENCLLoss(EnsembleLoss):
    """Negative correlation learning with squared errors: mean_m |p_m - t|^2 / 2 - lambda |p_m - q|^2 / 2.

    Exact too (squared errors and the arithmetic mean match), but in squared errors of probabilities, whose gradient
    vanishes for members that are confidently wrong. `loss` is in those units; the other entries stay in nats.

    Args:
        lam: lambda in [0, 1].
        reduction: Over members.
        **options: `weight`, `ignore_index`, `label_smoothing`, `validate` as for `DNCCLoss`.

    Reference:
        Liu and Yao (1999), Ensemble learning via negative correlation, Neural Networks 12.
    """

    def __init__(
        self, lam: SupportsFloat | LambdaController = 0.5, *, reduction: Reduction = "mean", **options: Any
    ) -> None:
        super().__init__(lam, aggregate="arithmetic", reduction=reduction, **options)

    def values(self, batch: Batch, lam: Lambda) -> Float[Tensor, " samples"]:
        """Half squared errors of the members, less lambda times their spread.

        Args:
            batch: Log-probabilities, labels and decomposition.
            lam: lambda in force.

        Returns:
            Half squared errors a sample.
        """
        return mse_ncl(batch.log_p, batch.labels, lam)


@final
class KLToMeanLoss(EnsembleLoss):
    """mean_m [CE(p_m) - lambda KL(q || p_m)] with q held constant: seen in use, and not an exact decomposition.

    Here for comparison. CE(q) differs from mean CE - mean KL(q || p_m), so lambda = 1 does not train the ensemble; the
    loss has no lower bound. The pairs that match are the arithmetic mean with the Itakura-Saito
    divergence and the geometric mean g with KL(g || p_m): `DNCCLoss`.

    Args:
        lam: lambda in [0, 1].
        reduction: Over members.
        **options: `weight`, `ignore_index`, `label_smoothing`, `validate` as for `DNCCLoss`.
    """

    def __init__(
        self, lam: SupportsFloat | LambdaController = 0.5, *, reduction: Reduction = "mean", **options: Any
    ) -> None:
        super().__init__(lam, aggregate="arithmetic", reduction=reduction, **options)

    def values(self, batch: Batch, lam: Lambda) -> Float[Tensor, " samples"]:
        """Cross-entropy of the members less lambda times KL from their mean.

        Args:
            batch: Log-probabilities, labels and decomposition.
            lam: lambda in force.

        Returns:
            Nats a sample.
        """
        return kl_to_mean(batch.log_p, batch.terms, lam)


@final
class ADPLoss(EnsembleLoss):
    """Adaptive diversity promoting: sum_m CE(p_m) - alpha H(q) - beta log det of the non-maximal predictions.

    With `reduction="sum"` the published objective, with "mean" that divided by the number of members. Hard labels only,
    and at most classes - 1 members: more vectors than dimensions span no volume.

    Args:
        alpha: Weight of the entropy of the mean prediction; published: 2.
        beta: Weight of the log-determinant; published: 0.5.
        reduction: Over members.
        **options: `weight`, `ignore_index`, `validate` as for `DNCCLoss`.

    Raises:
        ValueError: If a weight is negative, or labels are to be smoothed.

    Reference:
        Pang et al. (2019), Improving Adversarial Robustness via Promoting Ensemble Diversity, ICML.
    """

    fixed_lambda = 0.0

    def __init__(
        self, alpha: SupportsFloat = 2.0, beta: SupportsFloat = 0.5, *, reduction: Reduction = "mean", **options: Any
    ) -> None:
        if options.get("label_smoothing"):
            raise ValueError("ADPLoss leaves out the class of the label: it takes hard labels, without label_smoothing")
        super().__init__(0.0, aggregate="arithmetic", reduction=reduction, **options)
        self.alpha, self.beta = float(alpha), float(beta)
        if not (self.alpha >= 0 and self.beta >= 0):
            raise ValueError(f"alpha is {self.alpha} and beta {self.beta}; neither may be negative")

    def values(self, batch: Batch, lam: Lambda) -> Float[Tensor, " samples"]:
        """Mean cross-entropy less what diversity earns.

        Args:
            batch: Log-probabilities, labels and decomposition.
            lam: Not used.

        Returns:
            Nats a sample.

        Raises:
            ValueError: For soft labels, or as many members as classes.
        """
        members, _, classes = batch.log_p.shape
        if batch.labels.index is None:
            raise ValueError("ADPLoss leaves out the class of the label: it takes class indices, not soft labels")
        if members > classes - 1:
            raise ValueError(f"ADPLoss has {members} members and {classes} classes; it takes at most {classes - 1} "
                             "members: more vectors than dimensions span no volume")  # fmt: skip
        return adp(batch.log_p, batch.labels, batch.terms, self.alpha, self.beta)
