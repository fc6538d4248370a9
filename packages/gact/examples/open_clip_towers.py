"""open_clip on compressed activations: both towers of CLIP in one context, on random images."""

import open_clip
import torch

import gact

torch.manual_seed(0)
model = open_clip.CLIP(
    embed_dim=64,
    vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    text_cfg={"context_length": 16, "vocab_size": 512, "width": 64, "heads": 2, "layers": 2},
)
criterion = open_clip.ClipLoss()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
images, captions = torch.randn(16, 3, 32, 32), torch.randint(1, 512, (16, 16))


def loss_of_batch() -> torch.Tensor:
    """Contrastive loss of the batch."""
    image, text, scale = model(images, captions)
    return criterion(image, text, scale)


compressor = gact.ActivationCompressor(model, "auto:4", min_bytes=4096)
compressor.calibrate(loss_of_batch)  # measures what the closed forms do not cover; optional
losses = []
for _ in range(15):
    optimiser.zero_grad()
    with compressor:
        loss = loss_of_batch()
    loss.backward()
    compressor.step()
    optimiser.step()
    losses.append(float(loss.detach()))
print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}")
print(compressor.report().summary())
towers = {"visual": 0, "transformer": 0}
for row in compressor.report().rows:
    for tower in towers:
        if row.module.startswith(tower):
            towers[tower] += row.nbytes
print(", ".join(f"{tower} keeps {nbytes:,} bytes" for tower, nbytes in towers.items()))
