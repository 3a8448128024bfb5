"""Many small objects from S3 to disk: data_prep's way beside what people use without it.

    python -m benchmarks.scale.transfer            5,000 objects of 7 and of 67 KB, three rounds
    python -m benchmarks.scale.transfer --quick    try the command out

From a server on this machine that has them in memory, without a wait and with one of 20 ms for
each answer, about what S3 takes; and 10,000 photos as single files beside shards of them. Every
side runs in a process of its own, in turn with the others, into an empty folder. Let nothing else
run meanwhile. s5cmd is measured as well where it is installed.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import boto3
from botocore import UNSIGNED
from botocore.config import Config

from benchmarks.scale.object_server import BUCKET, keys
from benchmarks.training.measure import BenchmarkError, Comparison, Measured, Side, compare
from benchmarks.training.report import describe, describe_machine, machine, to_json
from common.command import in_one_line, interruptible
from common.files import write_atomic
from common.storage import download_prefix
from data_prep.download import REQUESTS
from data_prep.objects import each, public_bucket
from data_prep.pack import JPEG_BYTES_A_PIXEL, TAR_BYTES_A_SAMPLE
from rehearsal.aws.ports import free_port

REFERENCE = "aws s3 sync"
MACHINE = "a training machine"
GOAL = 5.0
GOAL_OF_SHARDS = 10.0
PACKED_BYTES = round(JPEG_BYTES_A_PIXEL * 224**2)  # of a photo at the training size
SHARDED_PHOTOS = 10_000
SIZES = (7_000, 67_000)  # bytes
LATENCIES = (0, 20)  # milliseconds
THREADS = 16
COUNTED = (
    "{objects:,} objects of {size} KB, each answer after {latency} ms; from the start of the "
    "program, of Python's own programs without Python's start, to the last file on disk."
)


def ours(objects: int, folder: Path) -> None:
    """As data_prep downloads: obstore, a checksum, a file that is whole or absent."""
    bucket = public_bucket(BUCKET)

    async def fetch(key: str) -> None:
        content = await bucket.fetch(key)
        assert content is not None
        write_atomic(folder / key, content)

    asyncio.run(each(fetch, keys(objects), at_once=REQUESTS))


def plain_boto3(objects: int, folder: Path) -> None:
    """A thread pool that calls GetObject."""
    config = Config(signature_version=UNSIGNED, max_pool_connections=THREADS)
    client = boto3.client("s3", region_name="us-east-1", config=config)
    (folder / "bin-images").mkdir()

    def fetch(key: str) -> None:
        (folder / key).write_bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, keys(objects)))


def aws_sync(objects: int, folder: Path, *, at_once: int | None = None) -> None:
    """The AWS command line, as it comes or with more requests at once."""
    config = folder / "config"
    s3 = f"s3 =\n  max_concurrent_requests = {at_once}\n" if at_once else ""
    config.write_text(f"[default]\nregion = us-east-1\n{s3}")
    _run(
        [str(Path(sys.executable).with_name("aws")), "s3", "sync", "--no-sign-request"],
        [f"s3://{BUCKET}/", str(folder), "--only-show-errors"],
        AWS_CONFIG_FILE=str(config),
        AWS_ENDPOINT_URL=os.environ["AWS_ENDPOINT_URL_S3"],
    )


def s5cmd(objects: int, folder: Path) -> None:
    """https://github.com/peak/s5cmd, if it is installed."""
    endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
    _run(
        ["s5cmd", "--no-sign-request", "--endpoint-url", endpoint, "--log", "error"],
        ["sync", f"s3://{BUCKET}/*", f"{folder}/"],
        AWS_REGION="us-east-1",
    )


def as_a_machine(objects: int, folder: Path) -> None:
    """As a training machine gets its data set."""
    config = Config(signature_version=UNSIGNED)
    client = boto3.client("s3", region_name="us-east-1", config=config)
    download_prefix(client, BUCKET, "bin-images/", folder / "bin-images")


def _run(*words: list[str], **variables: str) -> None:
    command = [word for part in words for word in part]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


PROGRAMS: dict[str, Callable[[int, Path], None]] = {
    REFERENCE: aws_sync,
    f"aws s3 sync, {REQUESTS} requests at once": partial(aws_sync, at_once=REQUESTS),
    f"boto3, {THREADS} threads": plain_boto3,
    "s5cmd": s5cmd,
    f"data_prep, {REQUESTS} requests at once": ours,
    MACHINE: as_a_machine,
}


def measure(
    name: str, objects: int, size: int, endpoint: str, photos: int | None = None
) -> Measured:
    """One side once, into an empty folder; all objects, with so many photos, must have arrived."""
    os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        begun = time.perf_counter()
        PROGRAMS[name](objects, folder)
        seconds = time.perf_counter() - begun
        there = [file.stat().st_size for file in (folder / "bin-images").iterdir()]
        if there != [size] * objects:
            raise BenchmarkError(f"{name}: {len(there)} of {objects} objects arrived")
    return Measured(photos=photos or objects, seconds=seconds)


@contextmanager
def server(
    objects: int, size: int, latency: int, prefix: str = "bin-images/", suffix: str = ".jpg"
) -> Iterator[str]:
    """URL of a server with such objects."""
    port = free_port()
    words = f"--objects {objects} --bytes {size} --latency-ms {latency} --port {port}".split()
    words += ["--prefix", prefix, "--suffix", suffix]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.scale.object_server", *words])
    try:
        bucket, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 30
        while not _answers(port):
            if time.monotonic() > deadline:
                raise BenchmarkError("the server does not start")
            time.sleep(0.1)
        yield bucket
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def compare_shards(photos: int, repeats: int) -> Comparison:
    """A data set as single photos and as shards of them, of some 100 MB as ours are."""
    in_all = photos * (PACKED_BYTES + TAR_BYTES_A_SAMPLE)
    number = max(1, round(in_all / 100e6))
    shard_bytes = in_all // number
    with (
        server(photos, PACKED_BYTES, 0) as singles,
        server(number, shard_bytes, 0, suffix=".tar") as shards,
    ):

        def side(name: str, how: str, objects: int, size: int, endpoint: str) -> Side:
            run = partial(measure, how, objects, size, endpoint, photos=photos)
            goal = GOAL_OF_SHARDS if endpoint == shards else None
            return Side(name=name, run=run, goal=goal)

        sides = [
            side(f"{what}: {shown}", how, *where)
            for what, where in {
                "single photos": (photos, PACKED_BYTES, singles),
                "shards": (number, shard_bytes, shards),
            }.items()
            for shown, how in {REFERENCE: REFERENCE, "a training machine": MACHINE}.items()
        ]
        counted = (
            f"{photos:,} photos of {PACKED_BYTES // 1000} KB, each by itself or all in {number} "
            f"shards of {shard_bytes / 1e6:.0f} MB; without latency."
        )
        reference = f"single photos: {REFERENCE}"
        return compare("Shards", sides, repeats, counted=counted, reference=reference)


def compare_transfers(objects: int, size: int, latency: int, repeats: int) -> Comparison:
    names = [name for name in PROGRAMS if name != "s5cmd" or shutil.which("s5cmd")]
    names.remove(MACHINE)
    with server(objects, size, latency) as endpoint:
        sides = [
            Side(
                name=name,
                run=partial(measure, name, objects, size, endpoint),
                goal=GOAL if name.startswith("data_prep") else None,
            )
            for name in names
        ]
        counted = COUNTED.format(objects=objects, size=size // 1000, latency=latency)
        title = f"{size // 1000} KB, {latency} ms"
        return compare(title, sides, repeats, counted=counted, reference=REFERENCE)


@interruptible()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale.transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="?", choices=["objects", "shards", "all"], default="all", help="(%(default)s)"
    )
    parser.add_argument("--objects", type=int, default=5000, help="how many (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of every side (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few objects, one round")
    parser.add_argument(
        "--json", type=Path, default=Path("transfer-benchmark.json"), help="every run (%(default)s)"
    )
    args = parser.parse_args()
    objects, repeats = (200, 1) if args.quick else (args.objects, args.repeats)
    print(describe_machine(found := machine(os.cpu_count() or 1)), end="\n\n")
    comparisons = []
    works = [partial(compare_shards, 500 if args.quick else SHARDED_PHOTOS, repeats)]
    if args.what != "shards":
        works = [
            partial(compare_transfers, objects, size, latency, repeats)
            for latency in LATENCIES
            for size in SIZES
        ] + works * (args.what == "all")
    try:
        for work in works:
            comparisons.append(work())
            print(describe(comparisons[-1]), flush=True)
    except BenchmarkError as error:
        sys.exit(f"error: {in_one_line(error)}")
    content = {"machine": found, "comparisons": [to_json(one) for one in comparisons]}
    args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
