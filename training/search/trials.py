"""The trials of a search: an Optuna study on disk, and the training run of each trial."""

import math
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import optuna
import torch
from cyclopts import Group, Parameter
from optuna.trial import Trial, TrialState
from tqdm import tqdm

from common.dataset import Dataset
from common.flags import Positive, PositiveInt
from common.signals import Signals
from training.evaluate.calibration import fit_temperature, softmax
from training.learn.checkpoint import load_checkpoint
from training.learn.loop import Checkpointing, evaluate_if_due
from training.learn.task import Task, mean_logits, prepare_finetune, prepare_head
from training.learn.trainer import DivergedError, Trainer
from training.search.results import write_best
from training.search.space import SPACES, TENTHS, suggest
from training.settings import Options, Settings

BEST = "best.json"
SEARCH = Parameter(group=Group("Search", sort_key=0))
# Trials are compared at equal shares of their epochs, as the learning-rate schedule depends on the
# number of epochs. The first tenths are excluded: losses during warm-up are not representative.
PRUNER = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)


class SearchError(ValueError):
    """The search cannot start or resume with these options; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Options):
    """All flags of training.hpo: those of training.train and those of the search."""

    trials: Annotated[PositiveInt, SEARCH] = 30
    """Stop after this number of trials, including earlier ones in OUTPUT."""
    timeout: Annotated[Positive | None, SEARCH] = None
    """Start no trial after this number of seconds [default: no limit]."""
    objective: Annotated[Literal["validation_loss", "rmse"], SEARCH] = "validation_loss"
    """What to minimise on the validation photos: the lowest cross-entropy, or the root mean square
    error of the mean."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Runs the trials of a study."""

    study: optuna.Study
    options: SearchOptions  # with the settings of the first trial
    dataset: Dataset
    device: torch.device
    signals: Signals

    def run(self) -> None:
        """Run trials until --trials have finished, including those of earlier processes.

        Starts no trial after --timeout. Raises StoppedError on SIGTERM; the next call, in this or
        another process, resumes the interrupted trial.
        """
        started = time.monotonic()
        number, seconds = self.options.trials, self.options.timeout or math.inf
        finished = self._finished()
        with tqdm(
            total=max(number, finished), initial=finished, desc="search", unit="trial"
        ) as bar:
            while self._finished() < number and time.monotonic() - started < seconds:
                self._run_trial(bar)
                bar.update()
                write_best(self.study, self.options.settings, self.options.places.output / BEST)

    def _finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def _run_trial(self, bar: "tqdm[Any]") -> None:
        interrupted = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        trial = Trial(self.study, interrupted[0]._trial_id) if interrupted else self.study.ask()
        # A seed per trial gives the same suggestions whether or not the search was interrupted.
        seed = random.Random(f"{self.options.settings.seed} {trial.number}").getrandbits(32)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        settings = replace(self.options.settings, **suggest(trial, self.options.settings.mode))
        folder = self.options.places.output / f"trial-{trial.number}"
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
        """Train like training.train, with checkpoints in `folder`; returns the objective.

        Raises TrialPruned if the validation loss is worse than that of other trials.
        """
        torch.manual_seed(settings.seed)
        prepare = prepare_head if settings.mode == "head" else prepare_finetune
        options = replace(self.options, settings=settings)
        task = prepare(self.dataset, options, self.device, self.signals)
        trainer = Trainer(
            task.trained,
            task.source,
            settings,
            self.device,
            should_stop=lambda: self.signals.seen(signal.SIGTERM),
        )
        if checkpoint := load_checkpoint(folder, asdict(settings)):
            trainer.restore(checkpoint)
        checkpointing = Checkpointing(folder, self.options.machine.checkpoint_seconds, self.signals)

        def evaluate() -> None:
            line = evaluate_if_due(trainer, task.validation.examples, checkpointing)
            if line and trainer.step == 0:
                self._report(trial, trainer.epoch, settings.epochs, line["validation_loss"])

        try:
            evaluate()
            while not trainer.finished:
                bar.set_postfix_str(
                    f"trial {trial.number}, epoch {trainer.epoch + 1} of {settings.epochs}"
                )
                for _ in trainer.train_epoch():
                    evaluate()
                    checkpointing.after_step(trainer)
        finally:
            checkpointing.wait()
        best = min(trainer.history, key=lambda line: float(line["validation_loss"]))
        trial.set_user_attr("validation_accuracy", best["validation_accuracy"])
        if self.options.objective == "rmse":
            return rmse_of_mean(trainer, task, self.dataset.counts)
        return float(best["validation_loss"])

    def _report(self, trial: Trial, epoch: int, epochs: int, loss: float) -> None:
        """Report the loss after `epoch` epochs to Optuna. Raises TrialPruned."""
        tenth = TENTHS * epoch // epochs
        if tenth == TENTHS * (epoch - 1) // epochs:
            return
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if tenth not in reported:  # a resumed trial may get here again
            trial.report(loss, tenth)
        if epoch < epochs and trial.should_prune():
            raise optuna.TrialPruned


def rmse_of_mean(trainer: Trainer, task: Task, counts: list[int]) -> float:
    """Return the root mean square error of the mean of photos alone on validation, in items.

    Uses the best weights and calibrated probabilities, like validation.rmse_of_mean in the
    metrics.json of training.train.
    """
    trainer.load_best()
    logits = mean_logits(trainer, task.validation)[:, 0]
    probabilities = softmax(logits, fit_temperature(logits, task.validation.classes.numpy()))
    means = probabilities.astype(np.float64) @ np.array(counts, np.float64)
    return float(np.sqrt(np.mean((means - task.validation.photos.counts) ** 2)))


def open_study(
    output: Path, objective: str, start: Settings, inputs: dict[str, str]
) -> optuna.Study:
    """Open the study in `output`, or create one whose first trial has the settings `start`.

    `inputs` has the hashes of the input files. Raises SearchError if the trials of the study are
    not comparable, because an input, the objective or a setting that is not searched differs.
    """
    # Optuna's journal would be unreadable after a kill in the middle of a line.
    study = optuna.create_study(
        storage=f"sqlite:///{output / 'study.db'}",
        study_name="search",
        load_if_exists=True,
        pruner=PRUNER,
    )
    space = SPACES[start.mode]
    fixed = {name: value for name, value in asdict(start).items() if name not in space}
    expected = {"objective": objective, **inputs, **fixed}
    found = study.user_attrs.get("fixed", expected)
    different = [name for name in expected if found.get(name) != expected[name]]
    if different:
        raise SearchError(
            f"{output} has a search with another {', '.join(different)}: choose another --output"
        )
    study.set_user_attr("fixed", expected)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial({name: getattr(start, name) for name in space})
    return study
