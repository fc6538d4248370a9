"""Branches equal modules run one by one, with statistics and masks of their own; models are cut where asked."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from dncc.branching import Branching, branch_at
from dncc.cutting import CutError, cut_at
from dncc.initialising import build_members, draw_seeds, fresh_copies, fresh_copy

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trunk() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())


def branch() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 3))  # fmt: skip


@pytest.mark.parametrize(("execution", "chunk"), [("auto", None), ("loop", None), ("vmap", None), ("vmap", 2)])
def test_branches_equal_modules_run_one_by_one(execution: Any, chunk: int | None) -> None:
    shared, modules = trunk().double(), [branch().double() for _ in range(3)]
    model = Branching(shared, [copy.deepcopy(m) for m in modules], execution=execution, chunk=chunk)
    other = copy.deepcopy(shared)
    x = X.double()
    for _ in range(2):  # two passes, so that the statistics that the second one moves are those of the first
        ours = model(x)
        theirs = torch.stack([module(other(x)) for module in modules])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(ours.shape, generator=seeded(), dtype=torch.float64)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(shared[0].weight.grad, other[0].weight.grad, rtol=0, atol=1e-12)
    gradients = dict(model.branches.template.named_parameters())
    buffers = dict(model.branches.template.named_buffers())
    for m, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(gradients[name].grad[m], parameter.grad, rtol=0, atol=1e-12)
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(buffers[name][m], buffer, rtol=0, atol=1e-12)
    assert buffers["1.num_batches_tracked"].tolist() == [2, 2, 2]
    assert not torch.equal(buffers["1.running_mean"][0], buffers["1.running_mean"][1])
    model.eval()
    expected = torch.stack([module.eval()(other(x)) for module in modules])
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("execution", "chunk"), [("loop", None), ("vmap", None), ("vmap", 1)])
def test_a_branch_that_overwrites_its_input_leaves_the_next_ones_alone(execution: Any, chunk: int | None) -> None:
    activation = nn.Sequential(nn.SiLU(inplace=True), nn.Linear(6, 3)).double()
    model = Branching(nn.Linear(4, 6).double(), activation, 3, execution=execution, chunk=chunk)
    x = torch.randn(5, 4, dtype=torch.float64, generator=seeded())
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            alone = torch.stack([module(model.trunk(x)) for module in model.branches.unstack()])
            torch.testing.assert_close(model(x), alone, rtol=0, atol=1e-12)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_dropout_differs_between_branches(execution: Any) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.layer = nn.Dropout(), nn.Linear(64, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.dropout(x))

    masked = Masked()
    with torch.no_grad():
        masked.layer.weight.fill_(1)
        masked.layer.bias.fill_(0)
    copies = [copy.deepcopy(masked) for _ in range(2)]
    model = Branching(nn.Identity(), copies, num_classes=1, execution=execution)
    torch.manual_seed(0)
    first, second = model(torch.ones(32, 64))
    # One mask for both would give equal sums; 32 independent pairs of Binomial(64, 1/2) all agree with probability
    # below 0.11**32.
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(*model(torch.ones(32, 64)))


def test_copies_start_different_and_reproducibly() -> None:
    before = torch.random.get_rng_state()
    models = [Branching(trunk(), branch(), 3, generator=seeded(s)) for s in (0, 0, 1)]
    first, same, other = (m.branches.template[0].weight for m in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(first[a], first[b])
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(before)
    for _ in range(3):  # only the building of the modules used the default generator
        trunk(), branch()
    assert torch.equal(torch.random.get_rng_state(), after)


def test_fresh_copies_have_the_distribution_of_the_layer_and_clean_statistics() -> None:
    norm = nn.Sequential(nn.Linear(200, 200), nn.BatchNorm1d(200))
    norm(torch.randn(50, 200) + 3)
    found = fresh_copy(norm.double(), 0)
    assert found[0].weight.dtype == torch.float64
    assert torch.equal(found[1].running_mean, torch.zeros(200, dtype=torch.float64))
    bound = 200**-0.5
    # 40,000 draws of U(-b, b): the relative error of the standard deviation is 0.0022 (one sigma); 2 % are exceeded
    # with probability below 1e-15.
    assert abs(found[0].weight.std() / (bound / 3**0.5) - 1) < 0.02


def test_modules_that_cannot_be_initialised_anew() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match=r"no layer of Table has reset_parameters\(\)"):
        fresh_copy(Table(), 0)
    assert len(fresh_copies(nn.ReLU(), 2)) == 2  # nothing to initialise
    with pytest.raises(ValueError, match="lazy"):
        fresh_copy(nn.LazyLinear(3), 0)


def test_members_from_lists_and_functions() -> None:
    def build() -> nn.Module:
        return nn.Linear(2, 2)

    a, b, c = (build_members(build, 2, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(a[1].weight, b[1].weight)
    assert not torch.equal(a[0].weight, a[1].weight)
    assert not torch.equal(a[0].weight, c[0].weight)
    assert len(set(draw_seeds(100, seeded()))) == 100
    layer = nn.Linear(2, 2)
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (build, None, ValueError, "members= is needed"),
        (build, 0, ValueError, "members is 0"),
        (build, 2.0, TypeError, "whole number"),
        ([layer], 2, ValueError, "members is 2 and 1 modules were given"),
        ([], None, ValueError, "no modules were given"),
        ([layer, layer], None, ValueError, "appears twice"),
        ([layer, 3], None, TypeError, "found int"),
        (layer, 2, TypeError, "one module was given"),
    ]
    for source, members, error, message in cases:
        with pytest.raises(error) as caught:
            inspect.unwrap(build_members)(source, members)
        assert message in str(caught.value) or "jaxtyping" in type(caught.value).__module__


def vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 16, num_classes=5)


MODELS: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: torchvision.models.resnet18(num_classes=5), "layer4"),
    (lambda: torchvision.models.resnet18(num_classes=5), "layer4.1"),
    (lambda: torchvision.models.resnet18(num_classes=5), "conv1"),
    (lambda: torchvision.models.resnet18(num_classes=5), "fc"),
    (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), "features.9"),
    (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 8, 8, num_classes=5),
        "encoder.layers.encoder_layer_1",
    ),
    (lambda: timm.create_model("resnet10t", num_classes=5), "layer4"),
    (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5), "blocks.2"),
    (lambda: timm.create_model("convnext_atto", num_classes=5), "stages.3"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 5)), "2"),
]


@pytest.mark.parametrize(("build", "at"), MODELS, ids=lambda value: value if isinstance(value, str) else "")
def test_both_halves_make_the_model(build: Callable[[], nn.Module], at: str) -> None:
    model = build().eval()
    before, after = cut_at(model, at)
    torch.testing.assert_close(after(before(X)), model(X), rtol=0, atol=0)
    ours = {id(p) for half in (before, after) for p in half.parameters()}
    assert ours <= {id(p) for p in model.parameters()}
    assert not {id(p) for p in before.parameters()} & {id(p) for p in after.parameters()}
    inside = {id(p) for p in model.get_submodule(at).parameters()}
    assert inside <= {id(p) for p in after.parameters()}
    assert not before.training


def test_branching_at_a_part() -> None:
    model = torchvision.models.resnet18(num_classes=5)
    ensemble = branch_at(model, "layer4", 3, num_classes=7, generator=seeded())
    assert ensemble(X).shape == (3, 4, 7)
    assert ensemble.num_classes == 7
    assert model.fc.out_features == 5
    assert ensemble.trunk.layer3 is model.layer3  # shared, and the branches are not
    owned = {t.untyped_storage().data_ptr() for t in ensemble.branches.parameters()}
    assert not owned & {t.untyped_storage().data_ptr() for t in model.parameters()}
    branch_size = sum(p.numel() for part in (model.layer4, nn.Linear(512, 7)) for p in part.parameters())
    assert sum(p.numel() for p in ensemble.branches.parameters()) == 3 * branch_size
    ensemble(X).square().sum().backward()
    assert all(p.grad is not None for p in ensemble.parameters())


def test_keeping_a_models_weights() -> None:
    model = torchvision.models.resnet18(num_classes=5)
    for classes in (None, 7):
        ensemble = branch_at(model, "layer4", 2, num_classes=classes, init="keep", generator=seeded())
        first, second = ensemble.branches.unstack()
        for part in (first, second):
            assert torch.equal(part.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
        assert not torch.equal(first.fc.weight, second.fc.weight)
        assert ensemble(X).shape == (2, 4, classes or 5)
    same = branch_at(model, "layer4", 2, init="keep", generator=seeded())
    again = branch_at(model, "layer4", 2, init="keep", generator=seeded())
    assert torch.equal(same.eval()(X), again.eval()(X))


class Stacked(nn.Module):
    """Two blocks; what crosses between them, and how often they run, is the test's choice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second, self.head = kind, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out = self.second(hidden)
        if self.kind == "skip":
            out = out + x
        elif self.kind == "twice":
            out = self.second(out)
        elif self.kind == "mode":
            out = nn.functional.dropout(out, 0.5, self.training)
        elif self.kind == "values" and out.sum() > 0:
            out = -out
        return self.head(out)


@pytest.mark.parametrize(
    ("kind", "at", "message"),
    [
        ("plain", "third", "Stacked has no part 'third'; give a path such as one of: first, second, head"),
        ("plain", "", "has no part ''"),
        ("skip", "second", r"2 values cross a cut at 'second' \((x, first|first, x)\)"),
        ("twice", "second", "runs 2 times"),
        ("mode", "second", "other operations in training"),
        ("values", "second", "cannot be traced by torch.fx .* build the two halves yourself"),
    ],
)
def test_cuts_that_are_refused(kind: str, at: str, message: str) -> None:
    model = Stacked(kind).eval()
    model.first.train()
    with pytest.raises(CutError, match=message):
        branch_at(model, at, 2)
    assert (model.training, model.first.training, model.second.training) == (False, True, False)


def test_options_that_are_refused() -> None:
    with pytest.raises(ValueError, match="members= is needed"):
        Branching(trunk(), branch())
    with pytest.raises(ValueError, match="could not be recognised: give num_classes="):
        Branching(trunk(), nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2)), 2)
    with pytest.raises(ValueError, match="num_classes is 0"):
        Branching(trunk(), branch(), 2, num_classes=0)
    with pytest.raises(ValueError, match=r"a branch gives shape \(4, 3\); it must be \(batch, 2\)"):
        Branching(trunk(), branch(), 2, num_classes=2)(X)
    with pytest.raises(ValueError, match="chunk is 0"):
        Branching(trunk(), branch(), 2, chunk=0)
    with pytest.raises(ValueError, match="init is 'new'"):
        inspect.unwrap(branch_at)(trunk(), "1", 2, init="new")
    with pytest.raises(ValueError, match="the classifier of ReLU could not be recognised"):
        branch_at(nn.ReLU(), "1", 2, num_classes=3)


def test_copies_pickles_and_states_give_the_same_logits() -> None:
    model = branch_at(torchvision.models.resnet18(num_classes=5), "layer4.1", 2).eval()
    other = branch_at(torchvision.models.resnet18(num_classes=5), "layer4.1", 2).eval()
    expected = model(X)
    other.load_state_dict(model.state_dict())
    for found in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(found(X), expected, rtol=0, atol=0)
