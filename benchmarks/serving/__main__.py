"""Our server under load: photos per second, latency, memory, and what the server itself costs.

It serves ResNet50 with random weights, in float32 and in int8, on all cores. Clients in another
process each wait for their answer before they send the next photo. The same work is measured
without a server as well: the difference is the server's overhead. The tables are printed as
Markdown. Let nothing else run meanwhile.

    python -m benchmarks.serving --native abid-native-400.tar
    python -m benchmarks.serving --quick    # try the command out
"""

import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.measure import (
    BenchmarkError,
    Measured,
    Runs,
    describe_machine,
    range_of,
    ratios,
    run_alone,
    table,
)
from benchmarks.serving.load import load
from benchmarks.serving.models import make_model
from benchmarks.serving.sides import running, without_server
from common.command import in_one_line, interruptible
from common.flags import PositiveInt, Switch, command_line
from data_prep.synthetic import synthesize
from rehearsal.aws.waiting import NotReadyError
from rehearsal.bins import read_objects
from serving.container.artifact import Precision

CLIENTS = (1, 8, 32)
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")
PHOTOS, QUICK_PHOTOS = 400, 80
SIDES, QUICK_SIDES = range(300, 871), range(64, 97)  # pixels; the real photos have the first
WARM_UP = 2.0  # seconds
WITHOUT_SERVER = "{} without a server"

Seconds = Annotated[float, Parameter(validator=Number(gt=0, lt=3600))]

APP = command_line("python -m benchmarks.serving", __doc__)


@APP.default
def benchmark(
    *,
    native: Path | None = None,
    repeats: PositiveInt | None = None,
    seconds: Seconds | None = None,
    quick: Switch = False,
) -> None:
    """Measure, and print a table for each number of clients.

    Parameters
    ----------
    native
        A tar of photos at their native size, laid out as the public bucket
        [default: synthetic photos of the same size].
    repeats
        Number of rounds [default: 3, with --quick 1].
    seconds
        Length of each measurement, after two seconds of warm-up [default: 15, with --quick 2].
    quick
        Measure briefly, with small photos, to try the command out.
    """
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contents = read_photos(native) if native else draw_photos(folder / "photos", quick)
        model = make_model(folder, contents)
        runs: dict[int, dict[str, list[Measured]]] = {clients: {} for clients in CLIENTS}
        for turn in range(repeats or (1 if quick else 3)):
            for side, clients, found in measure(
                model,
                contents,
                seconds or (2.0 if quick else 15.0),
                folder,
                backwards=turn % 2 == 1,
            ):
                print(f"  {clients} clients, {side}: {found.rate:.3g} photos/s", file=sys.stderr)
                runs[clients].setdefault(side, []).append(found)
    for clients, sides_measured in runs.items():
        print(f"\n### {clients} client{'s' * (clients > 1)}\n\n{describe(sides_measured)}")


def read_photos(bins: Path) -> list[bytes]:
    """The photos of a folder or a tar. Raises BenchmarkError when there are none."""
    try:
        photos = [content for _, content in read_objects(bins, "bin-images")]
    except tarfile.TarError as error:
        raise BenchmarkError(f"{bins} is not a tar of photos, or is damaged: {error}") from error
    if not photos:
        raise BenchmarkError(f"{bins} has no photos in bin-images/")
    return photos


def draw_photos(folder: Path, quick: bool) -> list[bytes]:
    photos, sides = (QUICK_PHOTOS, QUICK_SIDES) if quick else (PHOTOS, SIDES)
    synthesize(folder, photos, seed=0, sides=sides)
    return read_photos(folder)


def measure(
    model: Path, photos: Sequence[bytes], seconds: float, folder: Path, *, backwards: bool
) -> Iterator[tuple[str, int, Measured]]:
    """Measure each side once; yields its name, the number of clients and the measurement."""
    order = [(precision, served) for precision in PRECISIONS for served in (True, False)]
    for precision, served in reversed(order) if backwards else order:
        if not served:
            for clients in CLIENTS:
                run = partial(without_server, model, precision, photos, clients, seconds)
                yield WITHOUT_SERVER.format(precision), clients, run_alone(run)
            continue
        with running(model, precision, photos[0], folder) as server:
            for clients in CLIENTS:
                found = run_alone(partial(load, server.port, photos, clients, WARM_UP, seconds))
                facts = {"first answer s": server.first_answer, "MB": server.megabytes()}
                yield precision, clients, replace(found, facts={**found.facts, **facts})


def describe(runs: Runs) -> str:
    """Throughput, latency, memory and overhead as a Markdown table: median (least–most)."""

    def fact(name: str, mine: Sequence[Measured]) -> str:
        return str(range_of([run.facts[name] for run in mine])) if name in mine[0].facts else ""

    rows = [
        [
            side,
            str(range_of([run.rate for run in mine])),
            *(fact(name, mine) for name in ("p50 ms", "p99 ms", "MB", "first answer s")),
            overhead(mine, runs.get(WITHOUT_SERVER.format(side))),
        ]
        for side, mine in runs.items()
    ]
    heading = ["p50, ms", "p99, ms", "memory, MB", "first answer, s", "overhead"]
    return table(["", "photos/s", *heading], rows)


def overhead(mine: Sequence[Measured], without: Sequence[Measured] | None) -> str:
    """How many fewer photos per second a server answers than the same work does without it."""
    if not without:
        return ""
    share = ratios(mine, without)
    median, least, most = (100 * (1 - each) for each in (share.median, share.most, share.least))
    return f"{median:.0f} % ({least:.0f}–{most:.0f})"


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server ends as well
    try:
        APP(arguments)
    except (BenchmarkError, NotReadyError, OSError) as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    main()
