"""What SageMaker tells a container, as the flags that training.train gets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from training.flags import as_flags, parse
from training.sagemaker.environment import sagemaker_defaults
from training.settings import Options

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


def parsed(environment: Mapping[str, str]) -> Options:
    return parse(Options, as_flags(sagemaker_defaults(environment)))


def test_in_sagemaker_no_flag_is_needed() -> None:
    options = parsed(SAGEMAKER)
    places = options.places
    assert places.data == Path("/opt/ml/input/data/data")
    assert places.weights == Path("/opt/ml/input/data/weights/efficientnet_lite0.pth")
    assert (places.output, places.model_dir) == (Path("/opt/ml/output/data"), Path("/opt/ml/model"))
    assert places.checkpoint_dir == Path("/opt/ml/checkpoints")
    assert (places.run_id, options.settings.batch_size) == ("bins-2026", 64)


@pytest.mark.parametrize(
    ("hyperparameters", "expected"),
    [
        ({"profile": True, "skip-test": False}, (True, False)),
        ({"profile": "false", "skip_test": "True"}, (False, True)),
    ],
)
def test_hyperparameters_can_switch(hyperparameters: Any, expected: tuple[bool, bool]) -> None:
    extras = parsed({**SAGEMAKER, "SM_HPS": json.dumps(hyperparameters)}).extras
    assert (extras.profile, extras.skip_test) == expected


def test_hyperparameters_are_checked_as_flags_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parsed({**SAGEMAKER, "SM_HPS": '{"epochs": 0}'})
    assert 'Invalid value "0" for --epochs' in capsys.readouterr().err
