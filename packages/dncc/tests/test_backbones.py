"""Widths and features of models of every family; the given model keeps its classifier; what is refused, and why."""

import copy
import inspect
import sys
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from dncc.backbones import Backbone, FeatureExtractor, as_backbone, create_backbone, plain_width
from dncc.multihead import MultiHead
from dncc.surgery import family_of, find_classifier, resized, with_replaced

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def captured_input(model: nn.Module, path: str, x: Tensor) -> Tensor:
    """What reaches a layer, seen by a hook on the untouched model."""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _module, args, _out: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


TORCHVISION = [("resnet18", "fc", 512), ("mobilenet_v3_small", "classifier.3", 1024), ("alexnet", "classifier.6", 4096),
               ("densenet121", "classifier", 1024), ("squeezenet1_1", "classifier.1", 512),
               ("shufflenet_v2_x0_5", "fc", 1024), ("convnext_tiny", "classifier.2", 768)]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "width"), TORCHVISION)
def test_torchvision(name: str, path: str, width: int) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    classifier = model.get_submodule(path)
    assert family_of(model) == "torchvision"
    assert find_classifier(model) == path
    backbone = as_backbone(model)
    assert backbone.out_features == width
    assert isinstance(backbone, Backbone)
    features = backbone(X)
    assert features.shape == (2, width)
    if not name.startswith("squeezenet"):  # its pooling comes after the classifier
        torch.testing.assert_close(features, captured_input(model, path, X), rtol=0, atol=0)
    assert model.get_submodule(path) is classifier  # the given model is left as it is
    ours = {id(p) for p in backbone.parameters()}
    assert ours == {id(p) for p in model.parameters()} - {id(p) for p in classifier.parameters()}


def test_outputs_of_a_classifier_as_features() -> None:
    for model in (
        torchvision.models.resnet18(num_classes=6).eval(),
        timm.create_model("resnet10t", num_classes=6).eval(),
    ):
        whole = as_backbone(model, classifier=None)
        assert whole.out_features == 6
        assert torch.equal(whole(X), model(X))


def test_torchvision_transformers() -> None:
    vit = torchvision.models.VisionTransformer(64, 16, 1, 2, 32, 48, num_classes=5).eval()
    backbone = as_backbone(vit)
    assert backbone.out_features == 32
    with torch.no_grad():  # attention has another kernel without gradients, which the captured input comes from
        torch.testing.assert_close(backbone(X), captured_input(vit, "heads.head", X), rtol=0, atol=0)


TIMM = [("resnet10t", 512), ("mobilenetv3_small_050", 1024), ("convnext_atto", 320), ("efficientnet_lite0", 1280)]


@pytest.mark.parametrize(("name", "width"), TIMM)
@pytest.mark.parametrize("classes", [0, 7])
def test_timm(name: str, width: int, classes: int) -> None:
    model = timm.create_model(name, num_classes=classes).eval()
    assert family_of(model) == "timm"
    backbone = as_backbone(model)
    assert backbone.out_features == width
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(X), pre_logits=True)
        torch.testing.assert_close(backbone(X), expected, rtol=0, atol=0)
        maps = as_backbone(model, pool="none")
        torch.testing.assert_close(maps(X), model.forward_features(X), rtol=0, atol=0)
        assert maps(X).shape[1] == maps.out_features == model.num_features
    if classes:
        assert model(X).shape == (2, 7)
    for gradient in _gradients(MultiHead(model, 3, members=2), X):
        assert gradient is not None  # nothing in it is left out of the loss


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def test_timm_tokens() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=3).eval()
    with torch.no_grad():
        tokens = model.forward_features(X)
        assert torch.equal(as_backbone(model, pool="first")(X), tokens[:, 0])
        assert torch.equal(as_backbone(model, pool="mean")(X), tokens.mean(1))
        assert torch.equal(as_backbone(model, pool="max")(X), tokens.amax(1))
        assert torch.equal(as_backbone(model)(X), model.forward_head(tokens, pre_logits=True))
        with pytest.raises(ValueError, match="tokens of shape"):
            as_backbone(model, pool="none")(X)


@pytest.mark.parametrize("pool", ["none", "mean", "max"])
def test_torchvision_maps(pool: Any) -> None:
    model = torchvision.models.resnet18().eval()
    backbone = as_backbone(model, pool=pool)
    maps = captured_input(model, "avgpool", X)
    expected = {"none": maps, "mean": maps.mean((2, 3)), "max": maps.amax((2, 3))}[pool]
    assert backbone.out_features == 512
    torch.testing.assert_close(backbone(X), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("hidden", "kernel_size"), [((), 1), ((6,), 3)])
def test_convolutional_heads_on_maps(hidden: tuple[int, ...], kernel_size: int) -> None:
    model = MultiHead(torchvision.models.resnet18(), 4, members=8, pool="none", hidden=hidden, kernel_size=kernel_size)
    assert model(X).shape == (8, 2, 4)


def test_maps_of_a_model_whose_pooling_is_no_part() -> None:
    with pytest.raises(ValueError, match="pool='auto'"):
        as_backbone(torchvision.models.densenet121(), pool="none")


def test_plain_modules() -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    maps = trunk.eval()(X)
    assert torch.equal(as_backbone(trunk)(X), maps.mean((2, 3)))
    assert torch.equal(as_backbone(trunk, pool="max")(X), maps.amax((2, 3)))
    assert torch.equal(as_backbone(trunk, pool="none")(X), maps)
    tokens = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    sequence = torch.randn(2, 5, 3)
    assert torch.equal(as_backbone(tokens, 4)(sequence), tokens(sequence).mean(1))
    assert torch.equal(as_backbone(tokens, 4, pool="first")(sequence), tokens(sequence)[:, 0])
    assert as_backbone(nn.Linear(3, 4)).out_features == 4


@pytest.mark.parametrize(
    ("layers", "width"),
    [
        ([nn.Linear(3, 4), nn.ReLU(), nn.Dropout()], 4),
        ([nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()], 4),
        ([nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Flatten()], None),
        ([nn.Sequential(nn.Flatten(), nn.Linear(3, 5)), nn.Flatten()], 5),
        ([nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU()], 4),
        ([nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)], 4),
        ([nn.Linear(3, 4), nn.Upsample(2)], None),
        ([nn.ReLU()], None),
    ],
)
def test_widths_that_layers_tell(layers: list[nn.Module], width: int | None) -> None:
    assert plain_width(nn.Sequential(*layers)) == width


class Named(nn.Module):
    """A user's own network that ends in a layer of a telling name."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)).relu())


def test_a_plain_model_that_ends_in_its_classifier_is_asked_about() -> None:
    with pytest.raises(ValueError, match=r"'head' \(Linear 8 -> 3\): give classifier='head' to leave it out"):
        as_backbone(Named())
    model, x = Named().eval(), torch.randn(4, 5)
    backbone = as_backbone(model, classifier="head")
    assert backbone.out_features == 8
    torch.testing.assert_close(backbone(x), captured_input(model, "head", x), rtol=0, atol=0)
    whole = as_backbone(model, 3, classifier=None)
    assert torch.equal(whole(x), model(x))


def test_an_example_finds_the_width_and_leaves_no_trace() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.frozen = nn.BatchNorm2d(3).eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen(self.norm(x)).flatten(1)

    model = Opaque()
    with pytest.raises(ValueError, match="give in_features=, or example="):
        as_backbone(model)
    before = copy.deepcopy(model.state_dict())
    backbone = as_backbone(model, example=X[:, :, :4, :4])
    assert backbone.out_features == 48
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert (backbone.training, model.norm.training, model.frozen.training) == (True, True, False)
    with pytest.raises(ValueError, match="width 48, not 7: give in_features=48"):
        as_backbone(model, 7, example=X[:, :, :4, :4])
    with pytest.raises(ValueError, match="width 48, not 7"):
        as_backbone(model, 7)(X[:, :, :4, :4])


def test_lazy_layers_are_refused_until_they_have_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with pytest.raises(ValueError, match=r"lazy parameters without a shape \(0.weight, 0.bias\): run one batch"):
        as_backbone(model)
    model(torch.zeros(2, 3))
    assert as_backbone(model).out_features == 4


def test_outputs_that_are_no_features() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(TypeError, match="gives a tuple, not a tensor of features"):
        as_backbone(Pair(), 3)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"vectors of shape \(2, 3\), which pool='max' does not suit"):
        as_backbone(nn.Linear(3, 3), pool="max")(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="an output of shape"):
        as_backbone(nn.Identity(), 3)(torch.zeros(2, 3, 1, 1, 1))


def test_options_that_are_none() -> None:
    unchecked = inspect.unwrap(as_backbone)
    with pytest.raises(ValueError, match="pool is 'sum'"):
        unchecked(nn.Linear(3, 4), pool="sum")
    with pytest.raises(ValueError, match="in_features is 0"):
        as_backbone(nn.Linear(3, 4), 0)
    with pytest.raises(ValueError, match="has no part 'tail'"):
        as_backbone(Named(), classifier="tail")
    with pytest.raises(ValueError, match="'norm' is a BatchNorm1d"):
        as_backbone(Named(), classifier="norm")


def test_extractors_are_not_wrapped_twice() -> None:
    first = as_backbone(nn.Linear(3, 4))
    assert as_backbone(first) is first
    assert as_backbone(first, 4) is first
    with pytest.raises(ValueError, match="gives 4 features"):
        as_backbone(first, 5)


def test_backbones_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timm:resnet10t", "torchvision:resnet18"):
        backbone = create_backbone(name)
        assert isinstance(backbone, FeatureExtractor)
        assert backbone.out_features == 512
    for name in ("resnet18", "timm:", "hub:resnet18"):
        with pytest.raises(ValueError, match="'timm:NAME' or 'torchvision:NAME'"):
            create_backbone(name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "dncc\[backbones\]"'):
        create_backbone("timm:resnet10t")


def test_replacing_a_part_shares_all_others() -> None:
    model = torchvision.models.resnet18()
    other = with_replaced(model, {"layer4.1.conv2": nn.Identity(), "fc": nn.Linear(512, 3)})
    assert isinstance(model.layer4[1].conv2, nn.Conv2d)
    assert isinstance(other.layer4[1].conv2, nn.Identity)
    assert other.layer4[0] is model.layer4[0]
    assert (model.fc.out_features, other.fc.out_features) == (1000, 3)
    with pytest.raises(ValueError, match=r"has no part 'layer9'; it has: conv1"):
        with_replaced(model, {"layer9": nn.Identity()})
    assert resized(nn.Conv2d(4, 5, 3, 2, 1, bias=False), 7)(torch.zeros(1, 4, 6, 6)).shape == (1, 7, 3, 3)
    with pytest.raises(TypeError, match="this one is a ReLU"):
        resized(nn.ReLU(), 3)


class TestTransformers:
    """Hugging Face models, from their configurations; the import is slow and stays in this file."""

    def models(self) -> dict[str, tuple[Any, int]]:
        import transformers

        vit = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                     image_size=32, patch_size=8, num_labels=5)  # fmt: skip
        resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
        return {
            "vit": (transformers.ViTModel(vit), 16),
            "vit classifier": (transformers.ViTForImageClassification(vit), 16),
            "resnet": (transformers.ResNetModel(resnet), 16),
            "resnet classifier": (transformers.ResNetForImageClassification(resnet), 16),
        }

    def test_features(self) -> None:
        x = X[:, :, :32, :32]
        for name, (model, width) in self.models().items():
            model.eval()
            assert family_of(model) == "transformers"
            backbone = as_backbone(model)
            assert backbone.out_features == width
            base = model.base_model if "classifier" in name else model
            with torch.no_grad():
                output = base(pixel_values=x)
                pooled = output.get("pooler_output")
                expected = output.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)
                assert torch.equal(backbone(x), expected)
                if "resnet" in name:
                    assert torch.equal(as_backbone(model, pool="none")(x), output.last_hidden_state)
                else:
                    assert torch.equal(as_backbone(model, pool="first")(x), output.last_hidden_state[:, 0])
                if "classifier" in name:
                    assert torch.equal(as_backbone(model, classifier=None)(x), model(pixel_values=x).logits)
            if "classifier" in name:
                assert not any(p is model.classifier for p in backbone.modules())
                assert all(g is not None for g in _gradients(MultiHead(model, 3, members=2), x))
            if "vit" in name:  # a pooler that is not used is left out
                first = MultiHead(model, 3, members=2, pool="first")
                assert all(g is not None for g in _gradients(first, x))
        with pytest.raises(ValueError, match="does not suit a Hugging Face model"):
            as_backbone(model, classifier="classifier")
