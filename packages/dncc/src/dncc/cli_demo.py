"""What `dncc demo` shows: one trunk with eight heads on scikit-learn's digits, trained with several lambdas."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dncc.collusion import collusion_between
from dncc.datasets import digits
from dncc.datasets_split import DataSet, noisy_labels
from dncc.evaluating import evaluate, predict_logits
from dncc.losses import DNCCLoss
from dncc.multihead import MultiHead
from dncc.report_scores import predicted
from dncc.training import fit

__all__ = ["ONE", "demo_figure", "facts", "rows"]

ONE = "one network"
_LAMBDAS, _DRAWS, _MEMBERS = (0.0, 0.5, 0.9, 1.0), 2, 8
_SHOTS, _NOISE, _EPOCHS = 30, 0.1, 30
_WIDTH, _HEAD = 128, 16
_DRAWN = {"members": "member_nll", "ensemble": "ensemble_nll", "disagreement": "disagreement"}


def facts(seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """The figures of each training: means over a few draws of data and weights.

    Args:
        seed: Of the first draw.
        tell: Called with what is being done.

    Returns:
        The setting, and for each way to train its figures.
    """
    names = [ONE, *(f"lambda {lam:g}" for lam in _LAMBDAS)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    sizes: dict[str, Any] = {}
    for draw in range(_DRAWS):
        data = digits(seed + draw, val_share=0.4, shots=_SHOTS, label_noise=_NOISE)
        sizes = {"data": data.source, "train": len(data.y_train), "test": len(data.y_test)}
        for name, lam in zip(names, (None, *_LAMBDAS), strict=True):
            tell(f"{name}, draw {draw + 1} of {_DRAWS}")
            with _one_thread():
                found[name].append(_trained(data, lam, seed + draw))
    ways = {name: {key: fmean(row[key] for row in drawn) for key in drawn[0]} for name, drawn in found.items()}
    return {**sizes, "wrong_labels": _NOISE, "members": _MEMBERS, "draws": _DRAWS, "ways": ways}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products of this size are fastest on one thread, and on a busy machine by far."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(data: DataSet, lam: float | None, seed: int) -> dict[str, float]:
    """A training with a lambda; None: of one head."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, _WIDTH), nn.ReLU())
    members = 1 if lam is None else _MEMBERS
    model = MultiHead(trunk, data.num_classes, members, "full", hidden=(_HEAD,), generator=generator)
    train = (data.x_train, data.y_train)
    fit(model, DNCCLoss(lam or 0.0), train, epochs=_EPOCHS, batch_size=60, lr=5e-3, generator=generator)
    return _figures(model, train, data, seed)


def _figures(model: nn.Module, train: tuple[Any, Any], data: DataSet, seed: int) -> dict[str, float]:
    assert data.x_val is not None
    assert data.y_val is not None
    # The gap between training and other data has a meaning where both have the same share of wrong labels.
    as_noisy = noisy_labels(data.y_val, _NOISE, data.num_classes, np.random.default_rng(seed))
    gap = collusion_between(evaluate(model, train), evaluate(model, (data.x_val, as_noisy)))
    target = torch.as_tensor(data.y_test)
    found = predicted(predict_logits(model, data.x_test), target)
    measured = found.measured("arithmetic")
    right = found.log_proba["arithmetic"].argmax(-1) == target
    return {
        "member_nll": measured.ce,
        "ensemble_nll": measured.ensemble_ce,
        "ambiguity": measured.ambiguity,
        "member_accuracy": float((found.votes == target).double().mean()),
        "accuracy": float(right.double().mean()),
        "disagreement": _disagreement(found.votes),
        "collusion_share": gap.share,
    }


def _disagreement(votes: Tensor) -> float:
    """Mean over pairs; a single member disagrees with nobody."""
    from dncc.diversity import disagreement, mean_over_pairs

    return mean_over_pairs(disagreement(votes)) if len(votes) > 1 else 0.0


def rows(ways: dict[str, dict[str, float]]) -> list[Sequence[str]]:
    """A row for each way to train; what one network lacks stays empty.

    Args:
        ways: Figures by name.

    Returns:
        Cells: name, NLL of a member and of the ensemble, accuracies, disagreement, collusion.
    """
    made: list[Sequence[str]] = []
    for name, way in ways.items():
        cells = [f"{way['member_nll']:.3f}", f"{way['ensemble_nll']:.3f}", f"{way['member_accuracy']:.1%}"]
        cells += [f"{way['accuracy']:.1%}", f"{way['disagreement']:.1%}", f"{way['collusion_share']:.0%}"]
        made.append([name, "", cells[1], "", cells[3], "", ""] if name == ONE else [name, *cells])
    return made


def demo_figure(ways: dict[str, dict[str, float]]) -> Any:
    """NLL of members and ensemble, and disagreement, over lambda.

    Args:
        ways: Figures by name.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from dncc.plots import frontier_figure

    shown = [ways[f"lambda {lam:g}"] for lam in _LAMBDAS]
    columns = {name: [way[key] for way in shown] for name, key in _DRAWN.items()}
    return frontier_figure(_LAMBDAS, **columns)
