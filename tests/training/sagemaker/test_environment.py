"""What SageMaker tells a container, as the flags that training.train gets."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from training.sagemaker.environment import sagemaker_defaults
from training.settings import as_flags, parse_arguments

SAGEMAKER = {
    "SM_CHANNEL_DATA": "/opt/ml/input/data/data",
    "SM_CHANNEL_WEIGHTS": "/opt/ml/input/data/weights",
    "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
    "SM_MODEL_DIR": "/opt/ml/model",
    "RUN_ID": "bins-2026",
    "SM_HPS": json.dumps(
        {"arch": "efficientnet_lite0", "batch-size": 64, "sagemaker_program": "train.py"}
    ),
}


def parsed(environment: Mapping[str, str]) -> argparse.Namespace:
    return parse_arguments(as_flags(sagemaker_defaults(environment)))


def test_in_sagemaker_no_flag_is_needed() -> None:
    args = parsed(SAGEMAKER)
    assert args.data == Path("/opt/ml/input/data/data")
    assert args.weights == Path("/opt/ml/input/data/weights/efficientnet_lite0.pth")
    assert (args.output, args.model_dir) == (Path("/opt/ml/output/data"), Path("/opt/ml/model"))
    assert args.checkpoint_dir == Path("/opt/ml/checkpoints")
    assert (args.run_id, args.batch_size) == ("bins-2026", 64)


@pytest.mark.parametrize(
    ("hyperparameters", "expected"),
    [
        ({"profile": True, "skip-test": False}, (True, False)),
        ({"profile": "false", "skip_test": "True"}, (False, True)),
    ],
)
def test_hyperparameters_can_switch(hyperparameters: Any, expected: tuple[bool, bool]) -> None:
    args = parsed({**SAGEMAKER, "SM_HPS": json.dumps(hyperparameters)})
    assert (args.profile, args.skip_test) == expected


def test_hyperparameters_are_checked_as_flags_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parsed({**SAGEMAKER, "SM_HPS": '{"epochs": 0}'})
    assert "argument --epochs: 0 is less than 1" in capsys.readouterr().err
