"""A run that is killed without warning, again and again, ends as if nothing had happened."""

import multiprocessing
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.support.packed import draw_photos, timeless_history, write_packed
from training import train as train_module

MODES = {
    "head": ("--epochs", "40", "--hidden", "8", "--batch-size", "8", "--ensemble-size", "2"),
    "finetune": (
        *("--epochs", "3", "--batch-size", "4", "--eval-every", "4"),
        *("--precision", "bfloat16", "--mirror", "yes"),
    ),
}
FORK = multiprocessing.get_context("forkserver")  # PyTorch is imported once, not by every process
FORK.set_forkserver_preload(["training.train"])
LIMIT = 900.0  # seconds, which only a test that fails comes to
LIFE = 2.5  # seconds, the longest before a process is killed; a run takes about ten
GPU_LIFE = 12.0  # the first step on a GPU comes late


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


def run(arguments: list[str], log: Path, gpu: bool) -> None:
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.argv = ["training.train", *arguments]
    train_module.main()


def train(mode: str, data: Path, weights: Path, output: Path, lives: list[float], gpu: bool) -> int:
    """Start a run until it ends by itself, killing it after each of `lives` seconds first.

    Returns how often it was killed.
    """
    arguments = [
        *("--data", str(data), "--weights", str(weights), "--output", str(output)),
        *("--arch", "efficientnet_lite0", "--mode", mode, "--threads", "1", "--int8", "no"),
        *("--validation-fraction", "0.2", "--checkpoint-seconds", "0", *MODES[mode]),
    ]
    log = output.with_suffix(".log")
    killed = 0
    for life in [*lives, LIMIT]:
        process = FORK.Process(target=run, args=(arguments, log, gpu))
        process.start()
        process.join(life)
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0, log.read_text()
            return killed
    raise AssertionError(f"still running after {LIMIT} s: {log.read_text()[-2000:]}")


def outcome(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The weights, the lines of metrics.jsonl without their times, and metrics.json."""
    weights = torch.load(output / "weights.pth", weights_only=True)
    return weights, timeless_history(output), (output / "metrics.json").read_text()


def check_kills(
    mode: str, number: int, data: Path, weights: Path, tmp_path: Path, *, gpu: bool = False
) -> None:
    """Kill runs `number` times in all and compare each with one that was left in peace."""
    train(mode, data, weights, tmp_path / "peaceful", [], gpu)
    expected_weights, *expected = outcome(tmp_path / "peaceful")
    generator = random.Random(f"{mode} {number}")
    killed = 0
    while killed < number:
        output = tmp_path / f"killed-{killed}"
        lives = [
            generator.uniform(0, GPU_LIFE if gpu else LIFE) for _ in range(min(8, number - killed))
        ]
        times = train(mode, data, weights, output, lives, gpu)
        assert times > 0
        killed += times
        found_weights, *found = outcome(output)
        assert found == expected
        assert found_weights.keys() == expected_weights.keys()
        for name, tensor in expected_weights.items():
            assert torch.equal(found_weights[name], tensor), name


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_is_killed_ends_in_the_same_weights(
    mode: str, data: Path, weights: Path, tmp_path: Path
) -> None:
    check_kills(mode, 2, data, weights, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_hundred_kills_leave_no_trace(
    mode: str, data: Path, weights: Path, tmp_path: Path
) -> None:
    check_kills(mode, 100, data, weights, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("mode", MODES)
def test_a_run_on_a_gpu_that_is_killed_ends_in_the_same_weights(
    mode: str, data: Path, weights: Path, tmp_path: Path
) -> None:
    check_kills(mode, 4, data, weights, tmp_path, gpu=True)
