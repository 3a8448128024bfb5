"""Steps of fine-tuning: our trainer, one ingredient after the other, against plain PyTorch."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.training.measure import Comparison, Measured, Scale, Side, compare
from common.dataset import open_dataset
from common.signals import Signals
from training.learn.batch import Batch, Source
from training.learn.device import choose_device
from training.learn.memory import keep_freed_memory
from training.learn.model import Head, Network, load_backbone
from training.learn.task import prepare_finetune
from training.learn.trainer import Trainer
from training.settings import Settings, parse_arguments

GOALS = {"resnet50": 2.0, "efficientnet_lite0": 1.5}
COUNTED = (
    "Photos a second over the steps of one epoch, loading included: the same batches of our "
    "loader and our augmentation for every row, AdamW at the same learning rate. Warm-up steps "
    "({warm_up}), the start of the process and all measuring are left out; {steps} steps count."
)


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What is ours in a row."""

    trainer: bool = False  # clipped gradients, schedule, averaged weights
    channels_last: bool = False
    kept_memory: bool = False
    bfloat16: bool = False
    same_bits: bool = False  # on a GPU; a CPU computes them anyway
    compiled: bool = False


REFERENCE = "plain PyTorch, float32, NCHW"
OURS = "+ bfloat16 convolutions (all of ours)"
SAME_BITS = "+ the same bits each time (all of ours)"
COMPILED = "+ torch.compile"
ROWS = {
    REFERENCE: Ingredients(),
    "our trainer": Ingredients(trainer=True),
    "+ channels_last": Ingredients(trainer=True, channels_last=True),
    "+ kept memory": Ingredients(trainer=True, channels_last=True, kept_memory=True),
    OURS: Ingredients(trainer=True, channels_last=True, kept_memory=True, bfloat16=True),
    COMPILED: Ingredients(
        trainer=True, channels_last=True, kept_memory=True, bfloat16=True, compiled=True
    ),
}
GPU_ROWS = {
    REFERENCE: Ingredients(),
    "our trainer": Ingredients(trainer=True),
    "+ channels_last": Ingredients(trainer=True, channels_last=True),
    "+ bfloat16 convolutions": Ingredients(trainer=True, channels_last=True, bfloat16=True),
    SAME_BITS: Ingredients(trainer=True, channels_last=True, bfloat16=True, same_bits=True),
    COMPILED: Ingredients(
        trainer=True, channels_last=True, bfloat16=True, same_bits=True, compiled=True
    ),
}


def on_gpu(scale: Scale) -> Scale:
    """`scale` for a machine that takes a step of it in milliseconds."""
    return replace(scale, batch_size=4 * scale.batch_size, warm_up=10, steps=5 * scale.steps)


def compare_finetune(
    data: Path,
    weights: Path,
    arch: str,
    scale: Scale,
    repeats: int,
    *,
    threads: int,
    compiled: bool,
) -> Comparison:
    """(b): `data` is a packed data set of `scale.size` pixels; `compiled` adds torch.compile.

    On the GPU, if there is one, with batches four times as large.
    """
    rows = ROWS
    if torch.cuda.is_available():
        rows, scale = GPU_ROWS, on_gpu(scale)
    sides = [
        Side(
            name=name,
            run=partial(run_steps, data, weights, arch, ingredients, scale, threads=threads),
            goal=GOALS[arch] if name == OURS else None,
        )
        for name, ingredients in rows.items()
        if compiled or not ingredients.compiled
    ]
    counted = COUNTED.format(warm_up=scale.warm_up, steps=scale.steps)
    return compare(f"finetune {arch}", sides, repeats, counted=counted, reference=REFERENCE)


def run_steps(
    data: Path, weights: Path, arch: str, ingredients: Ingredients, scale: Scale, *, threads: int
) -> Measured:
    """A few steps, as they come in training.train, or without our ingredients."""
    if ingredients.kept_memory:
        keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if ingredients.same_bits:
        device = choose_device()
    network, source, settings = prepare(
        data, weights, arch, ingredients, scale, threads=threads, device=device
    )
    if ingredients.compiled:
        network.compile()
    if ingredients.trainer:
        steps: Iterator[float] = Trainer(network, source, settings, device).train_epoch()
    else:
        steps = plain_steps(network, source, settings.learning_rate)
    times = [time.perf_counter(), *(time.perf_counter() for _ in steps)]
    seconds = times[-1] - times[scale.warm_up]
    facts = {}
    if ingredients.compiled:
        warm_up, step = times[scale.warm_up] - times[0], seconds / scale.steps
        facts["compile seconds"] = warm_up - scale.warm_up * step
    return Measured(photos=scale.steps * scale.batch_size, seconds=seconds, facts=facts)


def prepare(
    data: Path,
    weights: Path,
    arch: str,
    ingredients: Ingredients,
    scale: Scale,
    *,
    threads: int,
    device: torch.device,
) -> tuple[nn.Module, Source, Settings]:
    """The network and its batches as training.learn.task makes them, without what is unwanted."""
    args = parse_arguments(
        [
            *("--mode", "finetune", "--data", str(data), "--weights", str(weights)),
            *("--output", "unused", "--arch", arch, "--size", str(scale.size), "--epochs", "1"),
            *("--batch-size", str(scale.batch_size), "--threads", str(threads), "--skip-test"),
            *("--precision", "bfloat16" if ingredients.bfloat16 else "float32"),
        ]
    )
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    dataset = open_dataset(data)
    task = prepare_finetune(dataset, settings, args, args.output, device, Signals())
    network, steps = task.trained, scale.warm_up + scale.steps
    if not ingredients.channels_last:
        # A new one: a 1 × 1 convolution that once was channels_last is taken for that for ever.
        backbone = load_backbone(arch, weights, all_stages=False)
        head = Head(backbone.width(), len(dataset.counts), settings.hidden, settings.dropout)
        network = Network(backbone, head, frozen_batch_norm=settings.batch_norm == "frozen")
        network.to(device)
    return network, FirstSteps(task.source, steps, ingredients.channels_last), settings


class FirstSteps:
    """So many batches of another source, over as many of its epochs as they take."""

    def __init__(self, source: Source, steps: int, channels_last: bool) -> None:
        self.steps = steps
        self._source, self._channels_last = source, channels_last

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        endless = (batch for later in count(epoch) for batch in self._source.batches(later, 0))
        for batch in islice(endless, first, self.steps):
            yield (
                batch
                if self._channels_last
                else batch._replace(inputs=channels_first(batch.inputs))
            )


def channels_first(pixels: Tensor) -> Tensor:
    """[N, size, size, 3], with channels apart in memory.

    A backbone's input is a permuted view of the pixels: as they come, it would be channels_last,
    and so would every feature map after it.
    """
    return pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def plain_steps(network: nn.Module, source: Source, learning_rate: float) -> Iterator[float]:
    """The steps of an epoch as a tutorial writes them; yields the loss after each."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    network.train()
    for inputs, targets, _ in source.batches(0, 0):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs), targets)
        loss.backward()
        optimizer.step()
        yield loss.item()
