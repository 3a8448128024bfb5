"""The processes that train together: torchrun starts them, on one machine or on several."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

TIMEOUT = timedelta(hours=2)  # one process may export or quantise while the others wait

Anything = TypeVar("Anything")


@dataclass(frozen=True)
class World:
    """This process among `size`; alone, every exchange gives back what it was given."""

    rank: int = 0
    local_rank: int = 0  # on its machine
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return float(total.item())

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them."""
        return self.sum(float(flag)) > 0

    def gather(self, mine: Anything) -> list[Anything]:
        """What each process has, by rank."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, mine)
        return found

    def broadcast(self, mine: Anything) -> Anything:
        """What the first process has."""
        if self.size == 1:
            return mine
        box: list[Any] = [mine]
        distributed.broadcast_object_list(box, src=0)
        result: Anything = box[0]
        return result

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        if self.size > 1:
            distributed.destroy_process_group()


ALONE = World()


def join(environment: Mapping[str, str] = os.environ) -> World:
    """Meet the other processes that torchrun started, over gloo, or NCCL where there are GPUs."""
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if "SM_NETWORK_INTERFACE_NAME" in environment:  # else gloo asks what a host's name means
        os.environ.setdefault("GLOO_SOCKET_IFNAME", environment["SM_NETWORK_INTERFACE_NAME"])
    # What is not on a GPU goes over gloo in any case.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    return World(int(environment["RANK"]), int(environment["LOCAL_RANK"]), size)


def share(rows: Tensor, world: World) -> Tensor:
    """Those of `rows` that this process works on; together they are all, none twice."""
    return rows[world.rank :: world.size]
