import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training.learn.batch import Batch, Examples, Inputs, soft_targets
from training.learn.checkpoint import copy_tensors, load_checkpoint, save_checkpoint
from training.learn.head import FeatureBatches
from training.learn.model import Head, make_ensemble
from training.learn.products import ABSENT, MEASURES, SLOTS
from training.learn.trainer import DivergedError, Trainer
from training.settings import Settings

COUNTS = [1, 2, 3]
CPU = torch.device("cpu")
CHOSEN = Settings(
    mode="head",
    arch="resnet50",
    size=224,
    epochs=4,
    batch_size=8,
    learning_rate=1e-2,
    warmup=0.3,
    weight_decay=0.05,
    hidden=8,
    dropout=0.5,
    label_sigma=0.0,
    ema_decay=0.9,
    ensemble_size=1,
    batch_norm="train",
    precision="float32",
    backbone_precision="float32",
    mirror="no",
    decision="argmax",
    validation_fraction=0.1,
    eval_every=1000,
    train_on="train",
    seed=0,
)
STEPS = 6  # an epoch of 43 photos: the last batch is short


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Steps this small are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def separable(
    photos: int, seed: int, *, scale: float = 1.0, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Views [photos, 2, 5] and classes: class k lies around the k-th unit vector."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(len(COUNTS), (photos,), generator=generator)
    noise = torch.randn(photos, 2, 5, generator=generator) * 0.2
    centres = nn.functional.one_hot(classes, 5).float()[:, None]
    return (centres + noise) * scale + offset, classes


def products_of(photos: int) -> Tensor:
    """Every second record names one product."""
    products = torch.full((photos, SLOTS, len(MEASURES)), ABSENT)
    products[::2, 0] = 1.0
    return products


def examples(views: Tensor, classes: Tensor) -> Examples:
    return Examples([Inputs(views[:, 0], products_of(len(views)))], classes)


TRAIN = separable(43, 1)
VALIDATION = examples(*separable(20, 2))


def new_head(views: Tensor, chosen: Settings) -> Head:
    head = Head(views.shape[2], len(COUNTS), chosen.hidden, chosen.dropout)
    head.standardise(views.flatten(0, 1))
    return head


def new_trainer(
    chosen: Settings = CHOSEN,
    train: tuple[Tensor, Tensor] = TRAIN,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Trainer, nn.Module]:
    views, classes = train
    torch.manual_seed(chosen.seed)
    head = make_ensemble([new_head(views, chosen) for _ in range(chosen.ensemble_size)])
    targets = soft_targets(classes, COUNTS, chosen.label_sigma)
    source = FeatureBatches(
        views,
        products_of(len(views)),
        targets,
        batch_size=chosen.batch_size,
        seed=chosen.seed,
    )
    return Trainer(head, source, chosen, CPU, should_stop=should_stop), head


def train(trainer: Trainer, until: int, validation: Examples = VALIDATION) -> list[float]:
    """Train until `until` steps were taken in all; returns the losses."""
    losses = []
    while trainer.epoch * trainer.steps + trainer.step < until:
        for loss in trainer.train_epoch():
            losses.append(loss)
            if (
                trainer.epoch * trainer.steps + trainer.step
                == until
                < trainer.steps * (trainer.epoch + 1)
            ):
                return losses
        trainer.evaluate(validation)
    return losses


def run(
    folder: Path, chosen: Settings = CHOSEN, stops: Iterable[int] = ()
) -> tuple[Trainer, nn.Module]:
    """A finished run that was cut off after each step in `stops`, and began anew from its file."""
    trainer, head = new_trainer(chosen)
    for stop in stops:
        train(trainer, stop)
        save_checkpoint(folder, trainer.checkpoint())
        torch.manual_seed(torch.seed())  # the next machine's generator is in another state
        trainer, head = new_trainer(chosen)
        checkpoint = load_checkpoint(folder, asdict(chosen))
        assert checkpoint
        trainer.restore(checkpoint)
        assert trainer.epoch * trainer.steps + trainer.step == stop
    train(trainer, chosen.epochs * trainer.steps)
    assert trainer.finished
    return trainer, head


def equal_weights(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, nn.Module]:
    return run(tmp_path_factory.mktemp("uninterrupted"))


@settings(max_examples=30, deadline=None)
@given(stops=st.sets(st.integers(0, STEPS * CHOSEN.epochs - 1), min_size=1).map(sorted))
def test_interruptions_at_any_step_leave_no_trace_in_weights_and_history(
    tmp_path_factory: pytest.TempPathFactory,
    uninterrupted: tuple[Trainer, nn.Module],
    stops: list[int],
) -> None:
    trainer, head = run(tmp_path_factory.mktemp("checkpoints"), stops=stops)
    expected, expected_head = uninterrupted
    assert equal_weights(head.state_dict(), expected_head.state_dict())
    assert equal_weights(trainer.checkpoint()["average"], expected.checkpoint()["average"])
    assert trainer.history == expected.history
    assert [line["epoch"] for line in trainer.history] == [1, 2, 3, 4]


def test_each_member_trains_as_if_it_were_alone() -> None:
    chosen = replace(CHOSEN, dropout=0, learning_rate=1e-3)
    together_trainer, together_head = new_trainer(replace(chosen, ensemble_size=3))
    members = list(together_head.get_submodule("members").children())
    alone = []
    for member in members:
        trainer, head = new_trainer(chosen)
        head.load_state_dict(member.state_dict())
        alone.append((trainer, head))
    of_all = list(together_trainer.train_epoch())
    of_each = [list(trainer.train_epoch()) for trainer, _ in alone]
    assert of_all == pytest.approx(np.mean(of_each, axis=0).tolist())
    for member, (_, head) in zip(members, alone, strict=True):
        for name, tensor in head.state_dict().items():
            torch.testing.assert_close(member.state_dict()[name], tensor)


def test_the_seed_decides_the_first_weights_and_the_order_of_the_photos() -> None:
    (one, head), (other, other_head) = new_trainer(), new_trainer(replace(CHOSEN, seed=1))
    assert not equal_weights(head.state_dict(), other_head.state_dict())
    other_head.load_state_dict(head.state_dict())
    assert list(one.train_epoch()) != list(other.train_epoch())


def test_every_epoch_draws_anew() -> None:
    """With a learning rate of nearly 0 only order, views and dropout differ."""
    trainer, _ = new_trainer(replace(CHOSEN, learning_rate=1e-12))
    train(trainer, 3 * STEPS)
    assert len({line["train_loss"] for line in trainer.history}) == 3


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-2, 0), (50, 1000)])
def test_a_separable_set_is_learned_whatever_the_scale_of_its_features(
    scale: float, offset: float
) -> None:
    chosen = replace(CHOSEN, epochs=20, dropout=0.1)
    trainer, _ = new_trainer(chosen, separable(120, 1, scale=scale, offset=offset))
    held_out = examples(*separable(60, 2, scale=scale, offset=offset))
    train(trainer, chosen.epochs * trainer.steps, held_out)
    first, last = trainer.history[0], trainer.history[-1]
    assert last["train_loss"] < first["train_loss"] * 0.7
    assert last["validation_loss"] < first["validation_loss"] / 2
    assert last["validation_accuracy"] > 0.95


def test_the_mirrored_view_is_learned_from_as_well() -> None:
    """What can be told from the mirrored views alone is known after training."""
    views, classes = separable(120, 1)
    chosen = replace(CHOSEN, epochs=30, dropout=0)
    blind = torch.stack([torch.zeros(120, 5), views[:, 1]], dim=1)
    trainer, _ = new_trainer(chosen, (blind, classes))
    train(trainer, chosen.epochs * trainer.steps, examples(*separable(60, 2)))
    assert trainer.history[-1]["validation_accuracy"] > 0.9


def test_products_are_learned_beside_the_photo() -> None:
    """The number of products is the class, and the photos show nothing."""
    generator = torch.Generator().manual_seed(3)
    views, classes = torch.randn(240, 2, 5, generator=generator), torch.arange(240) % len(COUNTS)
    products = torch.full((240, SLOTS, len(MEASURES)), ABSENT)
    products[classes[:, None] >= torch.arange(SLOTS)] = 5.0
    chosen = replace(CHOSEN, epochs=20, dropout=0.1)
    targets = soft_targets(classes, COUNTS, 0)
    source = FeatureBatches(views, products, targets, batch_size=8, seed=0)
    trainer = Trainer(new_head(views, chosen), source, chosen, CPU)
    train(trainer, chosen.epochs * trainer.steps)
    other = torch.randn(240, 5, generator=generator)
    logits = trainer.logits([Inputs(other, products)])
    photo, both = ((logits[:, k].argmax(1) == classes).float().mean().item() for k in (0, 1))
    assert both > 0.95
    assert photo < 0.6


def test_the_losses_of_training_and_validation_are_the_same_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without dropout or learning, with equal views, both are the mean over the photos."""
    monkeypatch.setattr("training.learn.trainer.PRODUCTS_LEARNING_RATE", 1e-12)
    views, classes = separable(40, 1)
    same = views[:, :1].repeat(1, 2, 1)
    chosen = replace(CHOSEN, dropout=0, learning_rate=1e-12)
    trainer, _ = new_trainer(chosen, (same, classes))
    train(trainer, trainer.steps, examples(same, classes))
    (line,) = trainer.history
    assert line["train_loss"] == pytest.approx(line["validation_loss"], rel=1e-4)


def test_measuring_does_not_change_what_follows(uninterrupted: tuple[Trainer, nn.Module]) -> None:
    trainer, head = new_trainer()
    while not trainer.finished:
        for _ in trainer.train_epoch():
            trainer.logits(VALIDATION.batches)
            trainer._network.train()
        trainer.evaluate(VALIDATION)
    assert equal_weights(head.state_dict(), uninterrupted[1].state_dict())


def test_what_is_measured_is_the_average_of_the_weights() -> None:
    weights = []
    trainer, head = new_trainer()
    average = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    for number, _ in enumerate(trainer.train_epoch(), 1):
        weights.append(copy_tensors(head.state_dict()))
        decay = min(CHOSEN.ema_decay, number / (number + 9))
        for name, tensor in weights[-1].items():
            average[name] = decay * average[name] + (1 - decay) * tensor
    head.load_state_dict(average)
    expected = head.eval()(*VALIDATION.batches[0])  # type: ignore[index]
    torch.testing.assert_close(trainer.logits(VALIDATION.batches), expected)


def test_without_averaging_the_weights_themselves_are_measured() -> None:
    trainer, head = new_trainer(replace(CHOSEN, ema_decay=0.0))
    list(trainer.train_epoch())
    assert equal_weights(trainer.checkpoint()["average"], head.state_dict())


@pytest.mark.parametrize("stop", [1, STEPS + 2])
def test_without_averaging_an_interruption_leaves_no_trace_either(
    tmp_path: Path, stop: int
) -> None:
    chosen = replace(CHOSEN, ema_decay=0.0)
    _, expected = run(tmp_path / "peaceful", chosen)
    trainer, head = run(tmp_path / "stopped", chosen, stops=[stop])
    assert equal_weights(head.state_dict(), expected.state_dict())
    assert equal_weights(trainer.checkpoint()["average"], expected.state_dict())


@pytest.mark.parametrize("warmup", [0.0, 1 / (STEPS * 4), 0.5])
def test_any_share_of_the_steps_may_warm_up(warmup: float) -> None:
    trainer, _ = new_trainer(replace(CHOSEN, warmup=warmup))
    train(trainer, STEPS * CHOSEN.epochs)
    assert trainer.finished


class Fixed(nn.Module):
    """Answers with its one weight, which training does not move far."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, len(COUNTS)))

    def forward(self, inputs: Tensor, products: Tensor) -> Tensor:
        return (inputs[:, : len(COUNTS)] * 0 + self.weight).unsqueeze(1).expand(-1, 2, -1)


class OneBatch:
    """A source of one batch an epoch."""

    steps = 1

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        yield Batch(Inputs(torch.zeros(2, 3), products_of(2)), torch.full((2, 3), 1 / 3), 2)


def validation_loss_of(network: Fixed, average: dict[str, Tensor], loss: float) -> Examples:
    """Examples on which the averaged weights have about this loss."""
    average["weight"][0] = torch.tensor([-math.log(math.exp(loss) - 1), 0.0, -100.0])
    return Examples([Inputs(torch.zeros(1, 3), products_of(1))], torch.tensor([0]))


def test_the_weights_with_the_lowest_validation_loss_are_kept_across_an_interruption(
    tmp_path: Path,
) -> None:
    network = Fixed()
    trainer = Trainer(network, OneBatch(), CHOSEN, CPU)
    for loss in (0.9, 0.5, 0.7):
        list(trainer.train_epoch())
        average = trainer.checkpoint()["average"]
        line = trainer.evaluate(validation_loss_of(network, average, loss))
        assert line["validation_loss"] == pytest.approx(loss, abs=1e-3)
    save_checkpoint(tmp_path, trainer.checkpoint())
    checkpoint = load_checkpoint(tmp_path, asdict(CHOSEN))
    assert checkpoint
    resumed = Trainer(Fixed(), OneBatch(), CHOSEN, CPU)
    resumed.restore(checkpoint)
    list(resumed.train_epoch())
    resumed.evaluate(validation_loss_of(network, resumed.checkpoint()["average"], 0.6))
    assert resumed.load_best() == 2
    expected = torch.tensor([-math.log(math.exp(0.5) - 1), 0.0, -100.0])
    torch.testing.assert_close(
        resumed.logits([Inputs(torch.zeros(1, 3), products_of(1))])[0, 0], expected
    )


class TwoFixed(nn.Module):
    """Answers without and with products from a parameter each."""

    def __init__(self) -> None:
        super().__init__()
        self.photo, self.with_products = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, photos: Tensor, products: Tensor) -> Tensor:
        return torch.stack([self.photo(photos), self.with_products(photos)], dim=1)


def test_layers_that_count_with_products_have_a_best_evaluation_of_their_own() -> None:
    network = TwoFixed()
    trainer = Trainer(network, OneBatch(), CHOSEN, CPU)
    validation = Examples([Inputs(torch.zeros(1, 3), products_of(1))], torch.tensor([0]))
    for photo, products in ((2.0, 0.0), (1.0, 3.0), (0.0, 2.0)):  # logits of the right class
        list(trainer.train_epoch())
        average = trainer.checkpoint()["average"]
        for name, logit in (("photo", photo), ("with_products", products)):
            average[f"{name}.bias"].copy_(torch.tensor([logit, 0.0, 0.0]))
        trainer.evaluate(validation)
    assert trainer.load_best() == 1
    assert network.photo.bias.tolist() == [2.0, 0.0, 0.0]
    assert network.with_products.bias.tolist() == [3.0, 0.0, 0.0]


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_a_run_that_diverges_ends_at_once_with_what_to_do(rate: float) -> None:
    trainer, _ = new_trainer(replace(CHOSEN, learning_rate=rate))
    with pytest.raises(DivergedError, match=r"epoch 1; lower --learning-rate"):
        train(trainer, STEPS)
    assert trainer.history == []


@settings(deadline=None)
@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    sigma=st.floats(0.05, 5),
    first=st.integers(0, 3),
)
def test_targets_are_distributions_whose_peak_is_the_count_and_that_fall_with_distance(
    classes: list[int], sigma: float, first: int
) -> None:
    counts = list(range(first, first + 5))
    targets = soft_targets(torch.tensor(classes), counts, sigma)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(classes)))
    for row, true in zip(targets, classes, strict=True):
        by_distance = sorted(range(5), key=lambda other, true=true: abs(other - true))
        falling = row[by_distance]
        assert bool((falling[1:] <= falling[:-1] + 1e-6).all())


def test_without_sigma_the_target_is_the_count_alone() -> None:
    assert soft_targets(torch.tensor([2, 0]), COUNTS, 0).tolist() == [[0, 0, 1], [1, 0, 0]]
