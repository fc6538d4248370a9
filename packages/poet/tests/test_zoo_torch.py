"""The zoo against torch: parameters, FLOPs of both passes, and bytes that autograd saves."""

from functools import cache

import pytest

from poet import zoo

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

TOTAL_WEIGHT = 4  # what nll_loss saves beside the log-probabilities: one number


class Block(nn.Module):
    """Basic (two 3×3) or bottleneck (1×1, 3×3, 1×1) residual block."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        shapes = (
            [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
            if bottleneck
            else [(width, 3, stride), (width, 3, 1)]
        )
        parts, channels = [], inputs
        for out, kernel, step in shapes:
            parts += [nn.Conv2d(channels, out, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.body = nn.Sequential(*parts[:-1])
        self.skip = nn.Identity()
        if stride > 1 or channels != inputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        return functional.relu(self.body(x) + self.skip(x))


def resnet(stages, width, bottleneck, image, classes):
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False)] if image < 64 else [nn.Conv2d(3, width, 7, 2, 3, bias=False)]
    parts = [*stem, nn.BatchNorm2d(width), nn.ReLU()]
    if image >= 64:
        parts.append(nn.MaxPool2d(3, 2, 1))
    channels = width
    for stage, count in enumerate(stages):
        for i in range(count):
            inner = width << stage
            parts.append(Block(channels, inner, 2 if stage and not i else 1, bottleneck))
            channels = 4 * inner if bottleneck else inner
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Dropout(nn.Module):
    def forward(self, x):
        return torch.native_dropout(x, 0.1, True)[0]  # saves a mask of bytes on every device


def vgg16(image, classes):
    parts, channels = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            parts += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
            channels = width
        parts.append(nn.MaxPool2d(2))
    features = 512 * (image // 32) ** 2
    head = [nn.Linear(features, 4096), nn.ReLU(), Dropout(), nn.Linear(4096, 4096), nn.ReLU(), Dropout()]
    return nn.Sequential(*parts, nn.Flatten(), *head, nn.Linear(4096, classes))


def attend(q, k, v, heads):
    """Attention of one sequence; every reshape is a view."""
    q, k, v = (x.view(-1, heads, x.shape[-1] // heads).transpose(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.zeros((), device=q.device), q, k.transpose(1, 2), beta=0)
    weights = torch.native_dropout(torch.softmax(scores, -1), 0.1, True)[0]
    return torch.bmm(weights, v).transpose(0, 1).reshape(1, -1, heads * v.shape[-1])


class BertBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.drop = heads, Dropout()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        y = self.out(attend(self.q(x), self.k(x), self.v(x), self.heads))
        x = self.norm1(self.drop(y) + x)
        return self.norm2(self.drop(self.down(functional.gelu(self.up(x)))) + x)


class Bert(nn.Module):
    def __init__(self, blocks, width, heads, vocabulary, positions, classes):
        super().__init__()
        self.token, self.position, self.segment = (nn.Embedding(n, width) for n in (vocabulary, positions, 2))
        self.norm, self.drop = nn.LayerNorm(width), Dropout()
        self.blocks = nn.Sequential(*(BertBlock(width, heads) for _ in range(blocks)))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, tokens):
        at, segments = self.indices = torch.arange(tokens.shape[1], device=tokens.device), torch.zeros_like(tokens)
        x = self.token(tokens) + self.position(at) + self.segment(segments)
        x = self.blocks(self.drop(self.norm(x)))
        return self.classifier(self.drop(torch.tanh(self.pooler(x[:, 0]))))


class Gpt2Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.drop = heads, Dropout()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = self.drop(self.out(attend(*self.qkv(self.norm1(x)).chunk(3, -1), self.heads))) + x
        return self.drop(self.down(functional.gelu(self.up(self.norm2(x))))) + x


class Gpt2(nn.Module):
    def __init__(self, blocks, width, heads, vocabulary, positions):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.drop, self.norm = Dropout(), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Gpt2Block(width, heads) for _ in range(blocks)))

    def forward(self, tokens):
        x = self.drop(self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device)))
        return functional.linear(self.norm(self.blocks(x)), self.token.weight).flatten(0, 1)


def images(batch, side, device):
    return torch.zeros(batch, 3, side, side, device=device), torch.zeros(batch, dtype=torch.long, device=device)


def tokens(length, labels, device):
    return torch.zeros(1, length, dtype=torch.long, device=device), torch.zeros(labels, dtype=torch.long, device=device)


SMALL_BERT = {"blocks": 2, "width": 32, "heads": 4, "vocabulary": 50, "positions": 24, "classes": 3}
CASES = {
    "resnet18": (
        lambda: zoo.resnet18(),
        lambda: resnet((2, 2, 2, 2), 64, False, 224, 1000),
        lambda d: images(1, 224, d),
    ),
    "resnet18_small": (
        lambda: zoo.resnet18(2, 32),
        lambda: resnet((2, 2, 2, 2), 64, False, 32, 10),
        lambda d: images(2, 32, d),
    ),
    "resnet18_cifar": (
        lambda: zoo.resnet18_cifar(2),
        lambda: resnet((2, 2, 2), 16, False, 32, 10),
        lambda d: images(2, 32, d),
    ),
    "resnet50": (
        lambda: zoo.resnet50(2),
        lambda: resnet((3, 4, 6, 3), 64, True, 224, 1000),
        lambda d: images(2, 224, d),
    ),
    "vgg16": (lambda: zoo.vgg16(), lambda: vgg16(224, 1000), lambda d: images(1, 224, d)),
    "vgg16_cifar": (lambda: zoo.vgg16(2, 32), lambda: vgg16(32, 10), lambda d: images(2, 32, d)),
    "bert": (
        lambda: zoo.bert(1, 64),
        lambda: Bert(12, 768, 12, 30522, 512, 2),
        lambda d: tokens(64, 1, d),
    ),
    "bert_small": (
        lambda: zoo.bert(1, 16, **SMALL_BERT),
        lambda: Bert(*(SMALL_BERT[k] for k in ("blocks", "width", "heads", "vocabulary", "positions", "classes"))),
        lambda d: tokens(16, 1, d),
    ),
    "gpt2": (lambda: zoo.gpt2("small", 1, 64), lambda: Gpt2(12, 768, 12, 50257, 1024), lambda d: tokens(64, 64, d)),
}
PRODUCTS = ("conv", "linear", "matmul")


@cache
def meta(name):
    graph, model, data = CASES[name]
    with torch.device("meta"):
        return graph(), model(), *data("meta")


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_buffers(name):
    graph, model, *_ = meta(name)
    assert graph.static.parameters == sum(p.numel() * p.element_size() for p in model.parameters())
    assert graph.static.buffers == sum(b.numel() * b.element_size() for b in model.buffers())


@pytest.mark.parametrize("name", CASES)
def test_flops_of_both_passes(name):
    graph, model, x, y = meta(name)
    with FlopCounterMode(display=False) as forward:
        loss = functional.cross_entropy(model(x), y)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    products = [op for op in graph.ops if op.kind.split(".")[0] in PRODUCTS]
    assert forward.get_total_flops() == sum(op.flops for op in products if op.phase == "forward")
    assert backward.get_total_flops() == sum(op.flops for op in products if op.phase == "backward")


@pytest.mark.parametrize("name", ["resnet18_small", "resnet18_cifar", "vgg16_cifar", "bert_small"])
def test_bytes_that_autograd_saves(name):
    build, make, data = CASES[name]
    graph, model = build(), make()
    x, y = data("cpu")
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.cross_entropy(model(x), y)
    always = (*model.parameters(), *model.buffers(), x, y, *getattr(model, "indices", ()))
    own = {tensor.untyped_storage().data_ptr() for tensor in always}
    theirs = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    loss = next(i for i, op in enumerate(graph.ops) if op.phase == "loss")
    ours = sum(
        value.size
        for value, made, users in zip(graph.values, graph.producer, graph.users, strict=True)
        if made <= loss < max(users, default=0)
    )
    assert theirs - TOTAL_WEIGHT == ours


@pytest.mark.peer
def test_parameters_of_transformers():
    import transformers

    config = transformers.BertConfig(num_labels=2)
    with torch.device("meta"):
        models = [
            (transformers.BertForSequenceClassification(config), zoo.bert()),
            (transformers.GPT2LMHeadModel(transformers.GPT2Config()), zoo.gpt2()),
            (
                transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
                zoo.gpt2("medium", seq=64),
            ),
        ]
    for model, graph in models:
        assert sum(p.numel() for p in model.parameters()) == graph.static.parameters // 4
