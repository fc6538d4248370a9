"""Labels as the objectives take them: hard or soft, smoothed, weighted by class and sample, some left out."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Labels", "prepared"]


@final
@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of n samples.

    Attributes:
        index: Class indices, those of ignored samples replaced by 0; None for soft labels.
        soft: A distribution over classes a sample; None for hard labels.
        weight: What a sample counts in the mean over the batch; None: all count 1.
    """

    index: Int[Tensor, " samples"] | None
    soft: Float[Tensor, "samples classes"] | None
    weight: Float[Tensor, " samples"] | None

    def expected(self, values: Float[Tensor, "*members samples classes"]) -> Float[Tensor, "*members samples"]:
        """sum_c t_c v_c: the values at the label, or their mean under the soft label.

        Where a soft label is exactly 0 the value does not count, even if it is infinite.

        Args:
            values: A value a class.

        Returns:
            A value a sample.
        """
        if self.soft is None:
            assert self.index is not None
            index = self.index.expand(*values.shape[:-1])
            return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        soft = self.soft.to(values.dtype)
        return torch.where(soft > 0, values * soft, values.new_zeros(())).sum(-1)

    def distribution(self, classes: int, dtype: torch.dtype) -> Float[Tensor, "samples classes"]:
        """The labels as rows of a distribution.

        Args:
            classes: How many classes there are.
            dtype: Type of the result.

        Returns:
            One-hot rows, or the soft labels.
        """
        if self.soft is not None:
            return self.soft.to(dtype)
        assert self.index is not None
        return torch.nn.functional.one_hot(self.index, classes).to(dtype)

    def mean(self, values: Float[Tensor, "*members samples"]) -> Float[Tensor, "*members"]:
        """Weighted mean over the samples.

        Args:
            values: A value a sample.

        Returns:
            The mean; NaN if no sample counts, as in torch.
        """
        if self.weight is None:
            return values.mean(-1)
        weight = self.weight.to(values.dtype)
        return (self.spared(values) * weight).sum(-1) / weight.sum()

    def spared(self, values: Float[Tensor, "*members samples"]) -> Float[Tensor, "*members samples"]:
        """The values with 0 where a sample counts nothing: what is ignored may be infinite.

        Args:
            values: A value a sample.

        Returns:
            Values of the samples that count.
        """
        if self.weight is None:
            return values
        return torch.where(self.weight > 0, values, values.new_zeros(()))


def prepared(
    target: Tensor,
    classes: int,
    dtype: torch.dtype,
    class_weight: Float[Tensor, " classes"] | None = None,
    sample_weight: Float[Tensor, " samples"] | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Labels:
    """Labels from what a user gives.

    Smoothing replaces t by (1 - s) t + s / C before class weights act, and a class weight counts a sample by
    sum_c t_c weight_c of the label as given: the decomposition then holds sample by sample.

    Args:
        target: Checked class indices (samples,) or soft labels (samples, classes).
        classes: How many classes there are.
        dtype: The type in which losses are computed.
        class_weight: What a class counts.
        sample_weight: What a sample counts.
        ignore_index: The index that means "no label".
        label_smoothing: s in [0, 1].

    Returns:
        Labels.
    """
    hard = not target.is_floating_point()
    weight = None if sample_weight is None else sample_weight.to(dtype)
    if hard:
        ignored = target == ignore_index
        index = torch.where(ignored, 0, target).long()
        mask = (~ignored).to(dtype)
        if class_weight is not None:
            mask = mask * class_weight.to(dtype)[index]
        weight = mask if weight is None else weight * mask
        soft = None
        if label_smoothing:
            soft = torch.nn.functional.one_hot(index, classes).to(dtype)
    else:
        index, soft = None, target.to(dtype)
        if class_weight is not None:
            counts = (soft * class_weight.to(dtype)).sum(-1)  # autocast would round a product of matrices
            weight = counts if weight is None else weight * counts
    if soft is not None and label_smoothing:
        index, soft = None, (1 - label_smoothing) * soft + label_smoothing / classes
    return Labels(index, soft, weight)
