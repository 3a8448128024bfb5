from pathlib import Path

import pytest
import torch

from benchmarks.training import __main__ as training
from benchmarks.training import steps
from benchmarks.training.steps import WARM_UP, prepare_photos, prepare_weights, run_steps
from common.dataset import open_dataset
from training.learn.model import load_backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_photos(tmp_path_factory.mktemp("photos"), 80, 64)


def test_the_steps_after_the_warm_up_are_measured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "keep_freed_memory", lambda: None)
    threads = torch.get_num_threads()
    weights = prepare_weights(tmp_path, "efficientnet_lite0")
    found = run_steps(
        data, weights, "efficientnet_lite0", precision="float32", batch_size=8, threads=1
    )
    torch.set_num_threads(threads)
    assert found.photos % 8 == 0
    trained = len(open_dataset(data).index("train"))  # a tenth of it is for validation
    assert 0 < found.photos <= trained - WARM_UP * 8
    assert found.seconds > 0


def test_random_weights_of_resnet50_fit_it(tmp_path: Path) -> None:
    file = prepare_weights(tmp_path / "weights", "resnet50")
    assert load_backbone("resnet50", file, all_stages=False).width() == 2048


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        training.main(["--repeats", "0"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: Invalid value")
    assert message.count("\n") == 1


@pytest.mark.slow
def test_the_command_prints_a_table_for_each_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    training.main(["--quick"])
    printed = capsys.readouterr().out
    for arch in training.ARCHITECTURES:
        assert f"### {arch}: " in printed
    assert printed.count("| float32 | ") == printed.count("| bfloat16 | ") == 2
    assert "%|" not in printed  # progress goes to stderr
