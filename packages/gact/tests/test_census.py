"""The census counts what autograd saves, predicts what the compressor keeps to the byte, and leaves no trace."""

import pytest
import torch
from torch import nn

import gact
from gact.ledger import affine_bytes, field_bytes

NET = (64, 256, 512)  # features, hidden features, rows


def network(kind: type[nn.Module] = nn.GELU) -> nn.Sequential:
    torch.manual_seed(0)
    features, hidden, _ = NET
    return nn.Sequential(nn.Linear(features, hidden), kind(), nn.Linear(hidden, hidden), kind(), nn.Linear(hidden, 1))


def batch() -> torch.Tensor:
    return torch.randn(NET[2], NET[0], generator=torch.Generator().manual_seed(1))


def test_bytes_follow_from_the_shapes() -> None:
    census = gact.estimate(network(), batch(), targets=(8, 4, 2, 1, "auto:4", "auto:2.5"))
    n = NET[1] * NET[2]
    assert census.plain_bytes == 4 * 4 * n  # what each GELU and each linear layer after it reads
    for bits in (8, 4, 2, 1):
        assert census.targets[str(bits)] == 4 * affine_bytes(n, bits, 256, torch.float32)
    assert census.targets["auto:4"] == census.targets["4"]
    assert census.targets["auto:2.5"] == 4 * (n * 2.5 / 8 + n // 256 * 8)
    assert census.smallest_bytes == census.targets["1"]


def test_relu_keeps_one_storage_and_its_signs() -> None:
    census = gact.estimate(network(nn.ReLU), batch(), targets=(2,))
    n = NET[1] * NET[2]
    assert census.plain_bytes == 2 * 4 * n  # ReLU and the next layer save the same numbers
    assert census.targets["2"] == 2 * (affine_bytes(n, 2, 256, torch.float32) + field_bytes(n, 1))


@pytest.mark.parametrize("bits", [8, 2, 1, "auto:4"])
@pytest.mark.parametrize("kind", [nn.GELU, nn.ReLU])
def test_the_compressor_keeps_what_was_predicted(bits: int | str, kind: type[nn.Module]) -> None:
    model, inputs = network(kind), batch()
    model.insert(2, nn.Dropout(0.2))
    census = gact.estimate(model, inputs, targets=(bits,))
    compressor = gact.ActivationCompressor(model, bits)
    with compressor:
        loss = model(inputs).mean()
    loss.backward()
    compressor.step()
    with compressor:
        loss = model(inputs).mean()  # named, since what a graph saved is known while the graph lives
    kept, predicted = compressor.report().saved_bytes, census.targets[str(bits)]
    assert kept <= predicted if isinstance(bits, str) else kept == predicted
    assert compressor.report().plain_bytes == census.plain_bytes


def test_it_leaves_no_trace() -> None:
    model = nn.Sequential(
        nn.Conv1d(8, 32, 3), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(1)
    )
    inputs = torch.randn(64, 8, 32)
    model(inputs).mean().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state = torch.get_rng_state()
    gact.estimate(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True) if p.grad is not None)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_the_peak_is_that_of_a_plain_pass() -> None:
    census = gact.estimate(network(), batch())
    assert census.peak is not None
    assert census.plain_bytes < census.peak.peak_added < 3 * census.plain_bytes
    assert gact.estimate(network(), batch(), peak=False).peak is None


def test_batches_of_all_kinds_and_closures_see_the_same() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, list[torch.Tensor]]:
            return {"out": [self.body(x) * scale]}

    model, x = Two(), batch()
    found = [
        gact.estimate(model, x), gact.estimate(model, (x, 2.0)), gact.estimate(model, {"x": x, "scale": 2.0}),
        gact.estimate(model, closure=lambda: model(x)["out"][0].mean()),
    ]  # fmt: skip
    assert len({census.plain_bytes for census in found}) == 1
    assert len({tuple(census.targets.items()) for census in found}) == 1


def test_an_output_with_a_loss_is_followed_from_its_loss() -> None:
    class Output:
        def __init__(self, loss: torch.Tensor) -> None:
            self.loss = loss

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: torch.Tensor) -> Output:
            return Output(self.body(x).mean())

    model = WithLoss()
    assert gact.estimate(model, batch()).plain_bytes == gact.estimate(model.body, batch()).plain_bytes


def test_rules_min_bytes_and_groups_are_heeded() -> None:
    model, inputs = network(), batch()
    usual = gact.estimate(model, inputs, targets=(2,))
    exact = gact.estimate(model, inputs, targets=(2,), rules=[gact.Rule("exact", operation="Gelu")])
    small = gact.estimate(model, inputs, targets=(2,), min_bytes=1 << 20)
    coarse = gact.estimate(model, inputs, targets=(2,), group_size=1024)
    n = NET[1] * NET[2]
    assert exact.targets["2"] - usual.targets["2"] == 2 * (4 * n - affine_bytes(n, 2, 256, torch.float32))
    assert small.targets["2"] == small.plain_bytes == usual.plain_bytes
    assert coarse.targets["2"] < usual.targets["2"]


def test_text_and_page_hold_the_figures() -> None:
    census = gact.estimate(network(), batch(), targets=(2,))
    for shown in (census.text(), census.html()):
        assert "Gelu" in shown
        assert "2.00 MiB" in shown
        assert "14.22x" in shown
    assert "and 3 smaller ones" in census.text(most=1)
    assert census.html().count("<tr>") == 2 + 3 + 4
    assert set(census.to_json()) == {"plain_bytes", "outside_bytes", "targets", "smallest_bytes", "peak", "rows"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gact.estimate(torch.nn.functional.relu, 1), TypeError, "Module"),
        (lambda: gact.estimate(network()), ValueError, "either a batch or a closure"),
        (lambda: gact.estimate(network(), batch(), closure=lambda: torch.ones(())), ValueError, "not both"),
        (lambda: gact.estimate(network(), batch(), targets=("bytes:1MiB",)), ValueError, "in bytes already"),
        (lambda: gact.estimate(network(), batch(), targets=(3,)), ValueError, "give 1, 2, 4 or 8"),
        (lambda: gact.estimate(network(), batch(), group_size=100), ValueError, "group_size=100"),
        (lambda: gact.estimate(network().requires_grad_(False), batch()), ValueError, "no loss with a graph"),
    ],
)
def test_mistakes_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
