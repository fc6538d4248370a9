"""Compiles losses as one graph and compares them with themselves; run as a script by test_losses."""

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dncc import DNCCLoss, LinearLambda


def main() -> None:
    """Prints what agrees, and how often a loss with a moving lambda was compiled."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(5, (7,), generator=generator)
    soft = torch.softmax(torch.randn(7, 5, generator=generator), -1)
    for loss, target in ((DNCCLoss(0.5), y), (DNCCLoss(0.5, aggregate="geometric"), soft), (DNCCLoss(1.0), soft)):
        z = torch.randn(4, 7, 5, generator=generator)
        plain, compiled = z.clone().requires_grad_(), z.clone().requires_grad_()
        loss(plain, target).loss.backward()
        torch.compile(loss, backend="aot_eager", fullgraph=True)(compiled, target).loss.backward()
        torch.testing.assert_close(compiled.grad, plain.grad)
        print("same")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    moving = DNCCLoss(LinearLambda(0.0, 1.0, steps=10))
    compiled_loss = torch.compile(moving, backend=counter, fullgraph=True)
    counts = []
    for _ in range(5):
        torch.testing.assert_close(compiled_loss(z, y).loss, moving(z, y).loss)
        counts.append(counter.frame_count)
        moving.lam.step()
    print("compiled anew", counts[-1] - counts[0])


if __name__ == "__main__":
    main()
