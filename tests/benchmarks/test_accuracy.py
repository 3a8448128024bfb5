import json
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.accuracy import __main__ as accuracy
from common.dataset import open_dataset
from training.flags import parse
from training.settings import Options


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(accuracy, "ROWS", tmp_path / "rows.jsonl")
    return tmp_path / "rows.jsonl"


SIDE = {
    "photos": 40,
    "accuracy": {"value": 0.4, "low": 0.3, "high": 0.5},
    "within_one": 0.8,
    "mae": 0.9,
    "cross_entropy": 1.5,
    "rmse_of_mean": 1.1,
    "calibration": {"expected_calibration_error": 0.02},
    "inventory": {"photos": 0},
    "with_products": {
        "accuracy": {"value": 0.6, "low": 0.5, "high": 0.7},
        "within_one": 0.9,
        "cross_entropy": 0.9,
        "rmse_of_mean": 0.7,
        "number_alone": {"value": 0.5, "low": 0.4, "high": 0.6},
    },
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands for training.train; the flags that it was given, call by call."""
    calls: list[list[str]] = []

    def run(words: list[str], *, check: bool) -> None:
        calls.append(words)
        # As training.train would take them.
        options = parse(Options, words[words.index("training.train") + 1 :])
        output = options.places.output
        (output / "model").mkdir(parents=True)
        (output / "model" / "model.json").write_text("{}")
        side = "validation" if options.extras.skip_test else "test"
        metrics = {"train": {"epoch": 3}, "temperature": 1.2, side: SIDE}
        (output / "metrics.json").write_text(json.dumps(metrics))

    # Not subprocess.run itself, which others use as well.
    fake = SimpleNamespace(run=run, CalledProcessError=subprocess.CalledProcessError)
    monkeypatch.setattr(accuracy, "subprocess", fake)
    return calls


def test_photos_are_prepared_as_data_preparation_does(
    bins_tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "save_weights", lambda arch, folder: None)
    accuracy.main(["prepare", "--photos", str(bins_tar), "--folder", str(tmp_path)])
    dataset = open_dataset(tmp_path / "datasets" / "bins")
    sides = [set(dataset.index(side).groups) for side in ("train", "test")]
    assert all(sides)
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("name", accuracy.TRIES)
def test_a_try_leaves_the_test_photos_alone_and_a_row(
    name: str,
    tmp_path: Path,
    rows: Path,
    trained: list[list[str]],
) -> None:
    accuracy.main(["try", name, "--seed", "2", "--folder", str(tmp_path)])
    (flags,) = trained
    assert "--skip-test" in flags
    (row,) = [json.loads(line) for line in rows.read_text().splitlines()]
    assert (row["try"], row["seed"], row["side"]) == (name, 2, "validation")
    cells = [cell.strip() for cell in accuracy.table().splitlines()[-1].split("|")]
    assert cells[1:3] == [f"{name}, seed 2", f"`{' '.join(accuracy.TRIES[name])}`"]
    assert cells[3:7] == ["40.0% (30.0%–50.0%)", "80.0%", "1.100", "1.500"]
    assert cells[8:10] == ["60.0% (50.0%–70.0%)", "0.700"]


def test_a_try_under_torchrun_says_so(tmp_path: Path, rows: Path, trained: list[list[str]]) -> None:
    accuracy.main(["try", "finetune-half-batch", "--processes", "2", "--folder", str(tmp_path)])
    assert trained[0][1:6] == ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    assert "| finetune-half-batch, 2 processes | `" in accuracy.table()


def test_the_last_model_is_trained_on_every_photo(
    bins_tar: Path,
    tmp_path: Path,
    trained: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(accuracy, "save_weights", lambda arch, folder: None)
    accuracy.main(["final", "--photos", str(bins_tar), "--folder", str(tmp_path)])
    assert len(open_dataset(tmp_path / "datasets" / "bins").index("test"))
    assert trained[0][-4:-2] == ["--train-on", "all"]
    assert trained[0][trained[0].index("--run-id") + 1] == accuracy.CHOSEN
    archive = Path(capsys.readouterr().out.strip())
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["model.json"]


def test_a_missing_tar_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*none\.tar") as end:
        accuracy.main(
            ["prepare", "--photos", str(tmp_path / "none.tar"), "--folder", str(tmp_path)]
        )
    assert "\n" not in str(end.value.code)


@pytest.mark.parametrize("words", [[], ["--photos", "a.tar", "--drawn", "3"]])
def test_photos_come_from_a_tar_or_are_drawn(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        accuracy.main(["prepare", *words])
    assert end.value.code == 2
