"""Many small objects from S3 to disk: how data_prep downloads them, against `aws s3 sync`.

The objects come from a server in memory on this machine, once without latency and once with
20 ms for each answer, which is about what S3 takes. Every side runs in a process of its own, in
turn with the other, into an empty folder. The tables are printed as Markdown. Let nothing else run
meanwhile.

    python -m benchmarks.scale.transfer            # 5,000 objects of 7 KB and of 67 KB
    python -m benchmarks.scale.transfer --quick    # try the command out
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import BenchmarkError, Measured, describe, describe_machine
from benchmarks.scale.object_server import BUCKET, serve
from common.command import in_one_line, interruptible
from common.files import write_atomic
from common.flags import PositiveInt, Switch, command_line
from data_prep.download import REQUESTS
from data_prep.objects import each, public_bucket

AWS_SYNC, OURS = "aws s3 sync", f"data_prep, {REQUESTS} requests at once"
SIZES = (7_000, 67_000)  # bytes
LATENCIES = (0, 20)  # milliseconds
QUICK_OBJECTS = 200

Way = Callable[[list[str], Path], None]

APP = command_line("python -m benchmarks.scale.transfer", __doc__)


@APP.default
def compare(
    *, objects: PositiveInt = 5000, repeats: PositiveInt = 3, quick: Switch = False
) -> None:
    """Compare both ways for each size and latency.

    Parameters
    ----------
    objects
        Number of objects.
    repeats
        Number of rounds.
    quick
        Transfer 200 objects in one round, to try the command out.
    """
    if quick:
        objects, repeats = QUICK_OBJECTS, 1
    print(describe_machine(), flush=True)
    generator = random.Random(0)
    keys = [f"bin-images/{number:05d}.jpg" for number in range(objects)]
    for size in SIZES:
        contents = {key: generator.randbytes(size) for key in keys}
        for latency in LATENCIES:
            title = f"{objects:,} objects of {size // 1000} KB, {latency} ms for each answer"
            with serve(contents, latency / 1000) as endpoint:
                sides = {
                    name: partial(download, way, keys, size, endpoint)
                    for name, way in ((AWS_SYNC, aws_sync), (OURS, ours))
                }
                runs = measure.compare(title, sides, repeats)
            print(f"\n### {title}\n\n{describe(runs, AWS_SYNC)}", flush=True)


def download(way: Way, keys: list[str], size: int, endpoint: str) -> Measured:
    """Download all objects once, into an empty folder, and check that they have arrived."""
    os.environ["AWS_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        way(keys, folder)
        seconds = time.perf_counter() - begun
        arrived = [file.stat().st_size for file in (folder / "bin-images").iterdir()]
    if arrived != [size] * len(keys):
        raise BenchmarkError(f"{len(arrived)} of {len(keys)} objects arrived")
    return Measured(photos=len(keys), seconds=seconds)


def ours(keys: list[str], folder: Path) -> None:
    """Download as data_prep does: through obstore, with a checksum, each file whole or absent."""
    bucket = public_bucket(BUCKET)

    async def fetch(key: str) -> None:
        content = await bucket.fetch(key)
        assert content is not None
        write_atomic(folder / key, content)

    asyncio.run(each(fetch, keys, at_once=REQUESTS))


def aws_sync(_: list[str], folder: Path) -> None:
    """Run the AWS command line with its default settings."""
    aws = str(Path(sys.executable).with_name("aws"))
    command = [aws, "s3", "sync", "--no-sign-request", "--only-show-errors"]
    done = subprocess.run(
        [*command, f"s3://{BUCKET}/", str(folder)],
        env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchmarkError(f"aws s3 sync: {done.stdout}{done.stderr}")


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    try:
        APP(arguments)
    except BenchmarkError as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    main()
