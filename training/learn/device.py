"""The device to train on."""

import os

import torch


def choose_device(local_rank: int = 0) -> torch.device:
    """Choose the device of this process: GPU number `local_rank` if there are GPUs, else the CPU.

    Makes GPU operations deterministic, as those of CPUs are, so that an interrupted run ends with
    the same weights as an uninterrupted one.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it for that
    torch.use_deterministic_algorithms(True)
    # Not needed, as no tensor is read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
