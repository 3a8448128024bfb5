import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.checkpoint import load_snapshot, save_snapshot
from training.head import DivergedError, Examples, HeadTrainer
from training.settings import Settings

CLASSES = 3
CHOSEN = Settings(
    arch="resnet50",
    epochs=6,
    batch_size=8,
    learning_rate=1e-2,
    weight_decay=0.05,
    hidden=8,
    dropout=0.5,
    validation_fraction=0.1,
    seed=0,
    threads=1,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Steps this small are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def separable(photos: int, seed: int, *, scale: float = 1.0, offset: float = 0.0) -> Examples:
    """Class k lies around the k-th unit vector, in both views."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (photos,), generator=generator)
    noise = torch.randn(photos, 2, 5, generator=generator) * 0.2
    centres = torch.nn.functional.one_hot(classes, 5).float()[:, None]
    return Examples(views=(centres + noise) * scale + offset, classes=classes)


TRAIN, VALIDATION = separable(43, 1), separable(20, 2)  # 43 photos: the last batch is short


def train_until(trainer: HeadTrainer, epoch: int) -> None:
    while trainer.epoch < epoch:
        loss = trainer.train_epoch()
        line = {"epoch": trainer.epoch, "loss": loss, "validation": trainer.evaluate(VALIDATION)[0]}
        trainer.history.append(line)


def new_trainer(chosen: Settings = CHOSEN) -> HeadTrainer:
    return HeadTrainer(TRAIN, classes=CLASSES, settings=chosen)


def run(folder: Path, chosen: Settings = CHOSEN, stops: Iterable[int] = ()) -> HeadTrainer:
    """A finished run that was cut off after each epoch in `stops`, and began anew from its file."""
    trainer = new_trainer(chosen)
    for stop in stops:
        train_until(trainer, stop)
        save_snapshot(folder, trainer.snapshot())
        torch.manual_seed(torch.seed())  # the next machine's generator is in another state
        trainer = new_trainer(chosen)
        snapshot = load_snapshot(folder, asdict(chosen))
        assert snapshot
        trainer.restore(snapshot)
        assert trainer.epoch == stop
    train_until(trainer, chosen.epochs)
    return trainer


def equal_weights(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> HeadTrainer:
    return run(tmp_path_factory.mktemp("uninterrupted"))


@settings(max_examples=20, deadline=None)
@given(stops=st.sets(st.integers(0, CHOSEN.epochs), min_size=1).map(sorted))
def test_interruptions_leave_no_trace_in_weights_and_history(
    tmp_path_factory: pytest.TempPathFactory, uninterrupted: HeadTrainer, stops: list[int]
) -> None:
    resumed = run(tmp_path_factory.mktemp("checkpoints"), stops=stops)
    assert equal_weights(resumed.head.state_dict(), uninterrupted.head.state_dict())
    assert resumed.history == uninterrupted.history
    assert [line["epoch"] for line in resumed.history] == [1, 2, 3, 4, 5, 6]


def test_the_seed_decides_the_first_weights_and_the_order_of_the_photos() -> None:
    one, other = new_trainer(), new_trainer(replace(CHOSEN, seed=1))
    assert not equal_weights(one.head.state_dict(), other.head.state_dict())
    other.head.load_state_dict(one.head.state_dict())
    assert one.train_epoch() != other.train_epoch()


def test_every_epoch_draws_anew() -> None:
    """With a learning rate of nearly 0 only order, views and dropout differ."""
    trainer = new_trainer(replace(CHOSEN, learning_rate=1e-12))
    assert len({trainer.train_epoch() for _ in range(3)}) == 3


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-2, 0), (50, 1000)])
def test_a_separable_set_is_learned_whatever_the_scale_of_its_features(
    scale: float, offset: float
) -> None:
    chosen = replace(CHOSEN, epochs=30, dropout=0.1)
    train = separable(120, 1, scale=scale, offset=offset)
    trainer = HeadTrainer(train, classes=CLASSES, settings=chosen)
    held_out = separable(60, 2, scale=scale, offset=offset)
    before, _ = trainer.evaluate(held_out)
    losses = [trainer.train_epoch() for _ in range(chosen.epochs)]
    after, accuracy = trainer.evaluate(held_out)
    assert losses[-1] < losses[0] / 3
    assert after < before / 3
    assert accuracy > 0.95


def test_the_mirrored_view_is_learned_from_as_well() -> None:
    """What can be told from the mirrored views alone is known after training."""
    photos = separable(120, 1)
    train = Examples(
        views=torch.stack([torch.zeros(120, 5), photos.views[:, 1]], dim=1), classes=photos.classes
    )
    chosen = replace(CHOSEN, epochs=30, dropout=0)
    trainer = HeadTrainer(train, classes=CLASSES, settings=chosen)
    for _ in range(chosen.epochs):
        trainer.train_epoch()
    assert trainer.evaluate(separable(60, 2))[1] > 0.9


def test_photos_are_judged_as_they_are_and_not_mirrored() -> None:
    trainer = new_trainer()
    train_until(trainer, CHOSEN.epochs)
    other_mirror = Examples(
        views=torch.stack([VALIDATION.views[:, 0], torch.randn(20, 5)], dim=1),
        classes=VALIDATION.classes,
    )
    assert trainer.evaluate(other_mirror) == trainer.evaluate(VALIDATION)


def test_the_losses_of_training_and_evaluation_are_the_same_measure() -> None:
    """Without dropout or learning, with equal views, both are the mean over the photos."""
    same = Examples(views=TRAIN.views[:, :1].repeat(1, 2, 1), classes=TRAIN.classes)
    chosen = replace(CHOSEN, dropout=0, learning_rate=1e-12)
    trainer = HeadTrainer(same, classes=CLASSES, settings=chosen)
    assert trainer.train_epoch() == pytest.approx(trainer.evaluate(same)[0], rel=1e-5)


def test_evaluation_does_not_change_what_follows(uninterrupted: HeadTrainer) -> None:
    trainer = new_trainer()
    while trainer.epoch < CHOSEN.epochs:
        trainer.train_epoch()
    assert equal_weights(trainer.head.state_dict(), uninterrupted.head.state_dict())


def test_the_head_with_the_lowest_validation_loss_is_kept_across_an_interruption(
    tmp_path: Path,
) -> None:
    trainer = new_trainer()
    losses = {1: 0.9, 2: 0.5, 3: 0.7}
    weights = {}
    for epoch, loss in losses.items():
        trainer.train_epoch()
        trainer.keep_if_best(loss)
        weights[epoch] = {name: it.clone() for name, it in trainer.head.state_dict().items()}
    save_snapshot(tmp_path, trainer.snapshot())
    snapshot = load_snapshot(tmp_path, asdict(CHOSEN))
    assert snapshot
    resumed = new_trainer()
    resumed.restore(snapshot)
    resumed.train_epoch()
    resumed.keep_if_best(0.6)
    head, epoch = resumed.best_head()
    assert epoch == 2
    assert equal_weights(head.state_dict(), weights[2])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_without_any_finite_validation_loss_there_is_no_best_head(
    tmp_path: Path, loss: float
) -> None:
    trainer = new_trainer()
    trainer.train_epoch()
    trainer.keep_if_best(loss)
    save_snapshot(tmp_path, trainer.snapshot())
    snapshot = load_snapshot(tmp_path, asdict(CHOSEN))
    assert snapshot
    resumed = new_trainer()
    resumed.restore(snapshot)
    for it in (trainer, resumed):
        with pytest.raises(DivergedError, match="no epoch had a finite validation loss"):
            it.best_head()


def test_the_best_head_of_before_a_divergence_is_kept() -> None:
    trainer = new_trainer()
    for loss in (0.9, math.nan):
        trainer.train_epoch()
        trainer.keep_if_best(loss)
    assert trainer.best_head()[1] == 1
