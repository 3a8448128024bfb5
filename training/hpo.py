"""Search for the settings that train best, on one machine, with Optuna.

    python -m training.hpo --data DATASET --weights efficientnet_lite0.pth \\
        --arch efficientnet_lite0 --output search [--mode finetune] [--trials 30]

Every flag of training.train can be given and means the same: what is searched for begins there
in the first trial, so that the search never ends below the mode's recipe; the rest stays as it
is in all trials. Trials whose validation loss is above the median at the same share of their
epochs are pruned. The test photos are never looked at.

SIGTERM or Ctrl-C shows what is known so far and leaves with exit code 75; the same command goes
on from there, in the middle of a trial, also after a kill. In OUTPUT are left: best.json, which
training.train takes as --settings; plots of the trials; study.db, Optuna's own record of them.
"""

import argparse
import fcntl
import hashlib
import math
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import Trial, TrialState
from tqdm import tqdm

from common.dataset import Dataset, DatasetError, open_dataset
from common.signals import Signals, StoppedError
from training.evaluate.calibration import fit_temperature, softmax
from training.learn.checkpoint import disk_error_line, load_snapshot
from training.learn.device import choose_device
from training.learn.features import PrecisionError
from training.learn.loop import Saving, measure_if_due
from training.learn.memory import keep_freed_memory
from training.learn.model import WeightsError
from training.learn.precision import settle_precision
from training.learn.task import Task, mean_logits, prepare_finetune, prepare_head
from training.learn.trainer import DivergedError, Trainer
from training.search.results import plot_trials, trial_table, write_best
from training.search.space import SPACES, TENTHS, described_spaces, outside, suggest
from training.settings import (
    INTERRUPTED,
    Settings,
    number_from_zero,
    parse_arguments,
    whole_number,
)

BEST = "best.json"
# A trial is compared with others at tenths of its epochs: at the same epoch, the learning rate of
# a shorter one is further down. Warming up, in the first tenths, losses say little.
PRUNER = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)


class SearchError(ValueError):
    """The search cannot begin or go on as asked; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """A study, and what its trials have in common."""

    study: optuna.Study
    objective: str
    start: Settings  # of the first trial
    args: argparse.Namespace  # as training.train has them
    dataset: Dataset
    device: torch.device
    signals: Signals

    def run(self, number: int, seconds: float) -> None:
        """Trials until `number` have ended, those of earlier processes included.

        None begins after `seconds`. Raises StoppedError on SIGTERM; the trial that it cut short
        is taken up by the next call, in this process or another one.
        """
        begun = time.monotonic()
        ended = self._ended()
        with tqdm(total=max(number, ended), initial=ended, desc="search", unit="trial") as bar:
            while self._ended() < number and time.monotonic() - begun < seconds:
                self._run_trial(bar)
                bar.update()
                write_best(self.study, self.start, self.args.output / BEST)

    def _ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def _run_trial(self, bar: "tqdm[Any]") -> None:
        cut_short = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        trial = Trial(self.study, cut_short[0]._trial_id) if cut_short else self.study.ask()
        # Seeded by trial: a search that was interrupted makes the choices of one that was not.
        seed = random.Random(f"{self.start.seed} {trial.number}").getrandbits(32)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        settings = replace(self.start, **suggest(trial, self.start.mode))
        folder = self.args.output / f"trial-{trial.number}"
        try:
            value = self._train(trial, settings, folder, bar)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except (DivergedError, torch.OutOfMemoryError) as error:
            self.study.tell(trial, state=TrialState.FAIL)
            message = str(error).splitlines()[0]
            tqdm.write(f"trial {trial.number} failed: {message}", file=sys.stderr)
        else:
            self.study.tell(trial, value)
        shutil.rmtree(folder, ignore_errors=True)

    def _train(self, trial: Trial, settings: Settings, folder: Path, bar: "tqdm[Any]") -> float:
        """Train as training.train does, with snapshots in `folder`; returns the objective.

        Raises TrialPruned when the validation loss is worse than that of other trials.
        """
        torch.manual_seed(settings.seed)
        prepare = prepare_head if settings.mode == "head" else prepare_finetune
        checkpoints: Path = self.args.checkpoint_dir or self.args.output / "checkpoints"
        task = prepare(self.dataset, settings, self.args, checkpoints, self.device, self.signals)
        trainer = Trainer(
            task.trained,
            task.source,
            settings,
            self.device,
            should_stop=lambda: self.signals.seen(signal.SIGTERM),
        )
        if snapshot := load_snapshot(folder, asdict(settings)):
            trainer.restore(snapshot)
        saving = Saving(folder, self.args.snapshot_seconds, self.signals)

        def measure() -> None:
            line = measure_if_due(trainer, task.validation.examples, saving)
            if line and trainer.step == 0:
                self._report(trial, trainer.epoch, settings.epochs, line["validation_loss"])

        try:
            measure()
            while not trainer.finished:
                bar.set_postfix_str(
                    f"trial {trial.number}, epoch {trainer.epoch + 1} of {settings.epochs}"
                )
                for _ in trainer.train_epoch():
                    measure()
                    saving.after_step(trainer)
        finally:
            saving.wait()
        best = min(trainer.history, key=lambda line: float(line["validation_loss"]))
        trial.set_user_attr("validation_accuracy", best["validation_accuracy"])
        if self.objective == "rmse":
            return rmse_of_expected(trainer, task, self.dataset.counts)
        return float(best["validation_loss"])

    def _report(self, trial: Trial, epoch: int, epochs: int, loss: float) -> None:
        """Tell Optuna the loss after `epoch` epochs. Raises TrialPruned."""
        tenth = TENTHS * epoch // epochs
        if tenth == TENTHS * (epoch - 1) // epochs:
            return
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if tenth not in known:  # a trial that was killed comes by here again
            trial.report(loss, tenth)
        if epoch < epochs and trial.should_prune():
            raise optuna.TrialPruned


def rmse_of_expected(trainer: Trainer, task: Task, counts: list[int]) -> float:
    """The root mean square error of the expected count on validation, in items.

    Of the best weights, with calibrated probabilities: validation.rmse_of_expected in the
    metrics.json of training.train.
    """
    trainer.load_best()
    held_out = task.validation
    logits = mean_logits(trainer, held_out)
    probabilities = softmax(logits, fit_temperature(logits, held_out.classes.numpy()))
    expected = probabilities.astype(np.float64) @ np.array(counts, np.float64)
    return float(np.sqrt(np.mean((expected - task.validation.photos.counts) ** 2)))


def open_study(
    output: Path, objective: str, start: Settings, inputs: dict[str, str]
) -> optuna.Study:
    """The study in `output`, or a new one whose first trial has the settings `start`.

    Raises SearchError when its trials cannot be compared with those of this command, which reads
    files of the hashes `inputs`.
    """
    # Not Optuna's journal: a line that a kill cuts short makes all of it unreadable.
    study = optuna.create_study(
        storage=f"sqlite:///{output / 'study.db'}",
        study_name="search",
        load_if_exists=True,
        pruner=PRUNER,
    )
    space = SPACES[start.mode]
    kept = {name: value for name, value in asdict(start).items() if name not in space}
    expected = {"objective": objective, **inputs, **kept}
    found = study.user_attrs.get("fixed", expected)
    different = [name for name in expected if found.get(name) != expected[name]]
    if different:
        raise SearchError(
            f"{output} holds a search with another {', '.join(different)}: choose another --output"
        )
    study.set_user_attr("fixed", expected)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial({name: getattr(start, name) for name in space})
    return study


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Raises SearchError while another process is in here with the same folder."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SearchError(f"another search is at work in {folder}") from error
        yield


def search(args: argparse.Namespace, number: int, seconds: float, objective: str) -> None:
    """The whole search: trials, table, plots. Raises StoppedError on SIGTERM and Ctrl-C."""
    signals = Signals(signal.SIGTERM, signal.SIGUSR1)
    signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    dataset = open_dataset(args.data)
    args.size = args.size or dataset.size
    start = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    if start.train_on == "all":
        raise SearchError("--train-on all would choose settings by the test photos")
    device = choose_device()
    checkpoints: Path = args.checkpoint_dir or args.output / "checkpoints"
    precision = settle_precision(start.precision, start.mode, device, checkpoints)
    start = replace(start, precision=precision)
    if not_searched := outside(start):
        raise SearchError(not_searched[0])
    if not args.weights.is_file():
        raise WeightsError(f"no weights at {args.weights}")
    inputs = {
        "data": dataset.manifest_sha256,
        "weights": hashlib.sha256(args.weights.read_bytes()).hexdigest(),
    }
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    with only_one(args.output):
        study = open_study(args.output, objective, start, inputs)
        trials = Trials(
            study=study,
            objective=objective,
            start=start,
            args=args,
            dataset=dataset,
            device=device,
            signals=signals,
        )
        try:
            trials.run(number, seconds)
        except StoppedError:
            show(trials)
            raise
        show(trials)


def show(trials: Trials) -> None:
    """Print the trials and how to use the best one; draw the plots."""
    study, objective, args = trials.study, trials.objective, trials.args
    print(trial_table(study, objective, args.mode))
    for file in plot_trials(study, objective, args.output / "plots"):
        print(file, file=sys.stderr)
    if write_best(study, trials.start, args.output / BEST):
        command = ["--data", args.data, "--weights", args.weights, "--settings", args.output / BEST]
        words = shlex.join(["python", "-m", "training.train", *map(str, command)])
        print(f"the best trial is {study.best_trial.number}: {words} --output …")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.hpo",
        usage="%(prog)s --data DATA --weights WEIGHTS --output OUTPUT [--trials TRIALS] "
        "[--timeout SECONDS] [--objective OBJECTIVE] [any flag of training.train]",
        description=f"{__doc__}\n{described_spaces()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag(
        "--trials",
        type=whole_number,
        default=30,
        help="stop when so many have ended, earlier ones in OUTPUT included (default: %(default)s)",
    )
    flag(
        "--timeout",
        type=number_from_zero(included=False),
        metavar="SECONDS",
        default=math.inf,
        help="begin no trial after this time (default: no limit)",
    )
    flag(
        "--objective",
        choices=("validation_loss", "rmse"),
        default="validation_loss",
        help="what to minimise on the validation photos: the least cross-entropy that was "
        "measured, or the root mean square error of the expected count (default: %(default)s)",
    )
    asked, rest = parser.parse_known_args()
    args = parse_arguments([*rest, "--skip-test"], prog=parser.prog)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        search(args, asked.trials, asked.timeout, asked.objective)
    except StoppedError:
        print("stopped: the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (DatasetError, WeightsError, PrecisionError, SearchError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(disk_error_line(error))


if __name__ == "__main__":
    main()
