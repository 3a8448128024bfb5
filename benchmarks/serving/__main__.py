"""Our server measured beside the ones people deploy: the same weights, photos and cores.

    python -m benchmarks.serving --native abid-native-400.tar
    python -m benchmarks.serving ours --native abid-native-400.tar

rivals: ours in float32 and int8 against TorchServe, FastAPI and Ray Serve. ours: our own choices,
threads for a photo, HTTP parser, batches. Each server runs by itself and gets photos from clients
in another process, each of which waits for its answer before it sends the next. The others are
installed once, in a virtual environment of their own; TorchServe needs Java. Tables in Markdown
go to stdout, every single run to a JSON file. Let nothing else run meanwhile.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.serving.load import load, percentiles
from benchmarks.serving.models import Models, make_models
from benchmarks.serving.report import Result, describe
from benchmarks.serving.servers import (
    RIVALS,
    Server,
    install_rivals,
    installed_megabytes,
    ours,
    plain,
    running,
    torchserve,
)
from benchmarks.training.measure import FULL, QUICK, BenchmarkError, Measured, run_alone
from benchmarks.training.photos import draw_photos, native_entries, unpack_photos
from benchmarks.training.report import describe_machine, machine
from common.command import in_one_line, interruptible
from data_prep.folder import DataError
from serving.container.artifact import ModelError, load_model
from serving.container.preprocess import to_pixels
from training.settings import whole_number

CLIENTS = (1, 8, 32)
WARM_UP = 2.0  # seconds
FLOAT32, INT8 = "ours, float32", "ours, int8"
REFERENCE = "TorchServe"


@dataclass(frozen=True, kw_only=True)
class Bare:
    """Decoding, resizing and the network alone, called by as many threads as there are clients,
    at most one a core."""

    name: str
    precision: str
    batch: int = 1  # photos that the network sees at once


def bare(
    models: Models,
    precision: str,
    batch: int,
    photos: Sequence[bytes],
    clients: int,
    seconds: float,
) -> Measured:
    """The same work without a server: the most that one can reach."""
    model = load_model(models.folder, threads=1, precision=precision)
    threads = min(clients, os.cpu_count() or 1)

    def work(first: int) -> list[float]:
        taken: list[float] = []
        mine = cycle(photos[first::threads])
        while not taken or time.perf_counter() < deadline:
            begun = time.perf_counter()
            pixels = np.stack([to_pixels(photo, model.size) for photo in islice(mine, batch)])
            model.probabilities(pixels)
            taken += [(time.perf_counter() - begun) * 1000] * batch
        return taken

    begun = time.perf_counter()
    deadline = begun + seconds
    with ThreadPoolExecutor(threads) as pool:
        taken = [each for found in pool.map(work, range(threads)) for each in found]
    elapsed = time.perf_counter() - begun
    return Measured(photos=len(taken), seconds=elapsed, facts=percentiles(taken))


def rivals(models: Models, folder: Path) -> list[Server | Bare]:
    return [
        ours(models, FLOAT32, "--precision", "float32"),
        ours(models, INT8, "--precision", "int8"),
        torchserve(models, folder, REFERENCE),
        torchserve(models, folder, "TorchServe, a thread a worker", OMP_NUM_THREADS="1"),
        plain(models, "FastAPI, eager PyTorch", "fastapi", ("fastapi", "httptools", "uvloop")),
        plain(models, "Ray Serve, eager PyTorch", "ray", ("ray[serve]",)),
        Bare(name="float32 without a server", precision="float32"),
        Bare(name="int8 without a server", precision="int8"),
    ]


def choices(models: Models, folder: Path) -> list[Server | Bare]:
    sides: list[Server | Bare] = []
    for precision in ("float32", "int8"):
        flags = ("--precision", precision)
        cores, rival = str(os.cpu_count()), RIVALS / "bin" / "python"
        fast = "httptools and uvloop"
        sides += [
            ours(models, f"ours, {precision}", *flags),
            ours(models, f"{precision}, all cores for a photo", *flags, "--threads", cores),
            ours(models, f"{precision}, {fast}", *flags, python=rival),
            Bare(name=f"{precision} without a server", precision=precision),
            Bare(name=f"{precision} without a server, batches of 8", precision=precision, batch=8),
        ]
    return sides


COMPARED: Mapping[str, tuple[Callable[[Models, Path], list[Server | Bare]], str]] = {
    "rivals": (rivals, REFERENCE),
    "ours": (choices, FLOAT32),
}


def measure(
    sides: Sequence[Server | Bare],
    models: Models,
    photos: Sequence[bytes],
    *,
    repeats: int,
    seconds: float,
    folder: Path,
) -> Iterator[tuple[str, int, Measured]]:
    """Name, clients and what was measured, side by side, every second round backwards."""
    for number in range(repeats):
        for side in sides if number % 2 == 0 else reversed(sides):
            print(f"round {number + 1} of {repeats}: {side.name}", file=sys.stderr)
            if isinstance(side, Bare):
                for clients in CLIENTS:
                    run = partial(bare, models, side.precision, side.batch)
                    yield side.name, clients, run_alone(partial(run, photos, clients, seconds))
                continue
            with running(side, photos[0], folder / "server.log") as server:
                facts = {"first answer s": server.first_answer}
                for clients in CLIENTS:
                    found = run_alone(partial(load, side.target, photos, clients, WARM_UP, seconds))
                    more = facts | {"MB": server.megabytes()}
                    yield side.name, clients, replace(found, facts={**found.facts, **more})


def run(args: argparse.Namespace) -> None:
    """Measure, print and write what `args` asks for."""
    found = machine(os.cpu_count() or 1)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    print(describe_machine(found), flush=True)
    scale = QUICK if args.quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.native:
            unpack_photos(args.native, folder / "photos")
        else:
            draw_photos(folder / "photos", scale.photos, scale.sides)
        photos = [entry.file.read_bytes() for entry in native_entries(folder / "photos")]
        install_rivals()
        models = make_models(folder, photos)
        list_sides, reference = COMPARED[args.compared]
        sides = list_sides(models, folder)
        runs: dict[int, dict[str, list[Measured]]] = {
            clients: {side.name: [] for side in sides} for clients in CLIENTS
        }
        for name, clients, measured in measure(
            sides, models, photos, repeats=args.repeats, seconds=args.seconds, folder=folder
        ):
            print(
                f"  {clients} clients: {measured.rate:.3g} photos/s, "
                f"p99 {measured.facts['p99 ms']:.0f} ms",
                file=sys.stderr,
            )
            runs[clients][name].append(measured)
        disk = {side.name: installed_megabytes(side) for side in sides if isinstance(side, Server)}
        model_disk = {file.name: file.stat().st_size / 1e6 for file in models.folder.glob("*.onnx")}
    result = Result(runs=runs, reference=reference, disk=disk, models=model_disk)
    print(f"\n{describe(result)}")
    content = {"arguments": vars(args), "machine": found, **asdict(result)}
    args.json.write_text(json.dumps(content, indent=1, default=str) + "\n")


def seconds(text: str) -> float:
    if not 0 < float(text) < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and an hour")
    return float(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag(
        "compared",
        nargs="?",
        choices=COMPARED,
        default="rivals",
        help="what to measure (default: %(default)s)",
    )
    flag(
        "--native",
        type=Path,
        metavar="TAR",
        help="photos at native size, laid out as the public bucket (default: drawn ones)",
    )
    flag("--repeats", type=whole_number, help="rounds (default: 3; --quick: 1)")
    flag(
        "--seconds",
        type=seconds,
        help="of each measurement, after two of warm-up (default: 15; --quick: 2)",
    )
    flag("--quick", action="store_true", help="try the command out: few, small photos")
    flag(
        "--json",
        type=Path,
        default=Path("serving-benchmark.json"),
        metavar="FILE",
        help="results with all runs (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    args.repeats = args.repeats or (1 if args.quick else 3)
    args.seconds = args.seconds or (2.0 if args.quick else 15.0)
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    # What it has started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(args)
    except (BenchmarkError, DataError, ModelError, OSError) as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    with interruptible():
        main()
