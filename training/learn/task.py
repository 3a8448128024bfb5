"""What a run trains and evaluates, by mode."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.dataset import Dataset, DatasetError, PhotoIndex, Side, in_validation
from common.signals import Signals
from training.learn.batch import Examples, Inputs, Source, soft_targets
from training.learn.distributed import ALONE, World
from training.learn.features import FeatureExtractor, features_key
from training.learn.head import FeatureBatches
from training.learn.model import (
    Head,
    Network,
    keep_depthwise_in_float32,
    load_backbone,
    load_matching,
    make_ensemble,
)
from training.learn.photos import EvalPhotos, PhotoBatches
from training.learn.precision import resolve_precision
from training.learn.products import product_slots
from training.learn.trainer import Trainer
from training.settings import BackbonePrecision, Options, Settings

EVAL_BATCH = 64  # photos
Chosen = TypeVar("Chosen", bound=Options)


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Photos to evaluate on, with one or two `views` of them as inputs of the trained network.

    The views are the photos and, with --mirror, their mirror images; their logits are averaged.
    """

    photos: PhotoIndex
    classes: Tensor  # int64 [photos]
    views: list[Iterable[Inputs]]

    @property
    def examples(self) -> Examples:
        """The photos that are not mirrored."""
        return Examples(self.views[0], self.classes)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The network of a run, and its data for training, validation and testing."""

    network: nn.Module
    trained: nn.Module  # the network, or only its head
    source: Source
    validation: EvalSet
    test: EvalSet | None  # None with --train-on all and --skip-test
    fitted: PhotoIndex  # the photos to train on
    photos: PhotoIndex  # these and those of validation


def resolve_settings(
    options: Chosen, dataset: Dataset, device: torch.device, world: World = ALONE
) -> Chosen:
    """Resolve the settings that depend on the data set and on the machine: size and precision."""
    settings, precision = options.settings, options.settings.precision
    if world.first:
        checkpoints = options.places.checkpoints
        precision = resolve_precision(precision, settings.mode, device, checkpoints)
    size = settings.size or dataset.size
    settings = replace(settings, size=size, precision=world.broadcast(precision))
    return replace(options, settings=settings)


def prepare_head(
    dataset: Dataset,
    options: Options,
    device: torch.device,
    signals: Signals,
    world: World = ALONE,
) -> Task:
    """Compute the features of all photos, and create a head to train on them."""
    settings, places = options.settings, options.places
    backbone = load_backbone(settings.arch, places.weights, all_stages=True)

    def features(side: Side, precision: BackbonePrecision) -> Tensor:
        """Return float16 [photos, views, features]."""
        key = features_key(dataset, settings.arch, places.weights, settings.size, precision)
        extractor = FeatureExtractor(
            backbone=backbone,
            folder=places.checkpoints / f"features-{key}",
            size=settings.size,
            precision=precision,
            threads=options.machine.threads,
            device=device,
            should_stop=lambda: signals.seen(signal.SIGTERM),
            world=world,
        )
        return torch.from_numpy(extractor.compute(dataset, side))

    def eval_set(photos: PhotoIndex, inputs: Tensor) -> EvalSet:
        views, products = 2 if settings.mirror == "yes" else 1, product_slots(photos).to(device)
        return EvalSet(
            photos=photos,
            classes=classes_of(dataset, photos),
            views=[[Inputs(inputs[:, view].float().to(device), products)] for view in range(views)],
        )

    sides = training_sides(settings)
    photos = dataset.index(*sides)
    inputs = torch.cat([features(side, settings.backbone_precision) for side in sides])
    fit, held_out = split_validation(photos, settings.validation_fraction)
    fitted, fitted_inputs = photos.subset(fit), inputs[fit]  # float16, as memory may be 4 GiB
    head = _make_heads(fitted_inputs, len(dataset.counts), settings).to(device)
    test = None
    if has_test(options):
        # Always in float32, like the model that is served.
        test = eval_set(dataset.index("test"), features("test", "float32"))
    return Task(
        network=Network(backbone, head),
        trained=head,
        source=FeatureBatches(
            fitted_inputs.to(device),
            product_slots(fitted).to(device),
            _targets(dataset, fitted, settings).to(device),
            batch_size=settings.batch_size,
            seed=settings.seed,
            world=world,
        ),
        validation=eval_set(photos.subset(held_out), inputs[held_out]),
        test=test,
        fitted=fitted,
        photos=photos,
    )


def _make_heads(inputs: Tensor, classes: int, settings: Settings) -> nn.Module:
    heads = [
        Head(inputs.shape[2], classes, settings.hidden, settings.dropout)
        for _ in range(settings.ensemble_size)
    ]
    for head in heads:
        head.standardise(inputs.flatten(0, 1))
    return make_ensemble(heads)


def prepare_finetune(
    dataset: Dataset,
    options: Options,
    device: torch.device,
    signals: Signals,
    world: World = ALONE,
) -> Task:
    """Create a network whose layers are all trained, on photos that are decoded when needed."""
    settings, threads = options.settings, options.machine.threads
    network = _make_network(dataset, options, device)

    def eval_set(photos: PhotoIndex) -> EvalSet:
        views: list[Iterable[Inputs]] = [
            EvalPhotos(
                photos,
                size=settings.size,
                batch_size=EVAL_BATCH,
                threads=threads,
                device=device,
                mirrored=mirrored,
            )
            for mirrored in ((False, True) if settings.mirror == "yes" else (False,))
        ]
        return EvalSet(photos=photos, classes=classes_of(dataset, photos), views=views)

    photos = dataset.index(*training_sides(settings))
    fit, held_out = split_validation(photos, settings.validation_fraction)
    fitted = photos.subset(fit)
    source = PhotoBatches(
        fitted,
        _targets(dataset, fitted, settings),
        packed=dataset.size,
        size=settings.size,
        batch_size=settings.batch_size,
        seed=settings.seed,
        threads=threads,
        device=device,
        world=world,
    )
    if not source.steps:
        raise DatasetError(
            f"{len(fitted)} photos to train on are fewer than one batch of "
            f"{settings.batch_size * world.size}: prepare more photos or lower --batch-size"
        )
    return Task(
        network=network,
        trained=network,
        source=source,
        validation=eval_set(photos.subset(held_out)),
        test=eval_set(dataset.index("test")) if has_test(options) else None,
        fitted=fitted,
        photos=photos,
    )


def _make_network(dataset: Dataset, options: Options, device: torch.device) -> nn.Module:
    settings, weights = options.settings, options.places.weights

    def member() -> Network:
        backbone = load_backbone(settings.arch, weights, all_stages=False)
        head = Head(backbone.width(), len(dataset.counts), settings.hidden, settings.dropout)
        return Network(backbone, head, frozen_batch_norm=settings.batch_norm == "frozen")

    network = make_ensemble([member() for _ in range(settings.ensemble_size)])
    load_matching(network, settings.arch, weights)
    network.to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_depthwise_in_float32(network)
    return network


def _targets(dataset: Dataset, photos: PhotoIndex, settings: Settings) -> Tensor:
    return soft_targets(classes_of(dataset, photos), dataset.counts, settings.label_sigma)


def training_sides(settings: Settings) -> tuple[Side, ...]:
    return ("train", "test") if settings.train_on == "all" else ("train",)


def has_test(options: Options) -> bool:
    """Whether the run evaluates on the test photos."""
    return options.settings.train_on == "train" and not options.extras.skip_test


def split_validation(
    photos: PhotoIndex, fraction: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return masks of the rows to train on and to validate on; product groups are kept together.

    Raises DatasetError if one of them is empty.
    """
    held_out = np.array([in_validation(group, fraction) for group in photos.groups])
    for name, rows in (("validation", held_out), ("training", ~held_out)):
        if not rows.any():
            raise DatasetError(f"no photo is left for {name}: prepare more photos")
    return ~held_out, held_out


def classes_of(dataset: Dataset, photos: PhotoIndex) -> Tensor:
    """Return the classes, int64 [photos]; class k stands for the k-th count of `dataset`."""
    return torch.from_numpy(np.searchsorted(np.array(dataset.counts), photos.counts))


def mean_logits(trainer: Trainer, eval_set: EvalSet) -> NDArray[np.float32]:
    """Return the logits without and with products, mean over views, [photos, 2, classes]."""
    logits = torch.stack([trainer.logits(view) for view in eval_set.views])
    mean: NDArray[np.float32] = logits.mean(0).numpy()
    return mean
