"""What data_prep takes at the size of the public bucket: time and memory of list, split, manifest.

    python -m benchmarks.scale              10,000, 50,000, 250,000 and 535,234 photos
    python -m benchmarks.scale --quick      try the command out

Metadata is made up, one file a photo, laid out as in the public bucket; photos are links to a few
files. The listing comes from benchmarks.scale.object_server. Each step of each size runs in a
process of its own, its start included. Packing is measured on 2,000 drawn photos, download by
benchmarks.scale.transfer.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from tqdm import tqdm

from benchmarks.scale.object_server import BUCKET
from benchmarks.scale.transfer import server
from benchmarks.training.measure import BenchmarkError
from benchmarks.training.report import describe_machine, machine
from common.command import in_one_line, interruptible
from common.table import table
from data_prep.folder import metadata_path, photo_path, start_selection, write_selection

SIZES = (10_000, 50_000, 250_000, 535_234)
QUICK = (1_000, 2_000)
LOOK_SECONDS = 0.01
LINKS = 20_000  # to one file: file systems allow some 65,000
SHOTS = (1, 2, 3, 4)
SHOT_SHARES = (0.4, 0.3, 0.2, 0.1)  # of bins photographed so often, as data_prep.synthetic
AGAIN = 0.02  # of items that are a product which another bin holds as well
STEPS = ("list", "split", "manifest", "pack")
PACKED = 2_000  # drawn photos


@dataclass(frozen=True)
class Taken:
    """What one step took."""

    photos: int
    step: str
    seconds: float  # from the start of its process to the end
    peak_mb: float  # of memory


def made_up(photos: int) -> Iterator[tuple[str, bytes]]:
    """Id and metadata of each photo; neighbours share products, and some others do."""
    dice = random.Random(0)
    asins, number = 0, 0
    while number < photos:
        shots = dice.choices(SHOTS, SHOT_SHARES)[0]
        items = []
        for _ in range(dice.choices(range(9), (3, 12, 21, 24, 20, 12, 5, 2, 1))[0] + shots):
            again = asins and dice.random() < AGAIN
            items.append(dice.randrange(asins) if again else asins)
            asins += not again
        for shot in range(min(shots, photos - number)):
            shown = items[: max(0, len(items) - shot)]
            products = {f"B{asin:09d}": _product(asin) for asin in shown}
            content = {"BIN_FCSKU_DATA": products, "EXPECTED_QUANTITY": len(shown)}
            yield f"{number:06d}", json.dumps(content).encode()
            number += 1


def _product(asin: int) -> dict[str, object]:
    """What the public metadata has of one, about as long."""
    name = f"Something Useful Number {asin}, Pack of One, Assorted Colours"
    size = {"unit": "IN", "value": 4.0}
    return {
        "asin": f"B{asin:09d}",
        "height": size,
        "length": size,
        "name": name,
        "normalizedName": name,
        "quantity": 1,
        "weight": {"unit": "pounds", "value": 0.3},
        "width": size,
    }


def fill(folder: Path, photos: int) -> None:
    """A working folder as `download` leaves it."""
    start_selection(folder)
    ids = []
    for number, (photo_id, metadata) in enumerate(
        tqdm(made_up(photos), total=photos, desc="make up", unit=" photos")
    ):
        path, photo = metadata_path(folder, photo_id), photo_path(folder, photo_id)
        if number == 0:
            path.parent.mkdir(parents=True)
            photo.parent.mkdir()
        path.write_bytes(metadata)
        original = folder / f"photo-{number // LINKS}"
        if not original.exists():
            original.write_bytes(b"a photo")
        os.link(original, photo)
        ids.append(photo_id)
    write_selection(folder, ids, [])


def measure(photos: int) -> list[Taken]:
    """All steps with so many photos."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fill(folder, photos)
        with server(photos, 1, 0, prefix="metadata/", suffix=".json") as endpoint:
            listed = take(
                photos,
                "list",
                ["data_prep", "list", "--source-bucket", BUCKET],
                folder / "ids.txt",
                AWS_ENDPOINT_URL_S3=endpoint,
            )
        there = (folder / "ids.txt").read_text().splitlines()
        assert len(there) == photos
        said = folder / "said.txt"
        split = take(photos, "split", ["data_prep", "split", "--data", str(folder)], said)
        print(said.read_text(), end="")
        manifest = take(photos, "manifest", ["benchmarks.scale.manifest", str(folder)], said)
        return [listed, split, manifest]


def measure_pack(photos: int) -> Taken:
    """Packing of drawn photos as large as the public ones, on every core."""
    with tempfile.TemporaryDirectory() as temporary:
        data = ["--data", temporary]
        said = Path(temporary) / "said.txt"
        drawn = ["--photos", str(photos), "--side", "300-870"]
        take(photos, "draw", ["data_prep", "synthesize", "--out", temporary, *drawn], said)
        take(photos, "split", ["data_prep", "split", *data], said)
        packed = len((Path(temporary) / "split.csv").read_text().splitlines()) - 1
        return take(packed, "pack", ["data_prep", "pack", *data], said)


def take(photos: int, step: str, words: list[str], output: Path, **variables: str) -> Taken:
    """Run a module, its standard output into a file."""
    with output.open("w") as out:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=out,
            stderr=subprocess.DEVNULL,
            env=os.environ | variables,
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _peak_mb(process.pid))
            time.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - begun
    if process.returncode:
        raise BenchmarkError(f"{' '.join(words)} ended with {process.returncode}")
    return Taken(photos, step, seconds, peak)


def _peak_mb(pid: int) -> float:
    """Of its memory so far; 0 when it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def plot(taken: list[Taken], picture: Path) -> None:
    """Seconds and memory against photos, a line for each step."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for step in STEPS[:-1]:
        of_step = [one for one in taken if one.step == step]
        photos = [one.photos / 1000 for one in of_step]
        left.plot(photos, [one.seconds for one in of_step], "o-", label=step)
        right.plot(photos, [one.peak_mb for one in of_step], "o-", label=step)
    left.set_ylabel("seconds")
    right.set_ylabel("MB of memory, at most")
    for axis in (left, right):
        axis.set_xlabel("thousand photos")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    left.legend()
    figure.savefig(picture, dpi=110)


@interruptible()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few thousand photos")
    parser.add_argument(
        "--picture", type=Path, default=Path("scale.png"), help="the plot (%(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("scale-benchmark.json"), help="figures (%(default)s)"
    )
    args = parser.parse_args()
    print(describe_machine(found := machine(os.cpu_count() or 1)), end="\n\n")
    taken: list[Taken] = []
    try:
        for photos in QUICK if args.quick else SIZES:
            taken += measure(photos)
            print(f"{photos:,} photos: done", file=sys.stderr)
        taken.append(measure_pack(PACKED // 10 if args.quick else PACKED))
    except BenchmarkError as error:
        sys.exit(f"error: {in_one_line(error)}")
    rows = [
        [one.step, f"{one.photos:,}", f"{one.seconds:.1f}", f"{one.seconds / one.photos * 1e6:.0f}",
         f"{one.peak_mb:.0f}"]
        for step in STEPS
        for one in taken
        if one.step == step
    ]  # fmt: skip
    print(table(["step", "photos", "seconds", "µs a photo", "MB at most"], rows))
    plot(taken, args.picture)
    content = {"machine": found, "taken": [asdict(one) for one in taken]}
    args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
