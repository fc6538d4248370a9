"""Hugging Face Trainer on compressed activations: a mixin around `compute_loss`, and a callback for `step`.

The model is a tiny GPT-2 with random weights on random tokens, so that nothing is downloaded.
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import gact


class StepCallback(TrainerCallback):
    """Tells the compressor of each optimiser step, while the gradients are still there."""

    def __init__(self, compressor: gact.ActivationCompressor) -> None:
        self.compressor = compressor

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Called before every optimiser step."""
        self.compressor.step()


class CompressedTrainer(Trainer):
    """A Trainer whose forward passes run inside a compressor."""

    def __init__(self, *args, bits="auto:4", **kwargs):
        super().__init__(*args, **kwargs)
        self.compressor = gact.ActivationCompressor(self.model, bits, min_bytes=4096)
        self.add_callback(StepCallback(self.compressor))

    def compute_loss(self, model, inputs, *args, **kwargs):
        """The forward pass; the backward pass comes later and needs no context."""
        with self.compressor:
            return super().compute_loss(model, inputs, *args, **kwargs)


class RandomTokens(torch.utils.data.Dataset):
    """Sequences that count up from a random start: something to learn."""

    def __init__(self, samples: int, length: int) -> None:
        starts = torch.randint(0, 100, (samples, 1), generator=torch.Generator().manual_seed(0))
        self.tokens = (starts + torch.arange(length)) % 128

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


torch.manual_seed(0)
config = GPT2Config(vocab_size=128, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
with tempfile.TemporaryDirectory() as folder:
    settings = TrainingArguments(
        folder, max_steps=20, per_device_train_batch_size=8, gradient_accumulation_steps=2, learning_rate=3e-3,
        report_to=[], save_strategy="no", logging_steps=10, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = CompressedTrainer(GPT2LMHeadModel(config), settings, train_dataset=RandomTokens(400, 64), bits="auto:4")
    result = trainer.train()
print(f"loss {result.training_loss:.3f}")
print(trainer.compressor.report().summary())
