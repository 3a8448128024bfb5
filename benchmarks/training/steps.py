"""Prepare what fine-tuning needs, and take some of its steps."""

import time
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.measure import Measured
from common.choices import Arch
from common.dataset import open_dataset
from common.signals import Signals
from data_prep.folder import dataset_path
from data_prep.pack import pack
from data_prep.split import split_folder
from data_prep.synthetic import synthesize
from data_prep.weights import save_weights
from training.learn.device import choose_device
from training.learn.memory import keep_freed_memory
from training.learn.model import Backbone
from training.learn.task import prepare_finetune
from training.learn.trainer import Trainer
from training.settings import RECIPES, Machine, Options, Places, Settings

Precision = Literal["float32", "bfloat16"]
WARM_UP = 2  # steps that do not count


def prepare_photos(folder: Path, photos: int, size: int) -> Path:
    """Draw, split and pack photos; returns the folder of the data set."""
    synthesize(folder, photos, seed=0, sides=range(size, size + 1))
    split_folder(folder, range(1, 6))
    pack(folder, "bins", size=size)
    return dataset_path(folder, "bins")


def prepare_weights(folder: Path, arch: Arch) -> Path:
    """Weights for `arch` without the network: those of an installed package, or random ones."""
    if arch != "resnet50":
        return save_weights(arch, folder)
    folder.mkdir()
    torch.manual_seed(0)
    file = folder / f"{arch}.pth"
    torch.save(Backbone(arch, all_stages=False).network.state_dict(), file)
    return file


def run_steps(
    data: Path, weights: Path, arch: Arch, *, precision: Precision, batch_size: int, threads: int
) -> Measured:
    """Take steps exactly as training.train does, loading and augmentation included."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = choose_device()
    dataset = open_dataset(data)
    recipe: dict[str, Any] = {**RECIPES["finetune"], "epochs": 1, "batch_size": batch_size}
    settings = Settings(
        mode="finetune", arch=arch, size=dataset.size, precision=precision, **recipe
    )
    options = Options(
        settings=settings,
        places=Places(data=data, weights=weights, output=Path("unused")),
        machine=Machine(threads=threads),
    )
    task = prepare_finetune(dataset, options, device, Signals())
    steps = Trainer(task.trained, task.source, settings, device).train_epoch()
    list(islice(steps, WARM_UP))
    begun = time.perf_counter()
    taken = len(list(steps))
    return Measured(photos=taken * batch_size, seconds=time.perf_counter() - begun)
