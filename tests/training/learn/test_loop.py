"""What a run tells while it trains, and when it saves."""

import json
import signal
import struct
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from torch import Tensor

from common.signals import Signals, StoppedError
from tests.support.packed import timeless_history
from tests.training.learn.test_trainer import CHOSEN, STEPS, VALIDATION, new_trainer
from training.learn.checkpoint import load_checkpoint, read_checked
from training.learn.events import write_events
from training.learn.loop import Checkpointing, train
from training.settings import Settings


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def signals() -> Iterator[Signals]:
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield Signals(*numbers)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run(
    output: Path,
    signals: Signals,
    *,
    chosen: Settings = CHOSEN,
    checkpoint_seconds: float = 1000.0,
    dollars_an_hour: float = 0.0,
    profile: bool = False,
) -> None:
    output.mkdir(exist_ok=True)
    trainer, _ = new_trainer(chosen)
    checkpointing = Checkpointing(output / "checkpoints", checkpoint_seconds, signals)
    train(
        trainer,
        VALIDATION,
        output,
        checkpointing,
        dollars_an_hour=dollars_an_hour,
        profile=profile,
    )


END = "checkpoint-00004-0000000.pt"  # of CHOSEN


def saved(output: Path) -> list[str]:
    return sorted(file.name for file in (output / "checkpoints").glob("checkpoint-*"))


def test_every_epoch_leaves_a_line_with_its_losses_and_times(
    tmp_path: Path, signals: Signals
) -> None:
    run(tmp_path, signals, dollars_an_hour=3.6)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines] == [STEPS * epoch for epoch in (1, 2, 3, 4)]
    dollars = [line["dollars"] for line in lines]
    assert dollars == sorted(dollars)
    for line in lines:
        assert line["loading_seconds"] + line["computing_seconds"] <= line["seconds"] + 1e-3
        assert line["photos_per_second"] > 0
        assert 0 < line["learning_rate"] <= CHOSEN.learning_rate * 1.001 or line["epoch"] == 4


def test_a_long_epoch_is_measured_within_as_well(tmp_path: Path, signals: Signals) -> None:
    run(tmp_path, signals, chosen=replace(CHOSEN, epochs=2, eval_every=4), dollars_an_hour=1.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, STEPS, STEPS + 4, 2 * STEPS]
    assert [line["epoch"] for line in lines] == [0.6667, 1, 1.6667, 2]
    assert all(line["computing_seconds"] <= line["seconds"] for line in lines)


def test_measuring_more_often_leads_to_the_same_weights(tmp_path: Path, signals: Signals) -> None:
    for name, steps in (("often", 1), ("seldom", 1000)):
        run(tmp_path / name, signals, chosen=replace(CHOSEN, eval_every=steps))
    often, seldom = (
        read_checked(tmp_path / name / "checkpoints" / END)["average"]
        for name in ("often", "seldom")
    )
    assert all(torch.equal(often[name], seldom[name]) for name in seldom)


def test_the_progress_line_shows_loss_accuracy_rate_and_dollars(
    tmp_path: Path, signals: Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, signals, dollars_an_hour=1e6)
    shown = capsys.readouterr().err
    for word in ("head:", "loss=", "accuracy=", "photos/s=", "$="):
        assert word in shown


def test_a_run_that_overfits_is_told_so_once(
    tmp_path: Path, signals: Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, _ = new_trainer(replace(CHOSEN, epochs=12))
    evaluate = trainer.evaluate
    trainer.evaluate = lambda examples: _worse(evaluate(examples))  # type: ignore[method-assign]
    train(trainer, VALIDATION, tmp_path, Checkpointing(tmp_path / "checkpoints", 1000, signals))
    assert capsys.readouterr().err.count("warning: overfitting since") == 1


def _worse(line: dict[str, float]) -> dict[str, float]:
    line["train_loss"], line["validation_loss"] = 1 / line["epoch"], 1 + line["epoch"] / 10
    return line


def test_a_checkpoint_is_taken_when_it_is_time_and_at_the_end(
    tmp_path: Path, signals: Signals
) -> None:
    run(tmp_path / "seldom", signals)
    assert saved(tmp_path / "seldom") == [END]
    run(tmp_path / "often", signals, checkpoint_seconds=0)
    assert len(saved(tmp_path / "often")) == 2


def test_asked_for_a_checkpoint_a_run_takes_one_and_goes_on(
    tmp_path: Path, signals: Signals
) -> None:
    signal.raise_signal(signal.SIGUSR1)
    run(tmp_path, signals)
    assert saved(tmp_path) == ["checkpoint-00000-0000001.pt", END]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_asked_to_stop_a_run_leaves_after_a_step_with_a_checkpoint_on_disk(
    tmp_path: Path, signals: Signals
) -> None:
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(StoppedError):
        run(tmp_path, signals)
    assert saved(tmp_path) == ["checkpoint-00000-0000001.pt"]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


class Interrupting:
    """Batches to measure on; in the measurement of that number SIGTERM comes after the first."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        for batch in VALIDATION.batches:
            yield batch
            if self.left == 0:
                signal.raise_signal(signal.SIGTERM)
                yield batch


@pytest.mark.parametrize("epoch", [1, CHOSEN.epochs])
def test_asked_to_stop_while_it_measures_a_run_leaves_and_measures_again(
    epoch: int, tmp_path: Path, signals: Signals
) -> None:
    run(tmp_path / "peaceful", signals)
    (tmp_path / "left").mkdir()
    checkpoints = tmp_path / "left" / "checkpoints"
    trainer, _ = new_trainer(should_stop=lambda: signals.seen(signal.SIGTERM))
    interrupting = VALIDATION._replace(batches=Interrupting(epoch))
    with pytest.raises(StoppedError):
        train(trainer, interrupting, tmp_path / "left", Checkpointing(checkpoints, 1000, signals))
    assert saved(tmp_path / "left") == [f"checkpoint-{epoch - 1:05d}-{STEPS:07d}.pt"]
    assert len(trainer.history) == epoch - 1

    signals.forget(signal.SIGTERM)
    trainer, _ = new_trainer()
    checkpoint = load_checkpoint(checkpoints, asdict(CHOSEN))
    assert checkpoint
    trainer.restore(checkpoint)
    train(trainer, VALIDATION, tmp_path / "left", Checkpointing(checkpoints, 1000, signals))
    assert timeless_history(tmp_path / "left") == timeless_history(tmp_path / "peaceful")


def test_a_disk_that_is_full_ends_the_run_instead_of_losing_checkpoints(
    tmp_path: Path, signals: Signals
) -> None:
    (tmp_path / "checkpoints").touch()  # no folder can be made there
    with pytest.raises(OSError, match="checkpoints"):
        run(tmp_path, signals, checkpoint_seconds=0)


def test_a_profile_names_the_operators_and_leaves_a_trace(tmp_path: Path, signals: Signals) -> None:
    run(tmp_path, signals, profile=True)
    assert "aten::addmm" in (tmp_path / "profile.txt").read_text()
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def read_events(folder: Path) -> dict[tuple[str, int], float]:
    """(name, epoch) → value, from the records of the one event file."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, found = file.read_bytes(), {}
    while content:
        (length,) = struct.unpack_from("<Q", content)
        event = Event.FromString(content[12 : 12 + length])
        content = content[12 + length + 4 :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_reads_the_losses_of_every_epoch(tmp_path: Path, signals: Signals) -> None:
    run(tmp_path, signals)
    events = read_events(tmp_path / "events")
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name in ("train_loss", "validation_loss", "validation_accuracy"):
            assert events[name, line["step"]] == pytest.approx(line[name])


def test_events_of_an_interrupted_run_are_written_over(tmp_path: Path) -> None:
    history = [{"step": step, "train_loss": 1 / step} for step in (1, 2, 3)]
    write_events(tmp_path, history[:2])
    write_events(tmp_path, history)
    assert sorted(read_events(tmp_path)) == [("train_loss", step) for step in (1, 2, 3)]
