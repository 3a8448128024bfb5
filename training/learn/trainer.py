"""The training steps, for a head on cached features as well as for a whole network.

A step depends only on the checkpoint and on (seed, epoch, step), so that a run ends with the same
weights wherever it is interrupted.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from common.signals import StoppedError
from training.learn.batch import Batch, Examples, Inputs, Source
from training.learn.checkpoint import Best, Checkpoint, machine_details
from training.learn.distributed import ALONE, World
from training.learn.precision import DTYPES
from training.settings import Settings

PRODUCTS_LEARNING_RATE = 0.01  # maximum, of the few small layers that count with products
GRADIENT_NORM = 5.0  # gradients are clipped to this norm (Pascanu et al. 2013)


class DivergedError(RuntimeError):
    """The validation loss is NaN or infinite; the message is one line."""


class Trainer:
    """Trains a network, and holds the state of training after `step` steps of epoch `epoch`.

    Evaluates and keeps the exponential moving average of the weights (Polyak and Juditsky 1992),
    whose decay is lower in the beginning.
    """

    def __init__(
        self,
        network: nn.Module,
        source: Source,
        settings: Settings,
        device: torch.device,
        world: World = ALONE,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Initialise training; `should_stop` is called between batches of an evaluation."""
        self.settings, self.world = settings, world
        self._should_stop = should_stop
        self._network, self._source, self._device = network, source, device
        # Overlaps the exchange of gradients with the backward pass.
        self._trained = DistributedDataParallel(network) if world.size > 1 else network
        self._average = network.state_dict()
        if settings.ema_decay:
            self._average = {name: tensor.clone() for name, tensor in self._average.items()}
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(network, settings), weight_decay=settings.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            [group["lr"] for group in self._optimizer.param_groups],
            total_steps=settings.epochs * source.steps,
            # With a warm-up of one step, OneCycleLR would divide by 0.
            pct_start=settings.warmup + 1e-9,
        )
        # Has no effect unless the precision is float16.
        self._scaler = torch.amp.GradScaler(
            device.type, enabled=DTYPES[settings.precision] is torch.float16
        )
        self.epoch = 0
        self.step = 0
        self._losses: list[float] = []  # of the steps since the last evaluation
        # Totals of this process.
        self.loading_seconds = self.computing_seconds = 0.0
        self.photos = 0
        self._best = Best(epoch=0, validation_loss=math.inf, products_loss=math.inf, network={})
        self.history: list[dict[str, Any]] = []  # the lines of metrics.jsonl

    @property
    def steps(self) -> int:
        """Number of steps in an epoch."""
        return self._source.steps

    @property
    def finished(self) -> bool:
        return self.epoch == self.settings.epochs

    def train_epoch(self) -> Iterator[float]:
        """Take the remaining steps of this epoch; yields the loss after each."""
        self._trained.train()
        waiting = time.monotonic()
        for batch in self._source.batches(self.epoch, self.step):
            loaded = time.monotonic()
            loss = self._take_step(batch)
            finished = time.monotonic()
            self.loading_seconds += loaded - waiting
            self.computing_seconds += finished - loaded
            self.photos += len(batch.targets)
            yield loss
            waiting = time.monotonic()

    @property
    def evaluation_due(self) -> bool:
        """Whether to evaluate now: after each epoch and every `eval_every` steps, but only once."""
        taken = self.epoch * self.steps + self.step
        evaluated = self.history[-1]["step"] if self.history else 0
        end = self.step == self.steps
        return taken > evaluated and (end or self.step % self.settings.eval_every == 0)

    def _take_step(self, batch: Batch) -> float:
        torch.manual_seed(self._seed() * self.world.size + self.world.rank)
        inputs, targets, total = batch
        with self._autocast():
            logits = self._trained(*inputs)
        members = self.settings.ensemble_size
        answers = targets.repeat(members, 1)
        photo, products = (
            nn.functional.cross_entropy(each.float(), answers, reduction="sum")
            for each in logits.unbind(1)
        )
        # Gradients are averaged over the processes.
        loss = (photo + products) * (self.world.size / total)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        for group in self._optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], GRADIENT_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._update_average()
        self.step += 1
        self._losses.append(self.world.sum(photo.item() / (members * total)))
        return self._losses[-1]

    def _seed(self) -> int:
        return (self.settings.seed * 1_000_003 + self.epoch) * 1_000_003 + self.step

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = DTYPES[self.settings.precision]
        return torch.autocast(self._device.type, dtype, enabled=dtype is not torch.float32)

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.settings.ema_decay:
            return  # it shares its tensors with the network
        taken = self.epoch * self.steps + self.step
        decay = min(self.settings.ema_decay, (1 + taken) / (10 + taken))
        for name, tensor in self._network.state_dict().items():
            if tensor.is_floating_point():
                self._average[name].lerp_(tensor, 1 - decay)
            else:
                self._average[name].copy_(tensor)

    def evaluate(self, validation: Examples) -> dict[str, Any]:
        """Evaluate on `validation`, extend the history, and keep the weights if they are the best.

        Loss and accuracy are those of the photos alone. Begins the next epoch after the last step
        of an epoch. Returns the line of metrics.jsonl.
        Raises DivergedError if the loss is not finite, and StoppedError, before any change, once
        `should_stop()` is true.
        """
        logits = self.logits(validation.batches)
        photo, products = logits.unbind(1)
        loss = nn.functional.cross_entropy(photo, validation.classes).item()
        products_loss = nn.functional.cross_entropy(products, validation.classes).item()
        if not math.isfinite(loss + products_loss):
            raise DivergedError(
                f"training diverged: the validation loss is {loss} in epoch {self.epoch + 1}; "
                "lower --learning-rate"
            )
        correct = photo.argmax(1) == validation.classes
        if self.step == self.steps:
            self.epoch, self.step = self.epoch + 1, 0
        epoch = round(self.epoch + self.step / self.steps, 4) if self.step else self.epoch
        line = {
            "epoch": epoch,
            "step": self.epoch * self.steps + self.step,
            "learning_rate": float(f"{self._schedule.get_last_lr()[0]:.4g}"),
            "train_loss": round(float(np.mean(self._losses)), 6),
            "validation_loss": round(loss, 6),
            "validation_accuracy": round(correct.float().mean().item(), 4),
        }
        self._losses = []
        if loss < self._best["validation_loss"]:
            self._best |= {"epoch": epoch, "validation_loss": loss}
            self._keep_weights(with_products=False)
        if products_loss < self._best["products_loss"]:
            self._best["products_loss"] = products_loss
            self._keep_weights(with_products=True)
        self.history.append(line)
        self._trained.train()
        return line

    def _keep_weights(self, *, with_products: bool) -> None:
        self._best["network"] |= {
            name: tensor.clone()
            for name, tensor in self._average.items()
            if _counts_with_products(name) is with_products
        }

    @torch.inference_mode()
    def logits(self, batches: Iterable[Inputs]) -> Tensor:
        """Return the logits of the averaged network, float32 [photos, 2, classes], on the CPU.

        The first are those of the photo alone, the second those of photo and products.
        The processes divide the batches among them, and each returns all logits. Raises
        StoppedError once `should_stop()` is true.
        """
        self._network.eval()
        own = {}
        for number, inputs in enumerate(batches):
            turn = number % self.world.size
            if turn == 0 and self.world.any(self._should_stop()):
                raise StoppedError
            if turn == self.world.rank:
                own[number] = functional_call(self._network, self._average, inputs).cpu()
        by_batch = {k: v for gathered in self.world.gather(own) for k, v in gathered.items()}
        return torch.cat([by_batch[number] for number in sorted(by_batch)]).float()

    def load_best(self) -> float:
        """Load the weights with the lowest validation loss into the network.

        Returns the number of epochs after which they were evaluated.
        """
        self._network.load_state_dict(self._best["network"])
        self._average = self._network.state_dict()
        return self._best["epoch"]

    def checkpoint(self) -> Checkpoint:
        """Return the state; save or copy it before the next step, which changes its tensors."""
        return Checkpoint(
            settings=asdict(self.settings),
            machine=machine_details(),
            epoch=self.epoch,
            step=self.step,
            losses=self._losses,
            network=self._network.state_dict(),
            average=self._average,
            optimizer=self._optimizer.state_dict(),
            schedule=self._schedule.state_dict(),
            scaler=self._scaler.state_dict(),
            best=self._best,
            history=self.history,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        self._network.load_state_dict(checkpoint["network"])
        for name, tensor in checkpoint["average"].items():
            self._average[name].copy_(tensor)
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        self._schedule.load_state_dict(checkpoint["schedule"])
        self._scaler.load_state_dict(checkpoint["scaler"])
        self._best = checkpoint["best"]
        self._losses, self.history = checkpoint["losses"], checkpoint["history"]
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]


def _counts_with_products(name: str) -> bool:
    return "with_products." in name


def _parameter_groups(network: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Return two groups of parameters: those that count with products are the second."""
    photo, products = (
        [p for name, p in network.named_parameters() if _counts_with_products(name) is wanted]
        for wanted in (False, True)
    )
    return [
        {"params": photo, "lr": settings.learning_rate},
        {"params": products, "lr": PRODUCTS_LEARNING_RATE},
    ]
