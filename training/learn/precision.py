"""The precision that `--precision auto` stands for, chosen once per run."""

from pathlib import Path
from typing import cast

import torch

from common.choices import Mode
from common.files import write_atomic
from training.settings import TrainingPrecision

CPU_INFO = Path("/proc/cpuinfo")
FAST_ON_CPU = {"avx512_bf16", "amx_bf16"}  # instructions for bfloat16 products
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHOSEN = "precision.txt"  # beside the checkpoints, so that the next machine finds it


def resolve_precision(
    requested: TrainingPrecision, mode: Mode, device: torch.device, checkpoints: Path
) -> TrainingPrecision:
    """Return `requested`, or for auto the fastest precision of the machine that began the run.

    bfloat16 is preferred to float16, as it has the range of float32 and needs no loss scaling.
    """
    if requested != "auto":
        return requested
    if mode == "head":
        return "float32"  # its steps are fast in any precision
    file = checkpoints / CHOSEN
    if not file.exists():
        write_atomic(file, _fastest(device).encode())
    return cast(TrainingPrecision, file.read_text())


def _fastest(device: torch.device) -> TrainingPrecision:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    words = set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
    return "float32" if words.isdisjoint(FAST_ON_CPU) else "bfloat16"
