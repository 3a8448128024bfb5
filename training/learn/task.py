"""What a mode trains, on what, and on what it is measured."""

import argparse
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.dataset import Dataset, DatasetError, PhotoIndex, Side, in_validation
from common.signals import Signals
from training.learn.batch import Examples, Source, soft_targets
from training.learn.distributed import ALONE, World
from training.learn.features import Precision, compute_features, features_key
from training.learn.head import FeatureBatches
from training.learn.model import (
    Head,
    Network,
    keep_depthwise_in_float32,
    load_backbone,
    take_over,
    together,
)
from training.learn.photos import PhotoBatches, StillPhotos
from training.learn.trainer import Trainer
from training.settings import Settings

MEASURED_BATCH = 64  # photos


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Photos to measure on, and what the trained network sees of them.

    `views` are one, the photos as they are, or two, their mirror images as well; an answer is the
    mean over the views.
    """

    photos: PhotoIndex
    classes: Tensor  # int64 [photos]
    views: list[Iterable[Tensor]]

    @property
    def examples(self) -> Examples:
        """The photos as they are."""
        return Examples(self.views[0], self.classes)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, on what, and measured on what."""

    network: nn.Module
    trained: nn.Module  # the network, or its head alone
    source: Source
    validation: Measured
    test: Measured | None  # none when they are trained on, or to be left alone
    fitted: PhotoIndex  # trained on
    photos: PhotoIndex  # these and those held out for validation


def prepare_head(
    dataset: Dataset,
    settings: Settings,
    args: argparse.Namespace,
    checkpoints: Path,
    device: torch.device,
    signals: Signals,
    world: World = ALONE,
) -> Task:
    """Features of all photos, and a head to train on them."""
    backbone = load_backbone(settings.arch, args.weights, all_stages=True)

    def views(side: Side, precision: Precision) -> Tensor:
        key = features_key(dataset, settings.arch, args.weights, settings.size, precision)
        features = compute_features(
            dataset,
            side,
            backbone,
            checkpoints / f"features-{key}",
            size=settings.size,
            precision=precision,
            threads=args.threads,
            device=device,
            should_stop=lambda: signals.seen(signal.SIGTERM),
            world=world,
        )
        return torch.from_numpy(features.views)

    photos = dataset.index(*trained_sides(settings))
    inputs = torch.cat(
        [views(side, settings.backbone_precision) for side in trained_sides(settings)]
    )
    fit, held_out = split_validation(photos, settings.validation_fraction)
    # In float16 until they are used: two vCPUs may come with 4 GiB of memory.
    fitted, kept_out = inputs[fit], inputs[held_out].float()
    classes = classes_of(dataset, photos)
    heads = [
        Head(fitted.shape[2], len(dataset.counts), settings.hidden, settings.dropout)
        for _ in range(settings.ensemble_size)
    ]
    for each in heads:
        each.standardise(fitted.flatten(0, 1))
    head = together(heads).to(device)
    used = 2 if settings.mirror == "yes" else 1
    test = None
    if tests(args):
        test_photos = dataset.index("test")
        seen = views("test", "float32")  # whatever it was trained on: so it is served
        test = Measured(
            photos=test_photos,
            classes=classes_of(dataset, test_photos),
            views=[[seen[:, view].float().to(device)] for view in range(used)],
        )
    return Task(
        network=Network(backbone, head),
        trained=head,
        source=FeatureBatches(
            fitted.to(device),
            soft_targets(classes[fit], dataset.counts, settings.label_sigma).to(device),
            batch_size=settings.batch_size,
            seed=settings.seed,
            world=world,
        ),
        validation=Measured(
            photos=photos.subset(held_out),
            classes=classes[held_out],
            views=[[kept_out[:, view].to(device)] for view in range(used)],
        ),
        test=test,
        fitted=photos.subset(fit),
        photos=photos,
    )


def prepare_finetune(
    dataset: Dataset,
    settings: Settings,
    args: argparse.Namespace,
    checkpoints: Path,
    device: torch.device,
    signals: Signals,
    world: World = ALONE,
) -> Task:
    """Photos, decoded and augmented as they are needed, and every layer to train on them."""

    def member() -> Network:
        backbone = load_backbone(settings.arch, args.weights, all_stages=False)
        head = Head(backbone.width(), len(dataset.counts), settings.hidden, settings.dropout)
        return Network(backbone, head, frozen_batch_norm=settings.batch_norm == "frozen")

    network = together([member() for _ in range(settings.ensemble_size)])
    take_over(network, settings.arch, args.weights)
    network.to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_depthwise_in_float32(network)
    photos = dataset.index(*trained_sides(settings))
    fit, held_out = split_validation(photos, settings.validation_fraction)

    def still(photos: PhotoIndex) -> Measured:
        views: list[Iterable[Tensor]] = [
            StillPhotos(
                photos,
                size=settings.size,
                batch_size=MEASURED_BATCH,
                threads=args.threads,
                device=device,
                mirrored=mirrored,
            )
            for mirrored in ((False, True) if settings.mirror == "yes" else (False,))
        ]
        return Measured(photos=photos, classes=classes_of(dataset, photos), views=views)

    fitted = photos.subset(fit)
    source = PhotoBatches(
        fitted,
        soft_targets(classes_of(dataset, fitted), dataset.counts, settings.label_sigma),
        packed=dataset.size,
        size=settings.size,
        batch_size=settings.batch_size,
        seed=settings.seed,
        threads=args.threads,
        device=device,
        world=world,
    )
    if not source.steps:
        raise DatasetError(
            f"{len(fitted)} photos to train on are less than one batch of "
            f"{settings.batch_size * world.size}: prepare more photos, or lower --batch-size"
        )
    return Task(
        network=network,
        trained=network,
        source=source,
        validation=still(photos.subset(held_out)),
        test=still(dataset.index("test")) if tests(args) else None,
        fitted=fitted,
        photos=photos,
    )


def trained_sides(settings: Settings) -> tuple[Side, ...]:
    return ("train", "test") if settings.train_on == "all" else ("train",)


def tests(args: argparse.Namespace) -> bool:
    """Whether the test photos are there to be tested on."""
    return args.train_on == "train" and not args.skip_test


def split_validation(
    photos: PhotoIndex, fraction: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows to train on and rows held out, product groups kept together."""
    held_out = np.array([in_validation(group, fraction) for group in photos.groups])
    for name, rows in (("validation", held_out), ("training", ~held_out)):
        if not rows.any():
            raise DatasetError(f"no photo is left for {name}: prepare more photos")
    return ~held_out, held_out


def classes_of(dataset: Dataset, photos: PhotoIndex) -> Tensor:
    """int64 [photos]: class k stands for the k-th count."""
    return torch.from_numpy(np.searchsorted(np.array(dataset.counts), photos.counts))


def mean_logits(trainer: Trainer, measured: Measured) -> NDArray[np.float32]:
    """What is answered from all views together, [photos, classes]."""
    logits = torch.stack([trainer.logits(view) for view in measured.views])
    mean: NDArray[np.float32] = logits.mean(0).numpy()
    return mean
