"""One report for an ensemble: how good its members are, how good their average is, and how they differ."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any, SupportsIndex, final

import numpy as np
import torch
from jaxtyping import Float, Integer
from rich.table import Table
from torch import Tensor, nn

from common_core.stats import Estimate, bootstrap_mean
from dncc import diversity, selective
from dncc.aggregation import Aggregate, checked_aggregate
from dncc.checks import check_logits
from dncc.collusion import Collusion, collusion_between
from dncc.outputs import Measured
from dncc.predictions import checked_predictions
from dncc.report_data import collect_logits
from dncc.report_scores import AGGREGATES, MemberScores, Predicted, Scores, predicted, scores, scores_of_members
from dncc.report_text import members_table, scores_table, sentences
from dncc.temperature import fit_temperature, tempered

__all__ = ["EnsembleReport", "Tempered"]


@final
@dataclass(frozen=True)
class Tempered:
    """The ensemble after one temperature for its prediction, fitted on validation data.

    Attributes:
        temperature: T of softmax(log q / T).
        scores: Its figures on the test data.
    """

    temperature: float
    scores: Scores


@final
@dataclass(frozen=True, eq=False, repr=False)
class EnsembleReport:
    """What is known of an ensemble on test data; made by `from_logits` or `from_model`.

    Nothing is tempered, except in the row that says so. Intervals are 95 % bootstrap intervals over the test samples:
    they know nothing of other trainings.

    Attributes:
        aggregate: How members are averaged in `nll`, `accuracy`, `ood`, `tempered` and comparisons.
        samples: Test samples.
        classes: Classes.
        bins: Bins of the calibration errors.
        members: Figures of each member.
        ensemble: Figures of the average, by how it is averaged.
        nll: Negative log-likelihood of the ensemble, in nats.
        accuracy: Accuracy of the ensemble.
        ambiguity: Mean cross-entropy of the members minus that of the ensemble, in nats.
        test: The decomposition on test data, by how members are averaged.
        train: The same on training data, if given.
        pairwise: Measures of pairs of members.
        kohavi_wolpert: Variance over members of being right.
        vote_entropy: Mean entropy of the votes, in nats.
        mutual_information: Mean mutual information of member and prediction, in nats.
        ood: Detection of out-of-distribution samples by each uncertainty, if such samples were given.
        tempered: The ensemble with a temperature fitted on validation data, if such data were given.
        target: Labels of the test samples.
        sample_nll: -log q_y of every test sample, in nats; what comparisons pair.
    """

    aggregate: Aggregate
    samples: int
    classes: int
    bins: int
    members: tuple[MemberScores, ...]
    ensemble: Mapping[Aggregate, Scores]
    nll: Estimate
    accuracy: Estimate
    ambiguity: Estimate
    test: Mapping[Aggregate, Measured]
    train: Mapping[Aggregate, Measured] | None
    pairwise: diversity.PairwiseDiversity
    kohavi_wolpert: float
    vote_entropy: float
    mutual_information: float
    ood: Mapping[str, selective.Detection] | None
    tempered: Tempered | None
    target: Integer[Tensor, " samples"]
    sample_nll: Float[Tensor, " samples"]

    def __repr__(self) -> str:
        return (f"EnsembleReport({len(self.members)} members, {self.samples} samples, {self.aggregate}: NLL "
                f"{self.nll:.4f}, accuracy {self.accuracy:.4f}; print(report.text()) shows all)")  # fmt: skip

    @classmethod
    def from_logits(
        cls,
        logits: Any,
        target: Any,
        *,
        train_logits: Any = None,
        train_target: Any = None,
        val_logits: Any = None,
        val_target: Any = None,
        ood_logits: Any = None,
        aggregate: str = "arithmetic",
        bins: SupportsIndex = 15,
        rng: np.random.Generator | int = 0,
        resamples: SupportsIndex = 2000,
    ) -> "EnsembleReport":
        """Judge logits; tensors or arrays, on any device.

        Args:
            logits: Test logits, (members, samples, classes).
            target: Class indices, (samples,).
            train_logits: Logits on training data, for the gap of the ambiguity; in evaluation mode, without
                augmentation.
            train_target: Their class indices.
            val_logits: Logits on validation data, on which the temperature of a row of its own is fitted.
            val_target: Their class indices.
            ood_logits: Logits on samples of no class, which uncertainty should tell from the test samples.
            aggregate: How members are averaged: as in the loss they were trained with.
            bins: Bins of the calibration errors.
            rng: Source of the bootstrap's resamples, or its seed.
            resamples: Bootstrap resamples.

        Returns:
            The report.

        Raises:
            TypeError: If something is no array of its kind.
            ValueError: If shapes or labels do not fit, or only one of logits and labels is given.

        Example:
            >>> import torch
            >>> target = torch.arange(90) % 3
            >>> noise = torch.randn(4, 90, 3, generator=torch.Generator().manual_seed(0))
            >>> logits = 2 * torch.nn.functional.one_hot(target, 3) + noise
            >>> report = EnsembleReport.from_logits(logits, target, resamples=200)
            >>> report.ensemble["arithmetic"].accuracy > max(member.accuracy for member in report.members)
            True
        """
        aggregate, bins = checked_aggregate(aggregate), int(bins)
        rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
        logits, target = _labelled(logits, target, "")
        found = predicted(logits, target)
        log_q = found.log_proba[aggregate]
        sample_nll = -found.ensemble_log_likelihood[aggregate]
        return cls(
            aggregate=aggregate,
            samples=logits.shape[1],
            classes=logits.shape[2],
            bins=bins,
            members=scores_of_members(found, target, bins),
            ensemble={name: scores(found.log_proba[name], target, bins) for name in AGGREGATES},
            nll=_interval(sample_nll, rng, int(resamples)),
            accuracy=_interval((log_q.argmax(-1) == target).double(), rng, int(resamples)),
            ambiguity=_interval(found.ambiguity[aggregate], rng, int(resamples)),
            test=_measured(found),
            train=_train(train_logits, train_target, logits),
            pairwise=_pairwise(found, target),
            kohavi_wolpert=diversity.kohavi_wolpert_variance(found.votes == target),
            vote_entropy=float(diversity.vote_entropy(found.votes).mean()),
            mutual_information=float(found.mutual_information.mean()),
            ood=_ood(ood_logits, logits, found, aggregate),
            tempered=_tempered(val_logits, val_target, logits, target, found, aggregate, bins),
            target=target,
            sample_nll=sample_nll,
        )

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        data: Any,
        *,
        train: Any = None,
        val: Any = None,
        ood: Any = None,
        batch_size: SupportsIndex = 256,
        device: str | torch.device | None = None,
        progress: bool = False,
        **options: Any,
    ) -> "EnsembleReport":
        """Judge a model on data, in evaluation mode; every part's mode is restored.

        Args:
            model: An `EnsembleModule`, or any module that gives logits (members, batch, classes) or (batch, classes).
            data: Test data: a tuple of two arrays (inputs, labels), a `Dataset`, or an iterable of such batches.
            train: Training data, without augmentation.
            val: Validation data.
            ood: Samples of no class: an array, or any of the above, whose labels are ignored.
            batch_size: Samples at a time, where batches are not given.
            device: Where the model is; found out if None. The model itself is not moved.
            progress: Show bars on standard error.
            options: As for `from_logits`: aggregate, bins, rng, resamples.

        Returns:
            The report.

        Raises:
            TypeError: If data are of none of these kinds.
            ValueError: If there is no sample, labels are missing, or shapes do not fit.
        """
        how = {"batch_size": int(batch_size), "device": device, "progress": progress}
        given: dict[str, Any] = {}
        for name, part in (("train", train), ("val", val)):
            if part is not None:
                given[f"{name}_logits"], given[f"{name}_target"] = collect_logits(model, part, **how)
        if ood is not None:
            given["ood_logits"] = collect_logits(model, ood, **how, labelled=False)[0]
        return cls.from_logits(*collect_logits(model, data, **how), **given, **options)

    @property
    def gap(self) -> Collusion | None:
        """What diversity on training data that does not carry over costs, if training data were given.

        NaN where a loss is infinite, as when a member gives a label probability 0.
        """
        if self.train is None:
            return None
        train, test = self.train[self.aggregate], self.test[self.aggregate]
        finite = all(math.isfinite(value) for part in (train, test) for value in astuple(part))
        return collusion_between(train, test) if finite else Collusion(math.nan, math.nan)

    def pair_means(self) -> dict[str, float]:
        """Measures of pairs, each the mean over the pairs of different members; NaN for one member.

        Returns:
            A number a measure.
        """
        return {f.name: diversity.mean_over_pairs(getattr(self.pairwise, f.name)) for f in fields(self.pairwise)}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values of single samples, as JSON can hold it; NaN and infinities become text.

        Returns:
            Plain data.
        """
        plain: dict[str, Any] = {name: getattr(self, name) for name in ("aggregate", "samples", "classes", "bins")}
        plain["members"] = [asdict(member) for member in self.members]
        plain["ensemble"] = {name: asdict(row) for name, row in self.ensemble.items()}
        plain |= {name: getattr(self, name).to_json() for name in ("nll", "accuracy", "ambiguity")}
        plain["test"] = {name: asdict(row) for name, row in self.test.items()}
        plain["train"] = None if self.train is None else {name: asdict(row) for name, row in self.train.items()}
        plain["gap"] = None if self.gap is None else asdict(self.gap)
        plain["pairwise"] = {f.name: getattr(self.pairwise, f.name).tolist() for f in fields(self.pairwise)}
        plain["pair_means"] = self.pair_means()
        plain |= {name: getattr(self, name) for name in ("kohavi_wolpert", "vote_entropy", "mutual_information")}
        plain["ood"] = None if self.ood is None else {name: asdict(row) for name, row in self.ood.items()}
        plain["tempered"] = None if self.tempered is None else asdict(self.tempered)
        return _finite(plain)

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as text.

        Args:
            indent: Spaces a level; None for one line.

        Returns:
            JSON.
        """
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def table(self) -> Table:
        """Figures of the ensemble, averaged both ways and tempered if asked for, and of its members' mean.

        Returns:
            A rich table.
        """
        return scores_table(self.members, self.ensemble, self.aggregate, self.tempered)

    def members_table(self) -> Table:
        """A row a member.

        Returns:
            A rich table.
        """
        return members_table(self.members)

    def text(self) -> str:
        """The tables and what they mean, as plain text.

        Returns:
            Lines.
        """
        from common_core.console import as_text

        return as_text([self.table(), "", self.members_table(), "", *sentences(self)])


def _labelled(logits: Any, target: Any, kind: str) -> tuple[Tensor, Tensor]:
    """Logits and labels that fit each other."""
    scores_, labels = torch.as_tensor(logits), torch.as_tensor(target)
    check_logits(scores_, values=True)
    if scores_.ndim != 3:
        raise ValueError(f"{kind}logits has shape {tuple(scores_.shape)}; a report needs (members, samples, classes): "
                         "flatten further axes into the samples")  # fmt: skip
    if not scores_.shape[1]:
        raise ValueError(f"{kind}logits has shape {tuple(scores_.shape)}: no sample; give at least one")
    _, labels = checked_predictions(torch.log_softmax(scores_[0].detach().to("cpu", torch.float64), -1), labels)
    return scores_.detach(), labels


def _beside(logits: Any, target: Any, test: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
    """Further labelled logits of the same ensemble, or None."""
    if logits is None and target is None:
        return None
    if logits is None or target is None:
        raise ValueError(f"give both {kind}logits and {kind}target, or neither")
    found, labels = _labelled(logits, target, kind)
    _check_same(found, test, kind)
    return found, labels


def _check_same(found: Tensor, test: Tensor, kind: str) -> None:
    if (found.shape[0], found.shape[2]) != (test.shape[0], test.shape[2]):
        raise ValueError(f"{kind}logits has shape {tuple(found.shape)} and logits {tuple(test.shape)}; members and "
                         "classes must be the same")  # fmt: skip


def _measured(found: Predicted) -> dict[Aggregate, Measured]:
    return {name: found.measured(name) for name in AGGREGATES}


def _train(logits: Any, target: Any, test: Tensor) -> dict[Aggregate, Measured] | None:
    given = _beside(logits, target, test, "train_")
    return None if given is None else _measured(predicted(*given))


def _pairwise(found: Predicted, target: Tensor) -> diversity.PairwiseDiversity:
    assert found.log_likelihood is not None
    return diversity.pairwise_diversity(found.votes, target, found.log_likelihood)


def _ood(logits: Any, test: Tensor, inside: Predicted, aggregate: Aggregate) -> dict[str, selective.Detection] | None:
    if logits is None:
        return None
    given = torch.as_tensor(logits)
    check_logits(given, values=True)
    if given.ndim != 3 or not given.shape[1]:
        raise ValueError(f"ood_logits has shape {tuple(given.shape)}; it must be (members, samples, classes)")
    _check_same(given, test, "ood_")
    both = (inside, predicted(given, None))
    sure = {
        "maximum probability": [selective.max_log_proba(part.log_proba[aggregate]) for part in both],
        "entropy": [selective.negative_entropy(part.log_proba[aggregate]) for part in both],
        "mutual information": [-part.mutual_information for part in both],
    }
    return {name: selective.detection(*parts) for name, parts in sure.items()}


def _tempered(
    logits: Any, target: Any, test: Tensor, test_target: Tensor, found: Predicted, aggregate: Aggregate, bins: int
) -> Tempered | None:
    given = _beside(logits, target, test, "val_")
    if given is None:
        return None
    temperature = fit_temperature(predicted(*given).log_proba[aggregate], given[1])
    return Tempered(temperature, scores(tempered(found.log_proba[aggregate], temperature), test_target, bins))


def _interval(values: Tensor, rng: np.random.Generator, resamples: int) -> Estimate:
    """Mean with an interval; infinite losses have none."""
    if not bool(torch.isfinite(values).all()):
        return Estimate(float(values.mean()), n=len(values))
    return bootstrap_mean(values.numpy(), rng=rng, resamples=resamples)


def _finite(plain: Any) -> Any:
    """The same data with numbers that JSON cannot hold as text."""
    if isinstance(plain, dict):
        return {key: _finite(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_finite(value) for value in plain]
    return str(plain) if isinstance(plain, float) and not math.isfinite(plain) else plain
