"""Two processes under torchrun come to what one comes to with twice the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from common.files import ROOT
from tests.support.packed import draw_photos, timeless_history, write_packed

MODES = {
    # 36 photos to train on: the last batch is short, and not the same for both processes.
    "head": ("--mode", "head", "--epochs", "6", "--hidden", "8"),
    "finetune": ("--mode", "finetune", "--epochs", "2", "--batch-norm", "frozen"),
}
LIMIT = 900.0  # seconds, which only a test that fails comes to


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags that name a data set and weights."""
    photos, folder = draw_photos(60), tmp_path_factory.mktemp("squares")
    data = write_packed(folder, photos[:45], photos[45:])
    torch.manual_seed(0)
    weights = folder / "efficientnet_lite0.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict(), weights)
    return ("--data", str(data), "--weights", str(weights))


def train(processes: int, output: Path, *flags: str) -> None:
    torchrun = (
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        if processes > 1
        else ()
    )
    command = [sys.executable, *torchrun, "-m", "training.train", "--output", str(output), *flags]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_end_as_one_with_twice_the_batch(
    mode: str, places: tuple[str, ...], tmp_path: Path
) -> None:
    """Per-photo randomness is off: dropout; augmentation follows from the photo's id."""
    flags = (
        *places,
        *("--arch", "efficientnet_lite0", "--threads", "1", "--dropout", "0", "--int8", "no"),
        *("--precision", "float32"),  # rounding to bfloat16 would hide what differs
        *("--validation-fraction", "0.2", "--checkpoint-seconds", "0", *MODES[mode]),
    )
    train(1, tmp_path / "one", *flags, "--batch-size", "8")
    train(2, tmp_path / "two", *flags, "--batch-size", "4")
    one, two = (timeless_history(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two)
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)
    metrics = [
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    ]
    assert metrics[0]["test"]["photos"] == metrics[1]["test"]["photos"] == 15
    weights = [torch.load(tmp_path / name / "weights.pth") for name in ("one", "two")]
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, rtol=0.02, atol=2e-3, err_msg=name)
