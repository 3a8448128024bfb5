import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import accuracy, accuracy_ideas
from benchmarks.accuracy_answers import answers_of
from benchmarks.accuracy_ideas import corn_loss, probabilities_of
from benchmarks.accuracy_ideas_photos import COUNTS, SPREAD, Batches, Photos, known
from data_prep.weights import save_weights
from training.data import open_dataset
from training.trainer import soft_targets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bins_tar: Path) -> Path:
    """As `benchmarks.accuracy prepare` leaves it."""
    folder = tmp_path_factory.mktemp("accuracy")
    accuracy.prepare(folder, bins_tar)
    save_weights("efficientnet_lite0", folder / "weights")
    return folder


@pytest.fixture(scope="module")
def photos(folder: Path) -> Photos:
    return Photos(open_dataset(folder / "datasets" / accuracy.DATASET).index("train"), folder)


def flags(*words: str) -> argparse.Namespace:
    return accuracy_ideas.parse_arguments(["test", *words])


def test_two_photos_side_by_side_show_the_sum_of_their_counts(photos: Photos) -> None:
    batches = Batches(photos, flags())
    rows = np.arange(len(photos.ids))
    pixels = torch.arange(len(rows)).float().view(-1, 1, 1, 1).expand(-1, 4, 4, 3)
    single = soft_targets(photos.classes, COUNTS, SPREAD)
    both, targets = batches.stitched(rows, pixels, single)
    left, right = both[:, 0, 0, 0].long(), both[:, 0, -1, 0].long()
    joined = left != right
    assert joined.any()
    counts = photos.classes + 1
    total = counts[left] + counts[right]
    assert (total[joined] <= len(COUNTS)).all()
    assert torch.equal(targets[joined].argmax(1) + 1, total[joined])
    alone = (left == right) & (2 * counts > len(COUNTS))  # else it may stand beside itself
    assert torch.equal(targets[alone], single[alone])


def test_a_cut_photo_has_the_share_of_each_in_its_target(photos: Photos) -> None:
    batches = Batches(photos, flags())
    pixels = torch.arange(5).float().view(-1, 1, 1, 1).expand(-1, 10, 10, 3)
    mixed, targets = batches.cut(pixels, torch.eye(5))
    for row in range(5):
        shown = torch.bincount(mixed[row, :, :, 0].flatten().long(), minlength=5) / 100
        assert torch.allclose(shown, targets[row])


def test_a_turned_photo_is_one_of_four(photos: Photos) -> None:
    pixels = torch.rand(40, 6, 6, 3)
    turned = Batches(photos, flags()).turned(pixels)
    angles = [
        next(angle for angle in range(4) if torch.equal(after, before.rot90(angle)))
        for before, after in zip(pixels, turned, strict=True)
    ]
    assert set(angles) == {0, 1, 2, 3}


def test_a_recoloured_photo_is_grey_or_has_its_colours_in_another_order(photos: Photos) -> None:
    pixels = torch.rand(40, 6, 6, 3)
    recoloured = Batches(photos, flags("--recolour", "0.5")).recoloured(pixels)
    grey = torch.isclose(recoloured, pixels.mean(3, keepdim=True)).flatten(1).all(1)
    same = torch.isclose(recoloured.sort(3).values, pixels.sort(3).values).flatten(1).all(1)
    assert (grey | same).all()
    assert 0 < grey.sum() < len(pixels)
    assert 0 < (recoloured == pixels).flatten(1).all(1).sum() < same.sum()


def test_a_share_of_the_photos_is_restyled(photos: Photos) -> None:
    pixels = 50 + 100 * torch.rand(40, 6, 6, 3)
    restyled = Batches(photos, flags("--restyle", "0.5")).restyled(pixels)
    same = torch.isclose(restyled, pixels).flatten(1).all(1)
    assert 0 < same.sum() < len(pixels)
    assert torch.allclose(restyled.mean((1, 2)), pixels.mean((1, 2)), atol=5)


def test_mates_are_side_by_side_and_every_photo_comes_once(photos: Photos) -> None:
    batches = Batches(photos, flags("--pairs", "1"))
    order = batches.order().tolist()
    assert sorted(order) == list(range(len(photos.ids)))
    near = set(itertools.pairwise(order))
    together = [row for row, mates in batches.mates.items() if any((row, m) in near for m in mates)]
    assert together
    for row, mates in batches.mates.items():
        assert all(abs(int(photos.ids[mate]) - int(photos.ids[row])) == 1 for mate in mates)


def test_ordinal_answers_are_probabilities_and_right_ones_cost_least() -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(probabilities_of(logits, "corn").sum(1), torch.ones(20))
    classes = torch.arange(5)
    right = torch.where(torch.arange(4) < classes[:, None], 5.0, -5.0)
    assert torch.equal(probabilities_of(right, "corn").argmax(1), classes)
    assert corn_loss(right, classes) < 0.05 < corn_loss(-right, classes)


def test_what_is_not_recorded_of_a_bin_is_nan(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    item = {"quantity": 2, "weight": {"value": 3.0}}
    content = {"BIN_FCSKU_DATA": {"X": item}}
    (tmp_path / "metadata" / "1.json").write_text(json.dumps(content))
    volume, weight, products = known(tmp_path, "1")
    assert np.isnan(volume)
    assert [weight, products] == pytest.approx([np.log(6), 0])


IDEAS = {
    "plain": (),
    "growing": ("--size", "48", "64", "--freeze", "2"),
    "many": ("--mixup", "0.4", "--cutmix", "0.5", "--stitch", "0.5"),
    "more": ("--pairs", "1", "--known", "0.1", "--squared", "0.1"),
    "cut": ("--cutmix", "1"),
    "corn": ("--targets", "corn", "--smooth"),
    "turned": ("--turned", "--recolour", "0.5", "--restyle", "1"),
}


Run = Callable[..., Path]


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Try an idea, small; returns the file of rows."""

    def run_idea(name: str, *more: str) -> Path:
        rows = tmp_path / "rows.jsonl"
        monkeypatch.setattr(accuracy_ideas, "ROWS", rows)
        tiny = ("--size", "64", "--epochs", "2", "--batch-size", "8", "--threads", "1")
        words = [name, "--folder", str(folder), *tiny, *more]
        monkeypatch.setattr(sys, "argv", ["accuracy_ideas", *words])
        accuracy_ideas.main()
        return rows

    return run_idea


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in {"plain", "corn"} else pytest.mark.slow)
        for name in IDEAS
    ],
)
def test_an_idea_leaves_a_row_and_its_answers(name: str, folder: Path, run: Run) -> None:
    (row,) = map(json.loads, run(name, *IDEAS[name]).read_text().splitlines())
    answers = np.load(answers_of(folder, name))
    assert answers.shape == (row["photos"], len(COUNTS))
    assert np.allclose(np.exp(answers).sum(1), 1, atol=1e-5)
    assert (row["try"], row["epoch"]) == (name, 2)
    assert row["flags"].endswith(" ".join(IDEAS[name]))


def test_what_is_measured_is_the_average_and_nothing_of_the_network_in_training(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy_ideas, "follow", lambda average, network, decay: None)
    run("still", "--learning-rate", "1")  # the average stays, the network leaves
    answers = np.load(answers_of(folder, "still"))
    run("start", "--learning-rate", "1e-12")
    assert np.allclose(answers, np.load(answers_of(folder, "start")), atol=1e-4)


@pytest.mark.parametrize(
    "more", [("--targets", "corn", "--mixup", "1"), ("--known", "1", "--stitch", "1")]
)
def test_losses_that_do_not_know_blended_photos_are_refused(more: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        flags(*more)


def test_teachers_that_left_no_weights_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags("--teachers", "nobody")
    assert "--teachers nobody: run that try with --keep first" in capsys.readouterr().err


def test_a_network_learns_from_those_that_were_kept(folder: Path, run: Run) -> None:
    run("one", "--keep", "--no-row", "--seed", "1", "--learning-rate", "1e-2")
    run("alone", "--no-row")
    run("taught", "--no-row", "--teachers", "one")
    alone, taught, one = (
        np.exp(np.load(answers_of(folder, name))) for name in ("alone", "taught", "one")
    )
    assert np.abs(taught - one).mean() < np.abs(alone - one).mean()


def test_a_data_set_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy_ideas", "name", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: no data set in .*; first: python"):
        accuracy_ideas.main()
