"""The command: `demo`, `train`, `report` and `claims`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from common_core.cli import Answer, option, package_app, writable

File = Annotated[Path | None, option("FILE", "not written")]
Folder = Annotated[Path | None, option("DIR", "not written")]
Average = Annotated[Literal["arithmetic", "geometric"] | None, option("{arithmetic,geometric}", "as trained")]
Objective = Literal["dncc", "independent", "end-to-end", "mse-ncl", "kl-to-mean", "adp"]


_DEMO = """
NLL in nats on test data, mean over the draws. Disagreement: pairs of members that predict different classes. Collusion:
share of the gap between training and unseen data that is due to diversity which does not carry over. As lambda goes to
1 members specialise and are worth less alone; the ensemble tends to be best in between. Small data, a first look."""


def demo(seed: int = 0, figure: File = None) -> Answer:
    """Train eight heads on one trunk with several lambdas, beside one network, on scikit-learn's digits.

    Args:
        seed: Seed of data, weights and order.
        figure: What lambda trades, as SVG.
    """
    from common_core.console import progress, table
    from dncc.cli_demo import demo_figure, facts, rows

    writable(figure)
    console = progress()
    if figure is not None:
        import dncc.plots as _  # noqa: F401 (missing matplotlib is said before, not after)
    with console.status("training") as status:
        data = facts(seed, lambda what: status.update(f"training: {what}"))
    head = ["", "member NLL", "ensemble NLL", "member accuracy", "accuracy", "disagreement", "collusion"]
    setting = f"{data['train']} digits to train on, {data['wrong_labels']:.0%} of them with a wrong label"
    shown: list[Any] = [
        f"{data['members']} heads on one trunk; {setting}; {data['test']} to test on; {data['draws']} draws.\n",
        table(head, rows(data["ways"])),
        _DEMO,
    ]
    if figure is not None:
        from common_core.plotting import svg
        from common_core.records import write_bytes_atomic

        write_bytes_atomic(figure, svg(demo_figure(data["ways"])).encode())
        shown.append(f"wrote {figure}")
    return Answer(data, shown)


def train(
    data: Annotated[Path, option("DATA")],
    /,
    out: Annotated[Path, option("DIR")],
    backbone: str = "small-cnn",
    width: Annotated[int, option("INT", "128 for mlp, 32 for small-cnn")] = 0,
    weights: Annotated[Path | None, option("FILE", "random weights")] = None,
    members: int = 8,
    mode: str = "partition",
    head_hidden: tuple[int, ...] = (),
    lam: str = "0.5",
    objective: Objective = "dncc",
    aggregate: Literal["arithmetic", "geometric"] = "arithmetic",
    label_smoothing: float = 0.0,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    augment: Literal["none", "flip", "crop", "flip-crop"] = "none",
    patience: int = 0,
    size: int = 32,
    grey: bool = False,
    skip_unreadable: bool = False,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    amp: bool = False,
    resume: bool = False,
) -> Answer:
    """Train an ensemble, with a checkpoint after every epoch.

    DATA is a folder with one of pictures a class (or train, val and test of such folders), or an npz file with arrays
    x and y, and perhaps x_val, y_val, x_test, y_test, x_ood, groups. DIR gets config.json, checkpoint.safetensors,
    model.safetensors, predictions.npz and history.json. Ctrl-C leaves a good checkpoint.

    Args:
        data: What to train on.
        out: Folder to write to.
        backbone: mlp, small-cnn, timm:NAME or torchvision:NAME.
        width: Of the layers of mlp, or of the first of small-cnn.
        weights: The backbone's weights, a safetensors file; its classifier is not taken.
        members: Members of the ensemble.
        mode: partition or full heads, separate, batch-ensemble, or branch:LAYER of the backbone.
        head_hidden: Widths of each head's hidden layers.
        lam: A number in [0, 1], linear:START:END, guarded, or hyper.
        objective: The loss.
        aggregate: How members are averaged, in the loss and in the report.
        label_smoothing: Share of the label that goes to all classes alike.
        epochs: Passes over the training data.
        batch_size: Samples a step.
        lr: Learning rate of AdamW at the start; goes down to 0 by a cosine.
        weight_decay: Decoupled weight decay.
        augment: Mirror images, small shifts, or both; for pictures.
        patience: Epochs without improvement on validation data before stopping; 0 for never.
        size: Pixels a side, for folders of pictures.
        grey: Grey pictures instead of colours.
        skip_unreadable: Go on without pictures that cannot be read.
        validation_share: Share of the training data for validation, where there is no such part.
        test_share: Share for testing, where there is no such part.
        seed: Seed of cuts, weights and order.
        device: Such as cpu or cuda; auto is cuda where there is one.
        amp: Mixed precision.
        resume: Go on from the checkpoint in DIR, with the same data and settings.
    """
    from common_core.console import progress, table
    from common_core.devices import best_device
    from dncc.cli_data import Reading, fingerprint, load_parts
    from dncc.cli_models import Architecture
    from dncc.cli_runs import Run, Settings
    from dncc.cli_train import terms_table, train_run

    how = Reading(size, grey, skip_unreadable)
    with progress().status(f"reading {data}") as status:
        parts = load_parts(
            data, how, test_share=test_share, validation_share=validation_share, seed=seed,
            progress=lambda share: status.update(f"reading {data}: {share:.0%}"),
        )  # fmt: skip
    architecture = Architecture(
        backbone, width, members, mode, tuple(head_hidden), parts.x_train.shape[1:], parts.num_classes
    )
    settings = Settings(
        lam, objective, aggregate, label_smoothing, epochs, batch_size, lr, weight_decay, augment, patience, amp, seed,
        "" if weights is None else weights.name,
    )  # fmt: skip
    run = Run(out, architecture, settings, how, parts.classes, fingerprint(parts))
    where = best_device("torch") if device == "auto" else device
    history, model = train_run(run, parts, where, resume, weights)
    last = history.epochs[-1]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = f"{members} members, {parameters} parameters, {last.epoch} epochs on {len(parts.y_train)} samples"
    facts = {
        "out": str(out), "epochs": len(history.epochs), "best_epoch": history.best_epoch, "members": members,
        "parameters": parameters, "lam": last.lam, "train": last.train, "validation": last.validation,
    }  # fmt: skip
    shown: list[Any] = [
        f"{trained}, lambda {last.lam:.3g} at the end\n",
        table(*terms_table(last)),
        f"\nwrote {out}; dncc report {out} judges it on data that were held out",
    ]
    return Answer({**facts, "train": vars(last.train), "validation": last.validation and vars(last.validation)}, shown)


def report(
    runs: Annotated[tuple[Path, ...], option("RUN_OR_PREDICTIONS")],
    /,
    data: Annotated[Path | None, option("DATA", "what was held out in training")] = None,
    ood: Annotated[Path | None, option("DATA", "what the training data hold")] = None,
    aggregate: Average = None,
    html: File = None,
    figures: Folder = None,
) -> Answer:
    """Judge ensembles: accuracy, calibration, diversity, collusion, unknown samples; several are compared.

    RUN_OR_PREDICTIONS are folders that dncc train wrote, or npz files that dncc.io.save_predictions wrote: logits of
    shape (members, samples, classes), and y.

    Args:
        runs: What to judge; the first is what the others are compared with.
        data: Other data to judge folders on: their test part, or all.
        ood: Samples of no class: a folder of pictures, or an npz file with x_ood or x.
        aggregate: How members are averaged.
        html: One page with tables and figures.
        figures: Folder for the figures as SVG.
    """
    from common_core.console import as_text
    from common_core.records import write_bytes_atomic
    from dncc.cli_report import figures as drawn
    from dncc.cli_report import judge, page, shown, titled, write

    if not runs:
        raise ValueError("give at least one folder that dncc train wrote, or one file of predictions")
    writable(html)
    if figures is not None and figures.exists() and not figures.is_dir():
        raise ValueError(f"{figures} is a file; give a folder for the figures")
    found = {name: judge(path, data, ood, aggregate) for name, path in zip(titled(runs), runs, strict=True)}
    facts, parts = shown(found)
    pictures = drawn(found) if html is not None or figures is not None else {}
    if html is not None:
        write_bytes_atomic(html, page(f"dncc: {', '.join(found)}", as_text(parts), pictures).encode())
        parts.append(f"\nwrote {html}")
    if figures is not None:
        parts += [f"wrote {file}" for file in write(pictures, figures)]
    return Answer(facts, parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    verbs = {"demo": demo, "train": train, "report": report}
    description = (
        "Ensembles whose accuracy and diversity are controlled by one number, at about the cost of one network."
    )
    return package_app("dncc", verbs, description, arguments)
