"""Data-parallel training in several processes, which torchrun starts on one or more machines."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

TIMEOUT = timedelta(hours=2)  # the first process may export a model while the others wait

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """This process among `size` processes; with one process, collectives return their input."""

    rank: int = 0
    local_rank: int = 0  # on its machine
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process has rank 0, which writes the files."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Sum `value` over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return float(total.item())

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        return self.sum(float(flag)) > 0

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        distributed.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: Value) -> Value:
        """Return the value of the first process."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=0)
        first: Value = values[0]
        return first

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()


ALONE = World()


def join() -> World:
    """Join the processes that torchrun started, over gloo, and NCCL for tensors on GPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if "SM_NETWORK_INTERFACE_NAME" in os.environ:  # else gloo relies on resolving the host's name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", os.environ["SM_NETWORK_INTERFACE_NAME"])
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    return World(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), size)


def shard(rows: Tensor, world: World) -> Tensor:
    """Return the part of `rows` for this process; the parts are disjoint and complete."""
    return rows[world.rank :: world.size]
