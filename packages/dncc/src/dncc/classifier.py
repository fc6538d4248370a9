"""The ensemble as a scikit-learn classifier: rows of numbers, or whatever a backbone takes, and labels of any kind."""

import copy
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_is_fitted,
    column_or_1d,
    validate_data,  # pyrefly: ignore[missing-module-attribute] (the stubs are older)
)
from torch import Tensor

from common_core.devices import best_device
from dncc.aggregation import aggregate_log_proba, checked_aggregate, log_softmax
from dncc.classifier_parts import build_lambda, build_model, build_objective, fits_or_stays, seeded, split
from dncc.evaluating import predict_logits
from dncc.report import EnsembleReport
from dncc.training import fit as train

__all__ = ["DNCCClassifier"]


@final
class DNCCClassifier(ClassifierMixin, BaseEstimator):
    """An ensemble of heads on one trunk, trained at one point between independent members and their average.

    Scale the inputs (`StandardScaler`), as for any neural network. Given an integer `random_state`, a fit on a CPU is
    the same every time, and torch's and NumPy's global generators are left alone.

    Args:
        lam: lambda in [0, 1]; "guarded" lowers it when members collude on validation data; "schedule" raises it from 0
            to 0.9 while training; or a `LambdaController`, which is copied.
        members: Number of members.
        mode: "full": every head sees all features; "partition": heads share them out, so that parameters do not grow
            with the members (the trunk's width must be divisible by `members`); "separate": whole networks.
        hidden_sizes: Widths of the trunk's dense layers; not used with `module`.
        head_hidden: Widths of each head's hidden layers.
        aggregate: "arithmetic" or "geometric": how members are averaged, in training and prediction.
        objective: "dncc", "independent", "end_to_end", "mse_ncl", "kl_to_mean", "adp", or a loss called with logits,
            labels and weights, which is copied; those without lambda ignore `lam`.
        max_epochs: Passes over the training data.
        batch_size: Samples a step.
        lr: Learning rate of AdamW at the start; it follows half a cosine down to 0 in `fit`.
        weight_decay: Decoupled weight decay.
        early_stopping: Stop after `n_iter_no_change` epochs without a smaller validation loss of the ensemble, and go
            back to the best.
        validation_fraction: Share of the data that is held out for early stopping or for a lambda that watches it, and
            only then.
        n_iter_no_change: Epochs of patience.
        class_weight: None, "balanced", or weights by label.
        label_smoothing: s: the label becomes (1 - s) y + s / classes.
        device: "cpu", "cuda", ...; "auto" takes a CUDA device where there is one.
        compile: True or a backend's name: train through `torch.compile`.
        dtype: "float32", or "float64" where weighted and repeated samples, or different machines, must agree to more
            than seven digits.
        random_state: Seed, or a source of seeds, for weights, order of samples and the validation split.
        warm_start: `fit` goes on from the last weights instead of starting anew.
        verbose: 1 shows a progress bar on standard error.
        module: A backbone (`nn.Module`, copied; so images work too), a function that makes one, or one that makes a
            whole `EnsembleModule`; dense layers if None. Functions must be importable for the fitted classifier to be
            pickled.

    Attributes:
        classes_: Labels, sorted.
        module_: The trained network, in evaluation mode.
        objective_: The loss it was trained with.
        history_: Terms of the decomposition of every epoch of the last call of `fit` or `partial_fit`.
        lam_: lambda at the end.
        n_iter_: Epochs trained in all.
        n_features_in_: Size of the second axis of the inputs.

    Reference:
        Zhang et al. (2022), Deep Negative Correlation Classification, arXiv:2212.07070.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> X, y = load_iris(return_X_y=True)
        >>> model = DNCCClassifier(members=4, hidden_sizes=(16,), max_epochs=30, lr=0.01, random_state=0)
        >>> bool(make_pipeline(StandardScaler(), model).fit(X, y).score(X, y) > 0.9)
        True
    """

    # Types are not declared: scikit-learn wants every value let in here and refused in `fit`.
    def __init__(
        self,
        lam: Any = 0.5,
        *,
        members: Any = 8,
        mode: Any = "full",
        hidden_sizes: Any = (128,),
        head_hidden: Any = (),
        aggregate: Any = "arithmetic",
        objective: Any = "dncc",
        max_epochs: Any = 100,
        batch_size: Any = 64,
        lr: Any = 1e-3,
        weight_decay: Any = 1e-4,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        n_iter_no_change: Any = 10,
        class_weight: Any = None,
        label_smoothing: Any = 0.0,
        device: Any = "cpu",
        compile: Any = False,  # noqa: A002 (the name that users of torch look for)
        dtype: Any = "float32",
        random_state: Any = None,
        warm_start: Any = False,
        verbose: Any = 0,
        module: Any = None,
    ) -> None:
        self.lam = lam
        self.members = members
        self.mode = mode
        self.hidden_sizes = hidden_sizes
        self.head_hidden = head_hidden
        self.aggregate = aggregate
        self.objective = objective
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.device = device
        self.compile = compile
        self.dtype = dtype
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.module = module

    @fits_or_stays
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "DNCCClassifier":
        """Train, from the start unless `warm_start` is set.

        Args:
            X: Inputs, one sample a row; further axes as the backbone takes them.
            y: Labels of any kind, at least two different ones.
            sample_weight: What a sample counts; those of weight 0 are left out.

        Returns:
            The classifier.

        Raises:
            ValueError: If data or settings are wrong.
        """
        again = self.warm_start and hasattr(self, "module_")
        X, y = self._inputs(X, y, reset=not again)
        X, y, weight = _weighted(X, y, sample_weight)
        classes, target = np.unique(y, return_inverse=True)
        if again and not np.isin(classes, self.classes_).all():
            raise ValueError(f"warm_start keeps the classes {self.classes_}; y holds {classes}: set warm_start=False")
        if again:
            classes, target = self.classes_, np.searchsorted(self.classes_, y)
        if len(classes) < 2:
            raise ValueError(f"y holds one class only ({classes[0]!r}, in samples of positive weight); give samples of "
                             "at least two classes")  # fmt: skip
        if not again:
            self._start(X, classes)
        weight = weight * _class_weights(self.class_weight, y)
        validated = self.early_stopping or self.lam == "guarded" or getattr(self.lam, "watches", False)
        rows, held = np.arange(len(target)), None
        if validated:
            rows, rest = split(target, float(self.validation_fraction), self._draw())
            held = (torch.tensor(X[rest]), torch.tensor(target[rest]))
        rows = rows[weight[rows] > 0]  # a batch of weight 0 would have no mean
        steps = -(-len(rows) // max(1, int(self.batch_size))) * int(self.max_epochs)
        self._set_objective(build_lambda(self.lam, steps, validated))
        self._optimiser = None
        data = (torch.tensor(X[rows]), torch.tensor(target[rows]))
        patience = self.n_iter_no_change if self.early_stopping else None
        self._train(data, weight[rows], int(self.max_epochs), held, patience, "cosine")
        return self

    @fits_or_stays
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> "DNCCClassifier":
        """One pass over the data given, going on from where the last call ended, at a constant learning rate.

        The optimiser's state is kept from call to call. There is no validation data: lam="guarded", lam="schedule",
        and `early_stopping` are for `fit`.

        Args:
            X: Inputs, one sample a row.
            y: Labels.
            classes: All labels there will be; needed in the first call, if it is not after `fit`.
            sample_weight: What a sample counts.

        Returns:
            The classifier.

        Raises:
            ValueError: If data or settings are wrong, or a label is not among the classes.
        """
        first = not hasattr(self, "module_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit: all labels there will be")
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True: it has no validation data")
        if isinstance(self.class_weight, str):
            raise ValueError(f"class_weight={self.class_weight!r} needs all of the data, which partial_fit does not "
                             "see: give weights by label, such as compute_class_weight gives them")  # fmt: skip
        known = self.classes_ if first is False else np.unique(column_or_1d(classes))
        if classes is not None and not np.array_equal(np.unique(column_or_1d(classes)), known):
            raise ValueError(f"classes is {classes!r} and was {known} in the first call; give the same or None")
        X, y = self._inputs(X, y, reset=first)
        unknown = np.setdiff1d(y, known)
        if len(unknown) or len(known) < 2:
            raise ValueError(
                f"y holds {unknown}, and classes are {known}; all labels must be among at least two classes"
            )
        X, y, weight = _weighted(X, y, sample_weight)
        lam = build_lambda(self.lam, 0, False) if not hasattr(self, "objective_") else None
        if first:
            self._start(X, known)
        if lam is not None:
            self._set_objective(lam)
        weight = weight * _class_weights(self.class_weight, y)
        kept = weight > 0
        data = (torch.tensor(X[kept]), torch.tensor(np.searchsorted(known, y[kept])))
        self._train(data, weight[kept], 1, None, None, "constant")
        return self

    def members_proba(self, X: Any) -> np.ndarray:
        """Probabilities of every member.

        Args:
            X: Inputs, one sample a row.

        Returns:
            Array (members, samples, classes), of type `dtype`.
        """
        return log_softmax(self._logits(X)).exp().numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Log-probabilities of the ensemble.

        Args:
            X: Inputs, one sample a row.

        Returns:
            Array (samples, classes), of type `dtype`, in the order of `classes_`.
        """
        how = self._averaged()  # batch by batch: the members' logits of all samples are never together
        return np.concatenate([aggregate_log_proba(log_softmax(part), how).numpy() for part in self._parts(X)])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the ensemble.

        Args:
            X: Inputs, one sample a row.

        Returns:
            Array (samples, classes), of type `dtype`, in the order of `classes_`.
        """
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label.

        Args:
            X: Inputs, one sample a row.

        Returns:
            Array (samples,) of labels.
        """
        best = self.predict_log_proba(X).argmax(1)
        return self.classes_[best]

    def report(
        self, X: Any, y: Any, *, train: Any = None, val: Any = None, ood: Any = None, **options: Any
    ) -> EnsembleReport:
        """Members and ensemble judged on labelled data, see `EnsembleReport`.

        Args:
            X: Inputs, one sample a row.
            y: Labels among `classes_`.
            train: Inputs and labels of the training data, for the gap of the ambiguity.
            val: Inputs and labels on which the temperature of a row of its own is fitted.
            ood: Inputs of no class.
            options: As for `EnsembleReport.from_logits`: bins, rng, resamples.

        Returns:
            The report.

        Raises:
            ValueError: If a label is unknown, or settings are wrong.
        """
        given: dict[str, Any] = {"aggregate": self._averaged()}
        for name, part in (("train", train), ("val", val)):
            if part is not None:
                given[f"{name}_logits"], given[f"{name}_target"] = self._logits(part[0]), self._encoded(part[1])
        if ood is not None:
            given["ood_logits"] = self._logits(ood)
        return EnsembleReport.from_logits(self._logits(X), self._encoded(y), **given, **options)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyrefly: ignore[missing-attribute]
        tags.input_tags.three_d_array = self.module is not None
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the network on the CPU, so that it loads where there is no GPU."""
        state = dict(super().__getstate__())
        if "module_" in state and any(p.device.type != "cpu" for p in state["module_"].parameters()):
            state["module_"] = copy.deepcopy(state["module_"]).cpu()
            objective = copy.deepcopy(state["objective_"])
            state["objective_"] = objective.cpu() if isinstance(objective, torch.nn.Module) else objective
            state["_optimiser"] = None
        return state

    def _inputs(self, X: Any, y: Any = None, *, reset: bool) -> Any:
        """Checked inputs as floats, and labels if any."""
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {self.dtype!r}; give 'float32' or 'float64'")
        options = {"dtype": np.dtype(self.dtype), "allow_nd": self.module is not None, "reset": reset}
        if y is None and not reset:
            return validate_data(self, X, **options)
        X, y = validate_data(self, X, y, **options)
        check_classification_targets(y)
        return X, y

    def _encoded(self, y: Any) -> Tensor:
        """Labels as class indices."""
        labels = column_or_1d(y)
        if len(unknown := np.setdiff1d(labels, self.classes_)):
            raise ValueError(f"y holds {unknown}; the classes are {self.classes_}")
        return torch.tensor(np.searchsorted(self.classes_, labels))

    def _start(self, X: np.ndarray, classes: np.ndarray) -> None:
        """A new network, and a new stream of randomness."""
        checked_aggregate(self.aggregate)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._stream = torch.Generator().manual_seed(seed).get_state()
        generator = torch.Generator().manual_seed(seed)
        with seeded(seed):
            model = build_model(
                self.module, torch.tensor(X[:2]).float(), len(classes), int(self.members), self.mode, self.hidden_sizes,
                self.head_hidden, generator,
            )  # fmt: skip
        self.classes_, self.n_iter_ = classes, 0
        device = best_device("torch") if self.device == "auto" else self.device
        self.module_ = model.to(device, getattr(torch, self.dtype))
        self._optimiser = None

    def _set_objective(self, lam: Any) -> None:
        smoothing = float(self.label_smoothing)
        self.objective_ = build_objective(self.objective, lam, self.aggregate, self.mode, smoothing)

    def _averaged(self) -> Any:
        check_is_fitted(self)
        return getattr(self.objective_, "aggregate", self.aggregate)

    def _draw(self) -> int:
        """A seed from the classifier's own stream, which moves on."""
        generator = torch.Generator()
        generator.set_state(self._stream)
        drawn = int(torch.randint(2**31 - 1, (), generator=generator))
        self._stream = generator.get_state()
        return drawn

    def _train(
        self,
        data: tuple[Tensor, Tensor],
        weight: np.ndarray,
        epochs: int,
        held: tuple[Tensor, Tensor] | None,
        patience: int | None,
        schedule: Any,
    ) -> None:
        if not len(weight):
            raise ValueError(f"class_weight is {self.class_weight!r}: no sample counts; give positive weights")
        if isinstance(self.objective_, torch.nn.Module):
            self.objective_.to(next(self.module_.parameters()).device)
        model: Any = self.module_
        if self.compile:
            model = torch.compile(model, backend=self.compile if isinstance(self.compile, str) else "inductor")
        self.history_ = train(
            model, self.objective_, data, val=held, epochs=epochs, batch_size=self.batch_size, lr=self.lr,
            weight_decay=self.weight_decay, optimiser=self._kept_optimiser, schedule=schedule, patience=patience,
            generator=torch.Generator().manual_seed(self._draw()), progress=bool(self.verbose),
            sample_weight=None if np.all(weight == weight[0]) else torch.tensor(weight),
        )  # fmt: skip
        self.module_.eval()
        self.lam_ = float(
            getattr(getattr(self.objective_, "lam", np.nan), "value", getattr(self.objective_, "lam", np.nan))
        )
        self.n_iter_ += len(self.history_.epochs)

    def _kept_optimiser(self, parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """The optimiser of the last `partial_fit`, with its state, or a new one."""
        if self._optimiser is None:
            self._optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        return self._optimiser

    def _logits(self, X: Any) -> Tensor:
        return torch.cat(list(self._parts(X)), 1)

    def _parts(self, X: Any) -> Iterator[Tensor]:
        """Logits batch by batch."""
        check_is_fitted(self)
        inputs, size = self._inputs(X, reset=False), max(256, int(self.batch_size))
        for start in range(0, len(inputs), size):
            yield predict_logits(self.module_, torch.tensor(inputs[start : start + size]), batch_size=size).cpu()


def _weighted(X: np.ndarray, y: np.ndarray, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples of positive weight: one of weight 0 changes nothing, not even the order of the others."""
    if sample_weight is None:
        return X, y, np.ones(len(y))
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != y.shape or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(f"sample_weight has shape {weight.shape}; give {len(y)} finite numbers of at least 0")
    kept = weight > 0
    if not kept.any():
        raise ValueError("sample_weight is zero for every sample; at least one sample must count")
    return X[kept], y[kept], weight[kept]


def _class_weights(class_weight: Any, y: np.ndarray) -> np.ndarray:
    """What each sample counts for its class."""
    weights = compute_sample_weight(class_weight, y)
    if not (weights >= 0).all():
        raise ValueError(f"class_weight is {class_weight!r}; a weight is at least 0")
    return weights
