import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from torch import Tensor, nn

from common.dataset import Dataset, Side
from tests.support.packed import draw_photos, write_packed
from training import hpo
from training import train as train_module
from training.learn import task
from training.learn.batch import Examples
from training.learn.checkpoint import read_checked
from training.learn.trainer import DivergedError, Trainer
from training.search import trials as search_trials
from training.search.results import plot_trials
from training.search.space import SPACES, contains
from training.settings import INTERRUPTED, RECIPES, Settings

TRIALS = 6
RECIPE_EPOCHS = int(RECIPES["head"]["epochs"])
USUAL = ("--validation-fraction", "0.2", "--threads", "1")


class Grid(nn.Module):
    """Pixels, uint8 [N, size, size, 3] → features [N, 192]: every fourth pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(192))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.scale * pixels[:, 2::4, 2::4].float().flatten(1) / 255

    def width(self) -> int:
        return 192


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = draw_photos(60)
    return write_packed(tmp_path_factory.mktemp("squares"), photos[:45], photos[45:])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    file.write_bytes(b"not read, the backbone is a fake one")
    return file


Run = Callable[..., None]


@pytest.fixture(scope="module")
def fakes() -> Iterator[pytest.MonkeyPatch]:
    """A backbone that takes no time, whatever the weights; a pruner that does not wait; no plots,
    which take longer than the search."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "load_backbone", lambda *_, **__: Grid())
        patch.setattr(task, "load_matching", lambda *_: False)
        patch.setattr(hpo, "plot_trials", lambda *_: [])
        patch.setattr(search_trials, "PRUNER", optuna.pruners.MedianPruner(1, n_warmup_steps=0))
        yield patch
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of features that all searches share."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def search(fakes: pytest.MonkeyPatch, data: Path, weights: Path, features: Path) -> Iterator[Run]:
    """Run the command line in this process, and leave no trace in it."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}

    def run(output: Path, *more: str) -> None:
        places = ["--data", str(data), "--weights", str(weights), "--output", str(output)]
        places += ["--checkpoint-dir", str(features)]
        fakes.setattr(sys, "argv", ["hpo", *places, "--trials", str(TRIALS), *USUAL, *more])
        hpo.main()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def load_study(output: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{output / 'study.db'}")


def trials_in(output: Path) -> list[FrozenTrial]:
    return load_study(output).trials


def outcome(output: Path) -> list[tuple[Any, ...]]:
    """All that is known of the trials, times aside."""
    return [
        (trial.state, trial.params, trial.values, trial.intermediate_values, trial.user_attrs)
        for trial in trials_in(output)
    ]


def best(output: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((output / "best.json").read_text())
    return settings


@pytest.fixture(scope="module")
def peaceful(search: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a search has written that nothing disturbed."""
    output = tmp_path_factory.mktemp("peaceful") / "search"
    search(output)
    return output


def test_the_first_trial_is_the_recipe_and_the_best_is_never_worse(peaceful: Path) -> None:
    first, *others = trials_in(peaceful)
    assert first.params == {name: RECIPES["head"][name] for name in SPACES["head"]}
    complete = [trial for trial in [first, *others] if trial.state is TrialState.COMPLETE]
    winner = min(complete, key=lambda trial: trial.value or 0.0)
    assert {name: best(peaceful)[name] for name in winner.params} == winner.params
    assert len({tuple(trial.params.values()) for trial in [first, *others]}) == TRIALS


def test_a_search_leaves_nothing_of_single_trials(peaceful: Path, features: Path) -> None:
    assert {file.name for file in peaceful.iterdir()} == {".lock", "best.json", "study.db"}
    assert list(features.rglob("train-*.npy"))
    assert not list(features.rglob("test-*.npy"))


def test_plots_show_the_trials(peaceful: Path, tmp_path: Path) -> None:
    files = plot_trials(load_study(peaceful), "validation_loss", tmp_path / "plots")
    assert {file.name for file in files} >= {"history.png", "settings.png"}
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 300
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def test_training_with_the_best_settings_repeats_the_trial(
    search: Run,
    tmp_path: Path,
    fakes: pytest.MonkeyPatch,
    data: Path,
    weights: Path,
    features: Path,
) -> None:
    flags = ["--trials", "1", "--epochs", "7", "--learning-rate", "0.004", "--hidden", "128"]
    search(tmp_path / "loss", *flags)
    search(tmp_path / "rmse", *flags, "--objective", "rmse")
    assert best(tmp_path / "loss") == best(tmp_path / "rmse")
    assert best(tmp_path / "loss").keys() == Settings.__dataclass_fields__.keys()

    places = ["--data", str(data), "--weights", str(weights), "--output", str(tmp_path / "run")]
    places += ["--checkpoint-dir", str(features)]
    settings = ["--settings", str(tmp_path / "loss" / "best.json")]
    fakes.setattr(sys, "argv", ["train", *places, *settings, "--threads", "1", "--skip-test"])
    train_module.main()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    losses = [json.loads(line)["validation_loss"] for line in text.splitlines()]
    (trial,) = load_study(tmp_path / "loss").trials
    assert trial.value == min(losses)
    assert list(trial.intermediate_values.values()) == losses
    assert max(trial.intermediate_values) == 10
    (trial,) = load_study(tmp_path / "rmse").trials
    assert trial.value == pytest.approx(metrics["validation"]["rmse_of_mean"], rel=1e-6)


def test_the_table_has_the_best_first_and_tells_what_was_pruned(
    search: Run, peaceful: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outcome(peaceful)
    search(peaceful)  # nothing is left to do
    assert outcome(peaceful) == before
    header, *lines, last = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["trial", "validation_loss", "accuracy", *list(SPACES["head"])[:2]]
    trials = trials_in(peaceful)
    values = sorted(t.value or 0.0 for t in trials if t.state is TrialState.COMPLETE)
    assert [line.split()[1] for line in lines if line.endswith("complete")] == [
        f"{value:.4f}" for value in values
    ]
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        (line,) = (line for line in lines if line.split()[0] == str(trial.number))
        assert line.endswith(f"pruned at {10 * max(trial.intermediate_values)} %")
        assert max(trial.intermediate_values) < 10
    assert re.match(rf"the best trial is {lines[0].split()[0]}: python -m training.train .*", last)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


AtEpoch = Callable[[int, Callable[[], None]], None]


@pytest.fixture
def at_epoch(monkeypatch: pytest.MonkeyPatch) -> AtEpoch:
    """Do something once, at the end of an epoch of this number, those of all trials counted."""

    def plan(number: int, happens: Callable[[], None]) -> None:
        left = number
        evaluate = Trainer.evaluate

        def counted(trainer: Trainer, validation: Examples) -> dict[str, Any]:
            nonlocal left
            left -= 1
            if left == 0:
                happens()
            return evaluate(trainer, validation)

        monkeypatch.setattr(Trainer, "evaluate", counted)

    return plan


def killed() -> None:
    raise Killed


def test_a_search_that_is_killed_goes_on_in_the_trial_and_ends_in_the_same_ones(
    search: Run, peaceful: Path, tmp_path: Path, at_epoch: AtEpoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_epoch(RECIPE_EPOCHS + 3, killed)
    with pytest.raises(Killed):
        search(tmp_path, "--checkpoint-seconds", "0")
    first, second = trials_in(tmp_path)
    assert [first.state, second.state] == [TrialState.COMPLETE, TrialState.RUNNING]

    newest = max(tmp_path.glob("trial-1/checkpoint-*.pt"))
    begun: list[int] = []
    train_epoch = Trainer.train_epoch

    def noted(trainer: Trainer) -> Iterator[float]:
        begun.append(trainer.epoch)
        return train_epoch(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", noted)
    search(tmp_path)
    assert newest.name.startswith(f"checkpoint-{begun[0]:05d}-")
    assert outcome(tmp_path) == outcome(peaceful)
    assert best(tmp_path) == best(peaceful)
    assert not list(tmp_path.glob("trial-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shows_what_is_known_leaves_and_the_search_goes_on(
    search: Run,
    peaceful: Path,
    tmp_path: Path,
    at_epoch: AtEpoch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    at_epoch(RECIPE_EPOCHS + 3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end:
        search(tmp_path)
    assert end.value.code == INTERRUPTED
    printed = capsys.readouterr()
    assert "run the same command again to resume" in printed.err
    assert re.search(r"^ *0 .* complete$", printed.out, re.MULTILINE)
    assert re.search(r"^ *1 .* unfinished$", printed.out, re.MULTILINE)
    assert (tmp_path / "best.json").exists()
    # The third epoch was not measured to the end: that is done again.
    assert read_checked(max(tmp_path.glob("trial-1/checkpoint-*.pt")))["epoch"] == 2
    search(tmp_path)
    assert outcome(tmp_path) == outcome(peaceful)


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_the_test_photos_are_never_read(
    search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    read: set[Side] = set()
    open_shards = Dataset._open_shards

    def noted(dataset: Dataset, side: Side) -> Any:
        read.add(side)
        return open_shards(dataset, side)

    monkeypatch.setattr(Dataset, "_open_shards", noted)
    search(tmp_path, "--trials", "1", "--mode", mode, "--epochs", "5")
    assert read == {"train"}
    assert best(tmp_path)["mode"] == mode


def test_a_full_disk_is_one_line_and_the_search_goes_on(
    search: Run, peaceful: Path, tmp_path: Path, at_epoch: AtEpoch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.pt")

    at_epoch(RECIPE_EPOCHS + 3, full)
    message = error_line(search, tmp_path)
    assert "No space left on device at checkpoint.pt" in message
    assert "run the same command again to resume" in message
    search(tmp_path)
    assert outcome(tmp_path) == outcome(peaceful)


def test_a_trial_that_diverges_is_failed_and_the_search_goes_on(
    search: Run, tmp_path: Path, at_epoch: AtEpoch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverged() -> None:
        raise DivergedError("training diverged")

    at_epoch(3, diverged)
    search(tmp_path, "--trials", "2")
    states = [trial.state for trial in trials_in(tmp_path)]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]
    printed = capsys.readouterr()
    assert "trial 0 failed: training diverged" in printed.err
    assert re.search(r"^ *0 .* failed$", printed.out, re.MULTILINE)


def test_no_trial_begins_after_the_timeout(search: Run, tmp_path: Path) -> None:
    search(tmp_path, "--timeout", "1e-9")
    assert [trial.state for trial in trials_in(tmp_path)] == [TrialState.WAITING]
    assert not (tmp_path / "best.json").exists()


@pytest.mark.parametrize("mode", RECIPES)
def test_every_recipe_is_within_what_is_searched(mode: str) -> None:
    assert all(contains(values, RECIPES[mode][name]) for name, values in SPACES[mode].items())


def error_line(run: Run, output: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as end:
        run(output, *more)
    message = str(end.value.code)  # sys.exit prints a text and leaves with 1
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_mistakes_are_one_line(search: Run, peaceful: Path, tmp_path: Path, weights: Path) -> None:
    assert "no data set" in error_line(search, tmp_path, "--data", str(tmp_path))
    missing = str(tmp_path / "missing.pth")
    assert f"no weights at {missing}" in error_line(search, tmp_path, "--weights", missing)
    assert "--train-on all" in error_line(search, tmp_path, "--train-on", "all")
    unsearched = error_line(search, tmp_path, "--batch-size", "100")
    assert "--batch-size 100 is outside the search space: one of 64, 128, 256, 512" in unsearched
    other = error_line(search, peaceful, "--objective", "rmse", "--seed", "1")
    assert f"{peaceful} has a search with another objective, seed: " in other
    with hpo.exclusive(tmp_path):
        assert "another search is running" in error_line(search, tmp_path)
