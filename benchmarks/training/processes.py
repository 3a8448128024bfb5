"""Two processes that train together against one: what the exchange of gradients costs."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.training.decoding import available_cores, pin
from benchmarks.training.finetune import FirstSteps
from benchmarks.training.measure import Comparison, Measured, Scale, Side, compare
from common.dataset import open_dataset
from common.signals import Signals
from rehearsal.aws.ports import free_port
from training.learn.distributed import World, join
from training.learn.memory import keep_freed_memory
from training.learn.task import prepare_finetune
from training.learn.trainer import Trainer
from training.settings import Settings, parse_arguments

REFERENCE = "one process on one core"
APART = "two processes, no exchange"
TOGETHER = "two processes"
AFTERWARDS = "two processes, exchange after the backward pass"
COUNTED = (
    "Photos a second over {steps} steps of fine-tuning, loading included, after {warm_up} for "
    "warming up. Each process has a core of its own, one thread and batches of {batch_size}; two "
    "exchange gradients over gloo on the loopback, in buckets while the backward pass goes on, "
    "or all at its end. 2 times as fast as one would be an efficiency of 100 %."
)
ONE_BUCKET_MIB = 10_000


def compare_processes(
    data: Path, weights: Path, arch: str, scale: Scale, repeats: int
) -> Comparison:
    """`data` is a packed data set of `scale.size` pixels."""

    def side(name: str, processes: int, exchange: str) -> Side:
        run = partial(run_steps, data, weights, arch, scale, processes, exchange)
        return Side(name=name, run=run)

    sides = [
        side(REFERENCE, 1, "none"),
        side(APART, 2, "none"),
        side(AFTERWARDS, 2, "afterwards"),
        side(TOGETHER, 2, "overlapping"),
    ]
    counted = COUNTED.format(steps=scale.steps, warm_up=scale.warm_up, batch_size=scale.batch_size)
    return compare(f"processes {arch}", sides, repeats, counted=counted, reference=REFERENCE)


def run_steps(
    data: Path, weights: Path, arch: str, scale: Scale, processes: int, exchange: str
) -> Measured:
    """So many processes take the steps of `scale`, from the last one's first to the last's last."""
    world = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    cores = available_cores()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        shares = [
            pool.submit(
                run_share,
                {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                [cores[rank % len(cores)]],
                data,
                weights,
                arch,
                scale,
                exchange,
            )
            for rank in range(processes)
        ]
        begun, ended = zip(*(share.result() for share in shares), strict=True)
    photos = processes * scale.steps * scale.batch_size
    return Measured(photos=photos, seconds=max(ended) - min(begun))


def run_share(
    environment: Mapping[str, str],
    cores: list[int],
    data: Path,
    weights: Path,
    arch: str,
    scale: Scale,
    exchange: str,
) -> tuple[float, float]:
    """One process's steps; returns their begin and end, in seconds of one clock."""
    pin(cores)
    os.environ.update(environment)
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    everyone = join()  # also those that exchange nothing start at one time
    world = World() if exchange == "none" else everyone
    trainer = prepare(data, weights, arch, scale, world)
    if exchange == "afterwards":
        trainer._trained = DistributedDataParallel(trainer._network, bucket_cap_mb=ONE_BUCKET_MIB)
    steps = trainer.train_epoch()
    list(islice(steps, scale.warm_up))
    everyone.barrier()
    begun = time.perf_counter()
    list(steps)
    ended = time.perf_counter()
    everyone.leave()
    return begun, ended


def prepare(data: Path, weights: Path, arch: str, scale: Scale, world: World) -> Trainer:
    """As training.train has it, for `warm_up` and `steps` of `scale`."""
    args = parse_arguments(
        [
            *("--mode", "finetune", "--data", str(data), "--weights", str(weights)),
            *("--output", "unused", "--arch", arch, "--size", str(scale.size), "--epochs", "1"),
            *("--batch-size", str(scale.batch_size), "--threads", "1", "--skip-test"),
            *("--precision", "float32"),
        ]
    )
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    device = torch.device("cpu")
    task = prepare_finetune(
        open_dataset(data), settings, args, args.output, device, Signals(), world
    )
    source = FirstSteps(task.source, scale.warm_up + scale.steps, channels_last=True)
    return Trainer(task.trained, source, settings, device, world)
