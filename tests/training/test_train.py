import html
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

from common.dataset import open_dataset
from common.files import ROOT
from serving.container.artifact import load_model
from serving.container.inference import count_photo
from tests.support.packed import COUNTS, draw_photos, timeless_history, write_packed
from training import train as train_module
from training.export.model_folder import export_model
from training.learn import task
from training.learn.task import split_validation
from training.settings import INTERRUPTED

EPOCHS = 400  # enough that a signal after the first one comes before the last one
LIMIT = 900.0  # seconds, which only a test that fails comes to


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = draw_photos(60)
    return write_packed(tmp_path_factory.mktemp("squares"), photos[:45], photos[45:])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "efficientnet_lite0.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict(), file)
    return file


def command(data: Path, weights: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "training.train"),
        *("--data", str(data), "--weights", str(weights), "--output", str(output)),
        *("--arch", "efficientnet_lite0", "--epochs", str(EPOCHS), "--batch-size", "64"),
        *("--hidden", "8", "--threads", "1", "--validation-fraction", "0.2", "--int8", "no", *more),
    ]


Start = Callable[[list[str]], subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts a command in the repository; what still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def begin(arguments: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end, which must be a good one; returns what was printed."""
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, printed
    return printed


def interrupt_once(
    happened: Callable[[], bool],
    process: subprocess.Popen[str],
    number: signal.Signals = signal.SIGTERM,
) -> str:
    """Send a signal as soon as `happened()`; returns what was printed."""
    deadline = time.monotonic() + LIMIT
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == INTERRUPTED, printed
    assert "Traceback" not in printed
    assert "run the same command again to resume" in printed
    return printed


def network_weights(output: Path) -> list[np.ndarray]:
    graph = onnx.load(output / "model" / "model.onnx").graph
    return [numpy_helper.to_array(tensor) for tensor in graph.initializer]


@pytest.fixture(scope="module")
def outputs(
    data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory, start: Start
) -> tuple[Path, Path]:
    """Where two runs of one command have written: one in peace, one interrupted."""
    peaceful = tmp_path_factory.mktemp("peaceful") / "run"
    interrupted = tmp_path_factory.mktemp("interrupted") / "run"
    in_peace = start(command(data, weights, peaceful))

    same_command = command(data, weights, interrupted)
    metrics = interrupted / "metrics.jsonl"
    interrupt_once(lambda: metrics.exists() and metrics.stat().st_size > 0, start(same_command))
    done = timeless_history(interrupted)
    assert 1 <= len(done) < EPOCHS
    assert not (interrupted / "model").exists()
    printed = finish(start(same_command))
    assert re.search(r"resuming after epoch \d+, step \d+", printed)

    finish(in_peace)
    return peaceful, interrupted


def test_a_run_leaves_metrics_a_picture_and_a_model_that_can_be_served(
    outputs: tuple[Path, Path], data: Path
) -> None:
    output, _ = outputs
    lines = timeless_history(output)
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["train"]["photos"] == 45
    assert metrics["test"]["photos"] == 15
    with_products = metrics["test"]["with_products"]
    tested = list(open_dataset(data).photos("test"))
    assert with_products["photos"] == sum(bool(photo.products) for photo in tested) > 0
    assert json.loads((output / "model" / "metrics.json").read_text()) == metrics
    with Image.open(output / "loss.png") as picture:
        assert picture.width > 300
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10

    model = load_model(output / "model")
    right = [count_photo(photo.jpeg, model).count == photo.count for photo in tested]
    # One photo may fall on the other side: features are rounded for training, not for serving.
    assert metrics["test"]["accuracy"]["value"] == pytest.approx(np.mean(right), abs=1 / 15 + 1e-9)
    description = json.loads((output / "model" / "model.json").read_text())
    assert description["labels"] == [str(count) for count in COUNTS]
    assert description["settings"]["epochs"] == EPOCHS


def test_an_interrupted_run_ends_in_the_weights_of_one_in_peace(
    outputs: tuple[Path, Path],
) -> None:
    peaceful, interrupted = outputs
    expected, weights = network_weights(peaceful), network_weights(interrupted)
    assert len(weights) == len(expected) > 10
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert timeless_history(interrupted) == timeless_history(peaceful)
    for name in ("metrics.json", "model/metrics.json"):
        assert (interrupted / name).read_text() == (peaceful / name).read_text()


def test_ctrl_c_leaves_as_sigterm_does(
    data: Path, weights: Path, tmp_path: Path, start: Start
) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    interrupt_once(
        lambda: metrics.exists() and metrics.stat().st_size > 0,
        start(command(data, weights, tmp_path / "run", "--backbone-precision", "bfloat16")),
        signal.SIGINT,
    )


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path, weights: Path, start: Start) -> None:
    process = start(command(tmp_path / "nowhere", weights, tmp_path / "run"))
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert printed == f"error: no data set in {tmp_path / 'nowhere'}: manifest.json is missing\n"
    assert not (tmp_path / "run").exists()


class Grid(nn.Module):
    """Pixels, uint8 [N, size, size, 3] → features [N, 192]: every fourth pixel."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, 2::4, 2::4].float().flatten(1) / 255


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], None]]:
    """Run the command line in this process, and leave no trace in it."""
    threads = torch.get_num_threads()

    def not_caught(*_: object) -> None:
        pytest.fail("the signal is not caught")

    handlers = {
        number: signal.signal(number, not_caught) for number in (signal.SIGTERM, signal.SIGUSR1)
    }

    def run(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", arguments[2:])
        train_module.main()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)


Here = Callable[[list[str]], None]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that takes no time, whatever the weights."""
    monkeypatch.setattr(task, "load_backbone", lambda *_, **__: Grid())


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is exported, which takes most of a short run."""
    monkeypatch.setattr(train_module, "export_model", lambda *_, **__: None)


def error_line(run: Here, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as end:
        run(arguments)
    message = str(end.value.code)  # sys.exit prints a text and leaves with 1
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_wrong_weights_are_one_line(tmp_path: Path, data: Path, here: Here) -> None:
    file = tmp_path / "efficientnet_lite0.pth"
    arguments = command(data, file, tmp_path / "run")
    assert f"no weights at {file}" in error_line(here, arguments)
    file.write_text("<html>not found</html>")
    assert f"{file} is not a weights file" in error_line(here, arguments)
    torch.save({"conv1.weight": torch.zeros(3)}, file)
    assert "does not contain weights of efficientnet_lite0" in error_line(here, arguments)


@pytest.mark.parametrize(("share", "side"), [("1e-9", "validation"), ("0.999999", "training")])
def test_too_few_products_for_both_sides_are_one_line(
    tmp_path: Path, data: Path, weights: Path, here: Here, quick: None, share: str, side: str
) -> None:
    arguments = command(data, weights, tmp_path / "run", "--validation-fraction", share)
    assert f"no photo is left for {side}" in error_line(here, arguments)


def test_a_run_that_diverges_is_one_line_and_no_model(
    tmp_path: Path, data: Path, weights: Path, here: Here, quick: None
) -> None:
    arguments = command(data, weights, tmp_path / "run", "--epochs", "2", "--learning-rate", "1e30")
    for _ in range(2):  # the same command again fails the same way
        assert "lower --learning-rate" in error_line(here, arguments)
        assert not (tmp_path / "run" / "model").exists()
        assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, data: Path, weights: Path, here: Here, quick: None, no_model: None
) -> None:
    flags = ("--hidden", "64", "--epochs", "3", "--checkpoint-seconds", "0")
    arguments = command(data, weights, tmp_path / "run", *flags)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, usual[1]))  # less than a checkpoint
    try:
        message = error_line(here, arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert "run the same command again to resume" in message
    assert str(tmp_path / "run" / "checkpoints") in message
    assert not list(tmp_path.rglob("*checkpoint-*.pt*"))
    assert not (tmp_path / "run" / "model").exists()
    here(arguments)
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("flag", ["--epochs", "--batch-size", "--size", "--threads"])
def test_a_number_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as end:
        here(command(tmp_path, tmp_path, tmp_path / "run", f"{flag}=-1"))
    assert end.value.code == 2
    assert f'Invalid value "-1" for {flag}.' in capsys.readouterr().err


def test_less_photos_than_a_batch_to_fine_tune_on_are_one_line(
    tmp_path: Path, data: Path, weights: Path, here: Here
) -> None:
    arguments = command(data, weights, tmp_path / "run", "--mode", "finetune")
    assert "fewer than one batch of 64: prepare more photos or lower" in error_line(here, arguments)


def test_a_sigterm_while_the_results_are_written_leaves_at_once(
    tmp_path: Path, data: Path, weights: Path, here: Here, quick: None, monkeypatch: Any
) -> None:
    arguments = command(data, weights, tmp_path / "run", "--epochs", "3")

    def asked(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr(train_module, "export_model", asked)
    with pytest.raises(SystemExit) as end:
        here(arguments)
    assert end.value.code == INTERRUPTED
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.setattr(train_module, "export_model", export_model)
    here(arguments)
    assert load_model(tmp_path / "run" / "model")


def test_a_changed_flag_costs_no_checkpoint(
    tmp_path: Path, data: Path, weights: Path, here: Here, quick: None, no_model: None, capsys: Any
) -> None:
    more = ("--epochs", "3", "--checkpoint-seconds", "0")
    here(command(data, weights, tmp_path / "run", *more))
    first = set(tmp_path.rglob("checkpoint-*.pt"))
    capsys.readouterr()
    here(command(data, weights, tmp_path / "run", *more, "--decision", "median"))
    assert "this run starts from scratch" in capsys.readouterr().err
    assert first < set(tmp_path.rglob("checkpoint-*.pt"))
    here(command(data, weights, tmp_path / "run", *more))
    assert "resuming after epoch 3, step 0" in capsys.readouterr().err


def test_the_report_says_how_to_repeat_the_run(
    tmp_path: Path, data: Path, weights: Path, here: Here, quick: None, no_model: None
) -> None:
    arguments = command(data, weights, tmp_path / "run", "--epochs", "2")
    here(arguments)
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    repeated = page.partition('aria-label="Command">')[2].partition("</pre>")[0]
    words = shlex.split(repeated.replace("\\\n", " "))
    assert words == ["python", *arguments[1:], "--threads", "1"]


def test_another_data_set_in_the_same_folder_starts_from_scratch(
    tmp_path: Path, data: Path, weights: Path, here: Here, quick: None, no_model: None
) -> None:
    photos = draw_photos(60, first=100)
    other = write_packed(tmp_path / "other", photos[:45], photos[45:])
    more = ("--epochs", "3", "--checkpoint-seconds", "0")
    here(command(data, weights, tmp_path / "shared", *more))
    assert len(list((tmp_path / "shared").rglob("checkpoint-*.pt"))) == 2
    first = timeless_history(tmp_path / "shared")
    here(command(other, weights, tmp_path / "shared", *more))
    here(command(other, weights, tmp_path / "fresh", *more))
    assert timeless_history(tmp_path / "shared") == timeless_history(tmp_path / "fresh") != first


def test_a_new_machine_needs_nothing_but_the_checkpoints(
    tmp_path: Path,
    data: Path,
    weights: Path,
    here: Here,
    quick: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoints = tmp_path / "checkpoints"
    more = ("--epochs", "3", "--checkpoint-seconds", "0", "--checkpoint-dir", str(checkpoints))
    here(command(data, weights, tmp_path / "lost", *more))
    (newest,) = checkpoints.rglob("checkpoint-00003-0000000.pt")
    newest.unlink()  # it was on its way when the machine went
    here(command(data, weights, tmp_path / "new", *more))
    assert [line["epoch"] for line in timeless_history(tmp_path / "new")] == [1, 2, 3]
    assert timeless_history(tmp_path / "new") == timeless_history(tmp_path / "lost")
    # The one before may not be of the step before: while one is being written none is taken.
    assert re.search(r"resuming after epoch [012], step \d", capsys.readouterr().err)
    weights_of = map(network_weights, (tmp_path / "lost", tmp_path / "new"))
    for one, other in zip(*weights_of, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sigterm_before_the_head_is_trained_leaves_as_well(
    tmp_path: Path, data: Path, weights: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Grid:
        os.kill(os.getpid(), signal.SIGTERM)
        return Grid()

    monkeypatch.setattr(task, "load_backbone", interrupted)
    with pytest.raises(SystemExit) as end:
        here(command(data, weights, tmp_path / "run"))
    assert end.value.code == INTERRUPTED == 75
    assert not list(tmp_path.rglob("*.npy"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_sigusr1_takes_one_checkpoint_and_goes_on(
    tmp_path: Path,
    data: Path,
    weights: Path,
    here: Here,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(*_: object, **__: object) -> Grid:
        os.kill(os.getpid(), signal.SIGUSR1)
        return Grid()

    monkeypatch.setattr(task, "load_backbone", asked)
    here(command(data, weights, tmp_path / "run", "--epochs", "3", "--checkpoint-seconds", "1000"))
    names = sorted(file.name for file in tmp_path.rglob("checkpoint-*"))
    assert names == ["checkpoint-00001-0000000.pt", "checkpoint-00003-0000000.pt"]
    assert [line["epoch"] for line in timeless_history(tmp_path / "run")] == [1, 2, 3]


def test_validation_shares_no_product_with_training(tmp_path: Path) -> None:
    photos = draw_photos(300)
    index = open_dataset(write_packed(tmp_path, photos, photos[:3])).index("train")
    fit, held_out = split_validation(index, 0.3)
    assert (fit ^ held_out).all()
    groups = np.array(index.groups)
    assert not set(groups[fit]) & set(groups[held_out])
    assert 0.15 < held_out.mean() < 0.45
