"""A residual network trained in PyTorch, and pruned by torch-pruning: `prune_peer_torch.py DATA.npz FOLDER SHARE ...`.

It runs in torch-pruning's own environment, so it imports nothing of edgekit. DATA has ``x`` (N, 1, 8, 8) and ``y`` to
train with. It writes ``float.onnx``, and for each share of the parameters ``SHARE.onnx``, by the group's weight norm,
without training after it.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from torch import nn

SEED, EPOCHS, BATCH = 11, 12, 32
HALVINGS = 12


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The activations behind the block."""
        y = self.norm2(self.two(torch.relu(self.norm1(self.one(x)))))
        return torch.relu(y + self.short(x))


def main() -> None:
    """Train, prune, and write the files."""
    data, folder = np.load(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 48, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10), nn.Softmax(1)]
    model = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), *blocks, *head)
    train(model, torch.from_numpy(data["x"]), torch.from_numpy(data["y"]))
    write(model, folder / "float.onnx")
    whole = count(model)
    for share in sys.argv[3:]:
        low, high, best = 0.0, 0.95, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            pruned = without(model, middle)
            if count(pruned) > float(share) * whole:
                low = middle
            else:
                high, best = middle, pruned
        if best is not None:
            write(best, folder / f"{share}.onnx")


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Train with Adam, whose step falls to 0."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(x) // BATCH))
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.nll_loss(torch.log(model(x[rows]) + 1e-9), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def without(model: nn.Module, ratio: float) -> nn.Module:
    """A copy without `ratio` of the channels, chosen over all layers by the norm of their groups."""
    pruned = copy.deepcopy(model)
    last = next(layer for layer in pruned.modules() if isinstance(layer, nn.Linear))
    torch_pruning.pruner.MagnitudePruner(
        pruned,
        torch.zeros(1, 1, 8, 8),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[last],
    ).step()
    return pruned


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(one.numel() for one in model.parameters())


def write(model: nn.Module, path: Path) -> None:
    """Write the model as ONNX with a free batch."""
    axes = {"image": {0: "N"}, "scores": {0: "N"}}
    torch.onnx.export(
        model, (torch.zeros(2, 1, 8, 8),), str(path), input_names=["image"], output_names=["scores"],
        dynamic_axes=axes, dynamo=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
