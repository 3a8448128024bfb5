"""The new head learns on cached features; every epoch follows from the seed and its number."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoint import Best, Snapshot
from training.model import Head
from training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Features, float32 [photos, views, features], and classes, int64 [photos]."""

    views: Tensor
    classes: Tensor


class DivergedError(RuntimeError):
    """No epoch gave a usable head; the message is one line."""


class HeadTrainer:
    """A head in training: state after `epoch` epochs, and one more at a time."""

    def __init__(self, train: Examples, *, classes: int, settings: Settings) -> None:
        self._train = train
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.head = Head(train.views.shape[2], classes, settings.hidden, settings.dropout)
        self.head.standardise(train.views.flatten(0, 1))
        self._optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        steps = settings.epochs * -(-len(train.classes) // settings.batch_size)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, settings.learning_rate, total_steps=steps
        )
        self.epoch = 0
        self._best = Best(epoch=0, validation_loss=math.inf, head={})
        self.history: list[dict[str, Any]] = []  # the lines of metrics.jsonl

    def train_epoch(self) -> float:
        """One pass over the training photos; returns the mean cross-entropy.

        Order, views and dropout follow from (seed, epoch) alone, so that a run that was
        interrupted ends in the same weights.
        """
        torch.manual_seed(self.settings.seed * 1_000_003 + self.epoch + 1)
        self.head.train()
        views, classes = self._train.views, self._train.classes
        total = 0.0
        for rows in torch.randperm(len(classes)).split(self.settings.batch_size):
            view = torch.randint(views.shape[1], (len(rows),))
            loss = nn.functional.cross_entropy(self.head(views[rows, view]), classes[rows])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._schedule.step()
            total += loss.item() * len(rows)
        self.epoch += 1
        return total / len(classes)

    @torch.inference_mode()
    def evaluate(self, examples: Examples) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on the photos as they are, not mirrored."""
        self.head.eval()
        logits = self.head(examples.views[:, 0])
        loss = nn.functional.cross_entropy(logits, examples.classes).item()
        return loss, (logits.argmax(1) == examples.classes).float().mean().item()

    def keep_if_best(self, validation_loss: float) -> None:
        """Remember the head as it is, if no epoch before had a lower loss on validation."""
        if validation_loss < self._best["validation_loss"]:
            self._best = Best(
                epoch=self.epoch, validation_loss=validation_loss, head=self._weights()
            )

    def best_head(self) -> tuple[Head, int]:
        """The head of the epoch with the lowest loss on validation, and that epoch.

        Raises DivergedError when that loss was NaN or infinite after every epoch.
        """
        if not self._best["head"]:
            raise DivergedError(
                "training diverged, no epoch had a finite validation loss: lower --learning-rate"
            )
        self.head.load_state_dict(self._best["head"])
        return self.head, self._best["epoch"]

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.head.state_dict().items()}

    def snapshot(self) -> Snapshot:
        return Snapshot(
            settings=asdict(self.settings),
            epoch=self.epoch,
            head=self.head.state_dict(),
            optimizer=self._optimizer.state_dict(),
            schedule=self._schedule.state_dict(),
            best=self._best,
            history=self.history,
        )

    def restore(self, snapshot: Snapshot) -> None:
        self.head.load_state_dict(snapshot["head"])
        self._optimizer.load_state_dict(snapshot["optimizer"])
        self._schedule.load_state_dict(snapshot["schedule"])
        self._best = snapshot["best"]
        self.history, self.epoch = snapshot["history"], snapshot["epoch"]
