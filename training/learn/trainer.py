"""Gradient descent, one step at a time: the same for a head on features and for every layer.

All that a step depends on is in the snapshot or follows from (seed, epoch, step), so that a run
that was interrupted anywhere ends in the same weights.
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
from training.learn.batch import Batch, Examples, Source
from training.learn.checkpoint import Best, Snapshot, machine
from training.learn.distributed import ALONE, World
from training.learn.precision import DTYPES
from training.settings import Settings

GRADIENT_NORM = 5.0  # a longer gradient is cut to this length (Pascanu et al. 2013)


class DivergedError(RuntimeError):
    """The network answers with no numbers any more; the message is one line."""


class Trainer:
    """A network in training: its state after `step` steps of epoch `epoch`, and one more.

    What is measured and kept is the exponential moving average of the weights (Polyak and
    Juditsky 1992), with a shorter memory in the beginning.
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
        """`should_stop` is asked between the batches that are measured on."""
        self.settings, self.world = settings, world
        self._should_stop = should_stop
        self._network, self._source, self._device = network, source, device
        # Sends a layer's gradients while the layers before it are still computing theirs.
        self._trained = DistributedDataParallel(network) if world.size > 1 else network
        self._average = network.state_dict()
        if settings.ema_decay:
            self._average = {name: tensor.clone() for name, tensor in self._average.items()}
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            settings.learning_rate,
            total_steps=settings.epochs * source.steps,
            # A warm-up of just one step would be divided by 0 in there.
            pct_start=settings.warmup + 1e-9,
        )
        # Without float16 it does nothing.
        self._scaler = torch.amp.GradScaler(
            device.type, enabled=DTYPES[settings.precision] is torch.float16
        )
        self.epoch = 0
        self.step = 0
        self._losses: list[float] = []  # of the steps since the last measurement
        # Of this process.
        self.loading_seconds = self.computing_seconds = 0.0
        self.photos = 0
        self._best = Best(epoch=0, validation_loss=math.inf, network={})
        self.history: list[dict[str, Any]] = []  # the lines of metrics.jsonl

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self._source.steps

    @property
    def finished(self) -> bool:
        return self.epoch == self.settings.epochs

    def train_epoch(self) -> Iterator[float]:
        """Take the steps of this epoch that are left; yields the loss after each."""
        self._trained.train()
        waiting = time.monotonic()
        for batch in self._source.batches(self.epoch, self.step):
            loaded = time.monotonic()
            loss = self._take_step(batch)
            finished = time.monotonic()
            self.loading_seconds += loaded - waiting
            self.computing_seconds += finished - loaded
            self.photos += len(batch.inputs)
            yield loss
            waiting = time.monotonic()

    @property
    def measurement_due(self) -> bool:
        """At the end of an epoch, and every so many steps of a long one; not twice."""
        taken = self.epoch * self.steps + self.step
        measured = self.history[-1]["step"] if self.history else 0
        end = self.step == self.steps
        return taken > measured and (end or self.step % self.settings.eval_every == 0)

    def _take_step(self, batch: Batch) -> float:
        torch.manual_seed(self._seed() * self.world.size + self.world.rank)
        inputs, targets, total = batch
        with self._autocast():
            logits = self._trained(inputs)
        members = self.settings.ensemble_size
        answers = targets.repeat(members, 1)
        losses = nn.functional.cross_entropy(logits.float(), answers, reduction="sum")
        loss = losses * (self.world.size / total)  # whose mean over the processes is followed
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._network.parameters(), GRADIENT_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._update_average()
        self.step += 1
        self._losses.append(self.world.sum(losses.item() / (members * total)))
        return self._losses[-1]

    def _seed(self) -> int:
        return (self.settings.seed * 1_000_003 + self.epoch) * 1_000_003 + self.step

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = DTYPES[self.settings.precision]
        return torch.autocast(self._device.type, dtype, enabled=dtype is not torch.float32)

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.settings.ema_decay:
            return  # it is the weights themselves
        taken = self.epoch * self.steps + self.step
        decay = min(self.settings.ema_decay, (1 + taken) / (10 + taken))
        for name, tensor in self._network.state_dict().items():
            if tensor.is_floating_point():
                self._average[name].lerp_(tensor, 1 - decay)
            else:
                self._average[name].copy_(tensor)

    def measure(self, validation: Examples) -> dict[str, Any]:
        """Measure on `validation`, note it, keep the weights if they are the best so far.

        After an epoch's last step the next epoch begins. Returns the line of metrics.jsonl.
        Raises DivergedError when the loss is no number; StoppedError, with nothing noted, as
        soon as `should_stop()`.
        """
        logits = self.logits(validation.batches)
        loss = nn.functional.cross_entropy(logits, validation.classes).item()
        if not math.isfinite(loss):
            raise DivergedError(
                f"training diverged, in epoch {self.epoch + 1} the validation loss is {loss}: "
                "lower --learning-rate"
            )
        right = logits.argmax(1) == validation.classes
        if self.step == self.steps:
            self.epoch, self.step = self.epoch + 1, 0
        epoch = round(self.epoch + self.step / self.steps, 4) if self.step else self.epoch
        line = {
            "epoch": epoch,
            "step": self.epoch * self.steps + self.step,
            "learning_rate": float(f"{self._schedule.get_last_lr()[0]:.4g}"),
            "train_loss": round(float(np.mean(self._losses)), 6),
            "validation_loss": round(loss, 6),
            "validation_accuracy": round(right.float().mean().item(), 4),
        }
        self._losses = []
        if loss < self._best["validation_loss"]:
            weights = {name: tensor.clone() for name, tensor in self._average.items()}
            self._best = Best(epoch=epoch, validation_loss=loss, network=weights)
        self.history.append(line)
        self._trained.train()
        return line

    @torch.inference_mode()
    def logits(self, batches: Iterable[Tensor]) -> Tensor:
        """What the averaged network answers, float32 [photos, classes], on the CPU.

        The processes take turns with the batches, and each returns all answers. Raises
        StoppedError as soon as `should_stop()`.
        """
        self._network.eval()
        answers = {}
        for number, inputs in enumerate(batches):
            turn = number % self.world.size
            if turn == 0 and self.world.any(self._should_stop()):
                raise StoppedError
            if turn == self.world.rank:
                answers[number] = functional_call(self._network, self._average, inputs).cpu()
        of_all = {k: v for gathered in self.world.gather(answers) for k, v in gathered.items()}
        return torch.cat([of_all[number] for number in sorted(of_all)]).float()

    def load_best(self) -> float:
        """Give the network the weights with the lowest loss on validation.

        Returns after how many epochs they were measured.
        """
        self._network.load_state_dict(self._best["network"])
        self._average = self._network.state_dict()
        return self._best["epoch"]

    def snapshot(self) -> Snapshot:
        """The state, which the next step changes: save it, or copy it, before."""
        return Snapshot(
            settings=asdict(self.settings),
            machine=machine(),
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

    def restore(self, snapshot: Snapshot) -> None:
        self._network.load_state_dict(snapshot["network"])
        for name, tensor in snapshot["average"].items():
            self._average[name].copy_(tensor)
        self._optimizer.load_state_dict(snapshot["optimizer"])
        self._schedule.load_state_dict(snapshot["schedule"])
        self._scaler.load_state_dict(snapshot["scaler"])
        self._best = snapshot["best"]
        self._losses, self.history = snapshot["losses"], snapshot["history"]
        self.epoch, self.step = snapshot["epoch"], snapshot["step"]
