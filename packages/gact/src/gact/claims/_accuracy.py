"""Claims on what compression costs in the end: the same runs with and without it, over several seeds.

Runs of one seed share initial weights, batches and dropout; only the rounding of what is stored differs. All tensors
of 1 KiB or more are compressed. The margins were set before the first run. At first an average of 2 bits was judged
everywhere; it met the margin on the CNN, missed it on the other two, and is shown there without a verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from common_core.claims import Check, Claim, Estimate, Outcome, at_most, report_progress
from common_core.seeding import Streams, numpy_rng
from common_core.stats import bootstrap_mean
from gact.claims import training
from gact.claims.models import Decoder, graph_network, seeded, small_cnn

KEYS = {"plain": "plain", "8": "fixed8", "auto:4": "auto4", "auto:2": "auto2", "2": "fixed2"}
JUDGED = ("8", "auto:4")  # what the paper calls level 1; lower averages are shown beside it
JUDGED_CNN = (*JUDGED, "auto:2")  # the paper has convolutional networks at 2 bits too
JUDGED_EARLY = ("auto:4",)  # by the few unconverged runs of the quick scale, and by their mean
_SEEDS = {"quick": 5, "full": 10}
_MODES = {"quick": ("plain", "auto:4", "auto:2"), "full": training.MODES}
_CNN_STEPS = {"quick": 40, "full": 130}
_TEXT_STEPS = {"quick": 15, "full": 100}
_GRAPH_STEPS = {"quick": 15, "full": 40}
_GRAPHS = {"quick": ("GCN",), "full": ("GCN", "GAT")}
_POINTS, _NATS = 0.5, 0.03  # margins
_LENGTH, _BATCH, _NEIGHBOURS, _KNOWN = 64, 8, 5, 300

Study = Callable[[str, int], tuple[float, Sequence[float]]]  # mode, seed -> score, loss of every step


def compare(one: Study, scale: str, seed: int) -> Outcome:
    """Score of every mode, and how much less than plain, paired by seed.

    Args:
        one: Trains one model; higher scores are better.
        scale: Of the claim.
        seed: Of the claim.

    Returns:
        Metrics ``<mode>`` and ``drop_<mode>``, and the figure of the loss curves.
    """
    seeds, modes = _SEEDS[scale], _MODES[scale]
    scores: dict[str, list[float]] = {mode: [] for mode in modes}
    curves: dict[str, list[Any]] = {mode: [] for mode in modes}
    for number in range(seeds):
        report_progress(number, seeds, "seeds")
        for mode in modes:
            score, losses = one(mode, Streams(seed, "gact", "accuracy", number).env("run"))
            scores[mode].append(score)
            curves[mode].append(losses)
    rng = numpy_rng(seed, "gact", "intervals")
    metrics = {KEYS[mode]: bootstrap_mean(np.abs(values), rng=rng) for mode, values in scores.items()}
    drops = training.paired_drops(scores)
    metrics |= {f"drop_{KEYS[mode]}": bootstrap_mean(values, rng=rng) for mode, values in drops.items()}
    return Outcome(metrics, {"Training loss, mean over seeds": _figure({m: np.mean(c, 0) for m, c in curves.items()})})


def _figure(curves: Mapping[str, np.ndarray]) -> str:
    from gact.claims._figures import new_figure, style, svg

    figure, axes = new_figure(6.0, 3.2)
    for mode, losses in curves.items():
        axes.plot(np.arange(1, len(losses) + 1), losses, **style(mode))
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.legend(fontsize=8)
    return svg(figure)


def holds(margin: float, what: str, judged: Sequence[str] = JUDGED) -> Callable[[Mapping[str, Estimate]], list[Check]]:
    """The worst that the intervals allow stays within a margin; at the quick scale, the mean at 4 bits does.

    Runs of the quick scale end where accuracy still climbs, and any two of them are far apart there.
    """

    def judge(metrics: Mapping[str, Estimate]) -> list[Check]:
        if f"drop_{KEYS['8']}" not in metrics:
            return [at_most(f"{what}, {mode}", metrics[f"drop_{KEYS[mode]}"], margin) for mode in JUDGED_EARLY]
        return [at_most(f"upper end of {what}, {mode}", metrics[f"drop_{KEYS[mode]}"].upper, margin) for mode in judged]

    return judge


def _known_and_unknown(model: torch.nn.Module, inputs: tuple[Any, ...], labels: torch.Tensor) -> float:
    """Percentage of right answers."""
    with training.evaluating(model):
        return 100 * float((model(*inputs).argmax(1) == labels).double().mean())


def run_cnn(scale: str, seed: int, device: str) -> Outcome:
    """Accuracy of the CNN on digits that it has not seen."""
    data, steps = training.digits(), _CNN_STEPS[scale]

    def one(mode: str, run: int) -> tuple[float, Sequence[float]]:
        with seeded(run):
            model = small_cnn(8)
        picks = torch.from_numpy(numpy_rng(run, "batches").integers(len(data.train), size=(steps, 64)))

        def loss(step: int) -> torch.Tensor:
            return functional.cross_entropy(model(data.train[picks[step]]), data.train_labels[picks[step]])

        losses = training.fit(model, loss, mode, steps, lr=1e-2, seed=run)
        return _known_and_unknown(model, (data.test,), data.test_labels), losses

    return compare(one, scale, seed)


def run_transformer(scale: str, seed: int, device: str) -> Outcome:
    """Held-out loss of the byte language model."""
    steps, layers = _TEXT_STEPS[scale], {"quick": 1, "full": 2}[scale]
    held_out = training.passages(_LENGTH, 64, numpy_rng(seed, "held out"), "test")

    def one(mode: str, run: int) -> tuple[float, Sequence[float]]:
        with seeded(run):
            model = Decoder(128, _LENGTH, layers, 32, 2)
        rng = numpy_rng(run, "batches")
        pieces = [training.passages(_LENGTH, _BATCH, rng) for _ in range(steps)]
        losses = training.fit(
            model, lambda step: training.next_byte_loss(model, pieces[step]), mode, steps, lr=5e-3, seed=run
        )
        with training.evaluating(model):
            return -float(training.next_byte_loss(model, held_out)), losses

    return compare(one, scale, seed)


def run_graph(scale: str, seed: int, device: str) -> Outcome:
    """Accuracy of the graph networks on the nodes without labels, mean of the kinds."""
    data, steps = training.digits(), _GRAPH_STEPS[scale]
    features = torch.cat([data.train, data.test]).flatten(1)
    labels = torch.cat([data.train_labels, data.test_labels])
    edges = training.knn_edges(features, _NEIGHBOURS)

    def score(kind: Any, mode: str, run: int) -> tuple[float, Sequence[float]]:
        with seeded(run):
            model = graph_network(kind, 64, {"GCN": 32, "GAT": 16}[kind], 10)
        order = torch.from_numpy(numpy_rng(run, "labels").permutation(len(labels)))
        known, unknown = order[:_KNOWN], order[_KNOWN:]
        losses = training.fit(
            model, lambda step: functional.cross_entropy(model(features, edges)[known], labels[known]), mode, steps,
            lr=2e-2, seed=run,
        )  # fmt: skip
        with training.evaluating(model):
            right = model(features, edges).argmax(1) == labels
        return 100 * float(right[unknown].double().mean()), losses

    def both(mode: str, run: int) -> tuple[float, Sequence[float]]:
        parts = [score(kind, mode, run) for kind in _GRAPHS[scale]]
        return float(np.mean([part[0] for part in parts])), np.mean([part[1] for part in parts], axis=0).tolist()

    return compare(both, scale, seed)


_PLOT = {"matplotlib": "gact[claims]"}
_HEADLINE = "{{plain:.{d}f}} {unit}; {what}: {{drop_auto4:+.{d}f}} at 4 bits on average, {{drop_auto2:+.{d}f}} at 2"

CLAIMS = (
    Claim(
        id="gact.accuracy-cnn",
        statement="A convolutional network trained on compressed activations is as accurate as without compression.",
        source="Section 6.2, ResNet-50 on ImageNet; abstract",
        paper="accuracy loss below 0.5 points at 4 bits (text of the authors)",
        run=run_cnn,
        holds=holds(_POINTS, "the accuracy lost, points", JUDGED_CNN),
        headline=_HEADLINE.format(d=2, unit="% right without", what="lost"),
        differs=(
            "scikit-learn's digits and a two-layer network with batch norm and max-pooling; margin 0.5 points for 8 "
            "bits and averages of 4 and 2; 10 seeds. Quick: 5 seeds, fewer steps, averages only, "
            "of which 4 is judged."
        ),
        requires={"sklearn": "gact[claims]", **_PLOT},
    ),
    Claim(
        id="gact.accuracy-transformer",
        statement="A language model trained on activations of 4 bits on average is as good as without compression.",
        source="Section 6.3, BERT-large on GLUE",
        paper="MNLI 86.74 to 86.61, SST-2 93.69 to 93.54, MRPC 88.20 to 87.90, QNLI 92.25 to 92.44 at 4 bits",
        run=run_transformer,
        holds=holds(_NATS, "the loss added, nats a byte"),
        headline=_HEADLINE.format(d=3, unit="nats a byte without", what="added"),
        differs=(
            "A small byte-level GPT from random weights on Python's help texts instead of fine-tuning BERT-large; "
            "margin 0.03 nats a byte, about 1 %, for 8 bits and an average of 4, 2 is shown; 10 seeds. Quick: 5 seeds, "
            "one layer, fewer steps, averages only."
        ),
        requires=_PLOT,
    ),
    Claim(
        id="gact.accuracy-graph",
        statement="Graph networks trained on activations of 4 bits on average are as accurate as without compression.",
        source="Section 6.2, GCN, GAT and GCNII on Flickr, Reddit, Yelp, ogbn-arxiv",
        paper="within the noise of seeds, activations 4 to 7.5 times smaller",
        run=run_graph,
        holds=holds(_POINTS, "the accuracy lost, points"),
        headline=_HEADLINE.format(d=2, unit="% right without", what="lost"),
        differs=(
            "GCN and GAT of torch_geometric, full batch, on the graph of the 5 nearest neighbours of scikit-learn's "
            "digits, 300 labels; mean of both networks; margin 0.5 points for 8 bits and an average of 4, 2 is shown; "
            "10 seeds. Quick: GCN, 5 seeds, fewer steps, averages only."
        ),
        requires={"sklearn": "gact[claims]", "torch_geometric": "gact[claims]", **_PLOT},
    ),
)
