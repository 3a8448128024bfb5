"""The original course's recipe, as torchvision's tutorials write it: every epoch decodes every
photo and runs the frozen backbone over it."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from benchmarks.training.measure import Clock, Measured, run_alone
from benchmarks.training.photos import image_folder
from training.evaluate.metrics import evaluate
from training.settings import ARCHITECTURES

EPOCHS = 5
BATCH_SIZE = 32
HIDDEN = 256
DROPOUT = 0.5
LEARNING_RATE = 1e-3  # Adam's default


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every side is given."""

    photos: Path  # a prepared folder (training_photos)
    weights: Path
    arch: str
    size: int  # of the network's input, pixels a side
    threads: int
    judged: bool  # look at the accuracy on test photos, off the clock
    probed: int  # photos that decide how many workers the recipe gets


def run_recipe(
    work: Work,
    *,
    batch_norm: Literal["eval", "train"],
    workers: int,
    epochs: int = EPOCHS,
    most: int | None = None,
) -> Measured:
    """Train a new head, on at most `most` photos; `workers` are those of DataLoader."""
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    clock = Clock()
    with clock.part("network"):
        backbone = load_network(work.arch, work.weights)
        head = nn.Sequential(
            nn.LazyLinear(HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, 5)
        )
        network = nn.Sequential(backbone, head)
        network.eval()(torch.zeros(1, 3, work.size, work.size))  # how many features there are
    prepared = [transforms.ToTensor(), normalisation(work.arch)]
    squash = transforms.Resize((work.size, work.size))
    with clock.part("training"):
        flipped = transforms.Compose([squash, transforms.RandomHorizontalFlip(), *prepared])
        folder = torchvision.datasets.ImageFolder(image_folder(work.photos, "train"), flipped)
        fitted = Subset(folder, range(len(folder))[:most])
        loader = DataLoader(fitted, BATCH_SIZE, shuffle=True, num_workers=workers)
        optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
        network.train()
        backbone.train(batch_norm == "train")
        for _ in range(epochs):
            for images, classes in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(images), classes)
                loss.backward()
                optimizer.step()
    facts = {}
    if work.judged:
        still = transforms.Compose([squash, *prepared])
        test = torchvision.datasets.ImageFolder(image_folder(work.photos, "test"), still)
        counts = [int(name) for name in test.classes]
        facts = judge(answers(network, test, workers), np.array(test.targets), counts)
    return Measured(photos=len(fitted), seconds=clock.seconds, parts=clock.parts, facts=facts)


def load_network(arch: str, weights: Path) -> nn.Module:
    """The backbone in float32 without its classes, frozen."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    network: Any
    if arch == "resnet50":
        network = torchvision.models.resnet50()
        network.load_state_dict(state)
        network.fc = nn.Identity()
    else:
        network = timm.create_model(ARCHITECTURES[arch].timm_name)
        network.load_state_dict(state)
        network.reset_classifier(0)
    frozen: nn.Module = network.requires_grad_(False)
    return frozen


def normalisation(arch: str) -> transforms.Normalize:
    """That of the weights, for pixels from 0 to 1."""
    mean, std = ARCHITECTURES[arch].mean, ARCHITECTURES[arch].std
    return transforms.Normalize([value / 255 for value in mean], [value / 255 for value in std])


@torch.inference_mode()
def answers(network: nn.Module, photos: Dataset[Any], workers: int) -> Tensor:
    """Logits [photos, classes]."""
    loader = DataLoader(photos, BATCH_SIZE, num_workers=workers)
    network.eval()
    return torch.cat([network(images) for images, _ in loader])


def judge(logits: Tensor, classes: NDArray[np.int64], counts: list[int]) -> dict[str, float]:
    """The share of exact counts, with its 95 % interval, in percent."""
    truth = np.array(counts)[classes]
    probabilities = torch.softmax(logits, dim=1).numpy()
    accuracy = evaluate(probabilities, truth, counts, counts[0], "argmax")["accuracy"]
    return {
        "test photos": len(truth),
        "exact, %": 100 * accuracy["value"],
        "from": 100 * accuracy["low"],
        "to": 100 * accuracy["high"],
    }


def fastest_workers(work: Work) -> int:
    """Whether DataLoader is faster in the main process, 0, or with 2 workers."""
    seconds = {}
    for workers in (0, 2):
        run = partial(
            run_recipe,
            replace(work, judged=False),
            batch_norm="eval",
            workers=workers,
            epochs=1,
            most=work.probed,
        )
        seconds[workers] = run_alone(run).parts["training"]
        print(f"the recipe with {workers} workers: {seconds[workers]:.1f} s", file=sys.stderr)
    return min(seconds, key=lambda workers: seconds[workers])
