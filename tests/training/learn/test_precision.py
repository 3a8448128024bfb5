from pathlib import Path

import pytest
import torch

from training.learn import precision
from training.learn.precision import resolve_precision

CPU = torch.device("cpu")


@pytest.fixture(params=[("avx512f avx512_bf16", "bfloat16"), ("avx512f avx2", "float32")])
def fastest(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    flags, expected = request.param
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags} sse\n")
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    return str(expected)


def test_auto_is_what_the_processor_has_instructions_for(fastest: str, tmp_path: Path) -> None:
    assert resolve_precision("auto", "finetune", CPU, tmp_path / "checkpoints") == fastest


def test_what_was_asked_for_stays(fastest: str, tmp_path: Path) -> None:
    for asked in ("float32", "bfloat16"):
        assert resolve_precision(asked, "finetune", CPU, tmp_path) == asked


def test_another_machine_goes_on_as_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags in ("avx512_bf16", "avx2"):
        (tmp_path / "cpuinfo").write_text(flags)
        monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
        assert resolve_precision("auto", "finetune", CPU, tmp_path / "run") == "bfloat16"


def test_a_head_trains_in_float32(tmp_path: Path) -> None:
    assert resolve_precision("auto", "head", CPU, tmp_path) == "float32"
    assert not list(tmp_path.iterdir())
