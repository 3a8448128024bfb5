"""Which precision `--precision auto` stands for, settled once for a run."""

from pathlib import Path

import torch

from common.files import write_atomic

CPU_INFO = Path("/proc/cpuinfo")
FAST_ON_CPU = {"avx512_bf16", "amx_bf16"}  # instructions that multiply bfloat16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SETTLED = "precision.txt"  # beside the snapshots, so that the next machine has it


def settle_precision(asked: str, mode: str, device: torch.device, checkpoints: Path) -> str:
    """`asked`, or for auto what is fastest on this machine or was fastest where the run began.

    bfloat16 keeps float32's range, so that losses need no scaling: float16 is for GPUs without.
    """
    if asked != "auto":
        return asked
    if mode == "head":
        return "float32"  # its steps take no time
    file = checkpoints / SETTLED
    if not file.exists():
        write_atomic(file, _fastest(device).encode())
    return file.read_text()


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    words = set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
    return "float32" if words.isdisjoint(FAST_ON_CPU) else "bfloat16"
