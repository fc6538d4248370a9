"""Lightning on compressed activations: `training_step` in a context, `step` before the optimiser's."""

import lightning
import torch
from torch import nn
from torch.nn import functional

import gact


class Classifier(lightning.LightningModule):
    """A GELU network whose training step runs inside a compressor."""

    def __init__(self, bits: int | str = "auto:4") -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 10)
        )
        self.compressor = gact.ActivationCompressor(self.body, bits)

    def training_step(self, batch, index):
        """Forward pass under compression; Lightning runs the backward pass."""
        inputs, labels = batch
        with self.compressor:
            loss = functional.cross_entropy(self.body(inputs), labels)
        self.log("loss", loss, prog_bar=False)
        return loss

    def on_before_optimizer_step(self, optimizer):
        """Gradients are complete here, whatever the accumulation."""
        self.compressor.step()

    def configure_optimizers(self):
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def on_save_checkpoint(self, checkpoint):
        """Keep bits and sensitivities beside the weights."""
        checkpoint["compressor"] = self.compressor.state_dict()

    def on_load_checkpoint(self, checkpoint):
        """Take them up again."""
        self.compressor.load_state_dict(checkpoint["compressor"])


lightning.seed_everything(0, verbose=False)
labels = torch.randint(10, (1024,))
inputs = torch.randn(10, 64)[labels] + 0.5 * torch.randn(1024, 64)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=256)
model = Classifier()
trainer = lightning.Trainer(
    max_epochs=4, accelerator="cpu", accumulate_grad_batches=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, loader)
print(f"loss {float(trainer.callback_metrics['loss']):.3f}")
print(model.compressor.report().summary())
