"""Small MLPs and CNNs trained on scikit-learn's 1,797 images of handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

import merganser as mg
from alignment.line import Score, State

TEST, EPOCHS, BATCH, RATE = 500, 60, 64, 1e-3


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images in [0, 1] and labels, for training and for testing; one split for all."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:TEST], order[TEST:]
    return images[train], labels[train], images[test], labels[test]


def mlp(width: int) -> nn.Module:
    """64, width, width, 10."""
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def cnn(width: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * width, 2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, 10),
    )


def train(make: Callable[[], nn.Module], seed: int, path: Path) -> mg.Weights:
    """A trained net; the seed decides its start and the order of the images."""
    torch.manual_seed(seed)
    model = make()
    images, labels, _, _ = data()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    path.mkdir(parents=True)
    save_file(model.state_dict(), path / "model.safetensors")
    return mg.open(path)


def scorer(make: Callable[[], nn.Module]) -> Callable[[State], Score]:
    """Loss and accuracy on the test images."""
    model = make().eval()
    _, _, images, labels = data()

    @torch.no_grad()
    def score(state: State) -> Score:
        model.load_state_dict(dict(state))
        outputs = model(images)
        loss = nn.functional.cross_entropy(outputs, labels).item()
        return Score(loss, (outputs.argmax(1) == labels).float().mean().item(), outputs[:100])

    return score
