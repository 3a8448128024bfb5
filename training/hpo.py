"""Search for the best settings with Optuna, on one machine.

For example:

    python -m training.hpo --data DATASET --output search --trials 30 \\
        --weights efficientnet_lite0.pth --arch efficientnet_lite0

All flags of training.train apply but `--train-on all`. The first trial uses the given settings, so
that the result is at least as good as the recipe of the mode. Settings that are not searched are
the same in all trials. A trial is pruned if its validation loss is above the median at the same
share of its epochs. The test photos are not used.

SIGTERM or Ctrl-C shows the results so far and exits with code 75. The same command resumes the
search in the middle of a trial, also after a kill. OUTPUT will contain best.json for `--settings`
of training.train, plots of the trials, and study.db, the Optuna study.
"""

import fcntl
import hashlib
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
import torch

from common.dataset import Dataset, DatasetError, open_dataset
from common.signals import Signals, StoppedError
from training.flags import parse
from training.learn.checkpoint import disk_error_line
from training.learn.device import choose_device
from training.learn.memory import keep_freed_memory
from training.learn.model import WeightsError
from training.learn.task import resolve_settings
from training.search.results import plot_trials, trial_table, write_best
from training.search.space import describe_spaces, outside_space
from training.search.trials import BEST, SearchError, SearchOptions, Trials, open_study
from training.settings import INTERRUPTED, RESUMABLE


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Raise SearchError if another process searches in `folder`."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SearchError(
                f"another search is running in {folder}: wait for it or choose another --output"
            ) from error
        yield


def search(options: SearchOptions) -> None:
    """Run the search and show its results. Raises StoppedError on SIGTERM and Ctrl-C."""
    signals = Signals(signal.SIGTERM, signal.SIGUSR1)
    signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    places = options.places
    dataset = open_dataset(places.data)
    device = choose_device()
    options = searchable(options, dataset, device)
    if not places.weights.is_file():
        raise WeightsError(f"no weights at {places.weights}")
    inputs = {
        "data": dataset.manifest_sha256,
        "weights": hashlib.sha256(places.weights.read_bytes()).hexdigest(),
    }
    keep_freed_memory()
    torch.set_num_threads(options.machine.threads)
    places.output.mkdir(parents=True, exist_ok=True)
    with exclusive(places.output):
        study = open_study(places.output, options.objective, options.settings, inputs)
        trials = Trials(
            study=study,
            options=options,
            dataset=dataset,
            device=device,
            signals=signals,
        )
        try:
            trials.run()
        except StoppedError:
            show(trials)
            raise
        show(trials)


def searchable(options: SearchOptions, dataset: Dataset, device: torch.device) -> SearchOptions:
    """Resolve the settings. Raises SearchError if one cannot begin a search."""
    if options.settings.train_on == "all":
        raise SearchError("--train-on all would choose settings by the test photos: leave it out")
    options = resolve_settings(options, dataset, device)
    if errors := outside_space(options.settings):
        raise SearchError(errors[0])
    return replace(options, extras=replace(options.extras, skip_test=True))


def show(trials: Trials) -> None:
    """Print the trials and the command that uses the best one; draw the plots."""
    study, options = trials.study, trials.options
    print(trial_table(study, options.objective, options.settings.mode))
    places = options.places
    for file in plot_trials(study, options.objective, places.output / "plots"):
        print(file, file=sys.stderr)
    if write_best(study, options.settings, places.output / BEST):
        command = ["--data", places.data, "--weights", places.weights]
        command += ["--settings", places.output / BEST]
        words = shlex.join(["python", "-m", "training.train", *map(str, command)])
        print(f"the best trial is {study.best_trial.number}: {words} --output …")


def main() -> None:
    options = parse(
        SearchOptions,
        sys.argv[1:],
        name="python -m training.hpo",
        description=f"{__doc__}\n{describe_spaces()}",
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        search(options)
    except StoppedError:
        print(RESUMABLE, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (DatasetError, WeightsError, SearchError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(disk_error_line(error))


if __name__ == "__main__":
    main()
