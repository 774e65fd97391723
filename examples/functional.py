"""torch.func: gradients as a function of the weights, which adamas steps as NumPy arrays.

``torch.func.grad`` gives back gradients and fills no ``.grad``, so what fits is the front end that
takes gradients as arguments: ``adamas.AdamW`` over arrays that share the tensors' memory.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

import adamas

EPOCHS, BATCH = 20, 64

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10))
pixels, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(
    torch.from_numpy(pixels / 16.0).float(), torch.from_numpy(labels), random_state=0
)


def mean_loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The loss of the model with these weights, of a batch."""
    return nn.functional.cross_entropy(functional_call(model, weights, (x,)), y)


def main() -> None:
    """Trains with gradients from torch.func, and measures on digits it has not seen."""
    weights = {name: param.detach().clone() for name, param in model.named_parameters()}
    # The arrays are the tensors' memory: a step on them is seen by torch at once.
    optimizer = adamas.AdamW({name: w.numpy() for name, w in weights.items()}, lr=3e-3)
    gradient = grad_and_value(mean_loss)
    order = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        for rows in np.array_split(order.permutation(len(train_x)), len(train_x) // BATCH):
            grads, loss = gradient(weights, train_x[rows], train_y[rows])
            optimizer.step({name: grad.numpy() for name, grad in grads.items()})
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1}: loss {loss:.4f}")
    right = functional_call(model, weights, (test_x,)).argmax(1) == test_y
    accuracy = right.float().mean().item()
    print(f"accuracy on {len(test_y)} unseen digits: {accuracy:.4f}")
    assert accuracy > 0.9, "it did not learn"


if __name__ == "__main__":
    main()
