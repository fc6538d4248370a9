"""The command: `demo`, `estimate` and `claims`."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from common_core.cli import Answer, option, package_app
from common_core.console import progress, table
from common_core.records import write_bytes_atomic

Device = Literal["cpu", "cuda"]

_DRAWS = 4  # compressed gradients behind each error that the demo shows
_LISTED = 12


def demo(seed: int = 0) -> Answer:
    """Show on one small language model what compression saves and what it does to the gradient.

    Args:
        seed: Seed of the weights and of the rounding.
    """
    import torch

    from gact.claims.models import Decoder, seeded
    from gact.claims.training import gradient, next_byte_loss, passages
    from gact.compressor import ActivationCompressor
    from gact.report import size_text

    with seeded(seed):
        model = Decoder(128, 64, 2, 64, 4)
    import numpy as np

    pieces = passages(64, 16, np.random.default_rng(seed))
    exact = gradient(next_byte_loss(model, pieces), model)
    rows, data, last = [], {}, None
    for bits in (8, 4, "auto:4", 2, "auto:2"):
        used = ActivationCompressor(model, bits, seed=seed)
        if isinstance(bits, str):
            used.calibrate(lambda: next_byte_loss(model, pieces))
        draws = []
        for _ in range(_DRAWS):
            with used:
                loss = next_byte_loss(model, pieces)
            draws.append(gradient(loss, model))
        error = float(torch.stack([(g - exact).norm() / exact.norm() for g in draws]).mean())
        last = used.report()
        data[str(bits)] = {"saved_bytes": last.saved_bytes, "ratio": last.ratio, "gradient_error": error}
        rows.append((str(bits), size_text(last.saved_bytes), f"{last.ratio:.1f}x", f"{error:.2%}"))
    assert last is not None
    plain = [("plain", size_text(last.plain_bytes), "1.0x", "0")]
    kept = sorted((r for r in last.rows if r.plain_bytes), key=lambda r: -r.plain_bytes)[:_LISTED]
    shown: list[Any] = [
        "A byte-level GPT (2 layers, 64 features) on 16 passages of Python's help texts.\n",
        table(["bits", "kept for the backward pass", "smaller", "error of the gradient"], [*plain, *rows]),
        f"\nThe {len(kept)} largest saved tensors with 2 bits on average, spread by sensitivity:\n",
        table(
            ["module", "operation", "shape", "form", "bits", "before", "after", "share of the noise"],
            [
                (r.module, f"{r.operation}.{r.saved}", "x".join(map(str, r.shape)), r.form, f"{r.bits:g}",
                 size_text(r.plain_bytes), size_text(r.nbytes), "" if r.share is None else f"{r.share:.1%}")
                for r in kept
            ],
        ),
        "\nThe forward pass is exact in every row; where a number was rounded is drawn anew at each step.",
    ]  # fmt: skip
    return Answer({"plain_bytes": last.plain_bytes, **data}, shown)


def estimate(
    model: Annotated[str, option("MODEL")],
    /,
    batch: int = 8,
    layers: int = 4,
    width: int = 128,
    length: int = 256,
    image: int = 64,
    targets: Annotated[tuple[str, ...], option("BITS...")] = ("8", "4", "2", "auto:4", "auto:2"),
    min_bytes: int = 16384,
    device: Device = "cpu",
    peak: bool = True,
    html: Annotated[Path | None, option("FILE", "not written")] = None,
) -> Answer:
    """Show what a model saves for the backward pass, and what would be left of it.

    MODEL is gpt, resnet or vit, of the sizes below, or module:function, found from the present folder too: a function
    without arguments that returns a model and either its batch or a function that returns the loss.

    Args:
        model: The model.
        batch: Samples of a built-in model.
        layers: Blocks of gpt and vit; blocks in a stage of resnet.
        width: Features of gpt and vit; channels of resnet's first stage.
        length: Tokens of gpt.
        image: Pixels a side for resnet and vit, a multiple of 8 for the latter.
        targets: Bits, or averages such as auto:4.
        min_bytes: Tensors of fewer bytes stay exact.
        device: Where to run.
        peak: Measure the peak of a plain pass too.
        html: A page with all saved tensors.
    """
    from gact.census import estimate as census_of

    if min(batch, layers, width, length, image) < 1:
        raise ValueError("batch, layers, width, length and image must be 1 or more")
    if html is not None and not html.parent.is_dir():
        raise ValueError(f"the folder {html.parent} of the page does not exist; make it, or mend the path")
    made, given = _load(model) if ":" in model else _built_in(model, batch, layers, width, length, image)
    made.to(device)
    loss, inputs = (given, None) if callable(given) else (None, _to(given, device))
    wanted = [int(target) if target.isdigit() else target for target in targets]
    census = census_of(made, inputs, closure=loss, targets=wanted, min_bytes=min_bytes, peak=peak)
    if html is not None:
        write_bytes_atomic(html, census.html().encode())
        progress().print(f"wrote {html}")
    return Answer(census.to_json(), census.tables())


def _built_in(name: str, batch: int, layers: int, width: int, length: int, image: int) -> tuple[Any, Any]:
    import torch

    from gact.claims.models import Decoder, VisionTransformer, resnet, seeded

    heads = max(1, width // 64)
    with seeded(0):
        if name == "gpt":
            model: Any = Decoder(50257, length, layers, width, heads)
            inputs = torch.randint(50257, (batch, length + 1))
            return model, _classified(model, inputs[:, :-1], inputs[:, 1:])
        images, labels = torch.randn(batch, 3, image, image), torch.randint(1000, (batch,))
        if name == "resnet":
            model = resnet(width, layers, 4, 1000)
        elif name == "vit":
            model = VisionTransformer(image, 8, layers, width, heads, 1000)
        else:
            raise ValueError(f"{name!r} is no model: give gpt, resnet, vit, or module:function")
        return model, _classified(model, images, labels)


def _classified(model: Any, inputs: Any, labels: Any) -> Callable[[], Any]:
    from torch.nn import functional

    def loss() -> Any:
        device = next(model.parameters()).device
        logits = model(inputs.to(device))
        return functional.cross_entropy(logits.flatten(0, -2), labels.to(device).flatten())

    return loss


def _load(name: str) -> tuple[Any, Any]:
    """What a user's function returns: a model and a batch or closure."""
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), function, None)
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ValueError(f"the module {module} has no function {function!r}")
    made = found()
    if not isinstance(made, tuple) or len(made) != 2:
        raise TypeError(
            f"{name} returned a {type(made).__name__}; return (model, batch) or (model, function for the loss)"
        )
    return made


def _to(batch: Any, device: str) -> Any:
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _to(value, device) for key, value in batch.items()}
    return type(batch)(_to(value, device) for value in batch) if isinstance(batch, tuple | list) else batch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    verbs = {"demo": demo, "estimate": estimate}
    description = "Activation-compressed training for PyTorch models."
    return package_app("gact", verbs, description, arguments)
