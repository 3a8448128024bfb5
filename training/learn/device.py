"""What computes: the GPU of this process, or the CPU."""

import os

import torch


def choose_device(local_rank: int = 0) -> torch.device:
    """The GPU number `local_rank` where there are any, else the CPU.

    A GPU is told to compute the same bits each time, as CPUs do: a run that was interrupted ends
    in the weights of one that was not.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition for that
    torch.use_deterministic_algorithms(True)
    # Nothing reads it before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
