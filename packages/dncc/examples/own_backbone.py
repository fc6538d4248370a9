"""A backbone of timm or torchvision as an ensemble: heads, branches, training, and export to ONNX."""

import tempfile
from pathlib import Path

import torch

from dncc import DNCCLoss, MultiHead, branch_at, create_backbone, export_onnx, fit
from dncc.datasets import shapes

torch.set_num_threads(1)
torch.manual_seed(0)
data = shapes(seed=0, samples=200, classes=3, size=32)  # drawn here: nothing is downloaded


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Heads: a backbone by name (random weights; pretrained=True would download), or any module of yours.
try:
    backbone = create_backbone("timm:resnet18", in_chans=3)
except ImportError:
    backbone = create_backbone("torchvision:resnet18")
heads = MultiHead(backbone, num_classes=3, members=8)  # partition: 512 features are split among the heads
print(f"8 heads: {size(heads):,} parameters, the backbone alone {size(backbone):,}")

# Branches: what comes before layer4 is shared, the rest is each member's own (a TreeNet).
try:
    import timm

    tree = branch_at(timm.create_model("resnet18", num_classes=3), "layer4", members=2)
except ImportError:
    from torchvision.models import resnet18

    tree = branch_at(resnet18(num_classes=3), "layer4", members=2)
print(f"2 branches from layer4: {size(tree):,} parameters")

generator = torch.Generator().manual_seed(0)
train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
history = fit(heads, DNCCLoss(0.5), train, val=test, epochs=2, batch_size=16, generator=generator)
for record in history.epochs:
    shown = record.train
    print(f"epoch {record.epoch}: ensemble {shown.ensemble_ce:.3f} nats, ambiguity {shown.ambiguity:.4f}")

# One file for deployment: inputs to probabilities of the ensemble, checked against PyTorch while it is written.
try:
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(heads, torch.as_tensor(data.x_test[:2]), Path(folder) / "heads.onnx")
        print(f"ONNX: batches {file.batches} compared, largest difference below 1e-5: {file.largest_difference < 1e-5}")
except ImportError as error:
    print(f"ONNX left out: {error}")
