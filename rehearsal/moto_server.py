"""moto's server, with the stand-in for the public bucket filled before it answers.

    python -m rehearsal.moto_server --port 5000 --bins FOLDER_OR_TAR --calls FILE --jobs FOLDER

The bins are put straight into moto's S3 backend: through HTTP, 13,500 objects take a minute.
"""

import argparse
import json
import signal
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
from tqdm import tqdm

from data_prep.objects import PUBLIC_BUCKET
from rehearsal.recorder import CallTable, record_calls
from rehearsal.sagemaker import run_jobs
from rehearsal.stand_in import ACCOUNT


def fill_public_bucket(bins: Path) -> int:
    """Create the public bucket and put every photo and metadata file of `bins` in it."""
    s3 = s3_backends[ACCOUNT]["aws"]
    s3.create_bucket(PUBLIC_BUCKET, "us-east-1")
    anyone_reads = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": ["s3:GetObject", "s3:ListBucket"],
                "Resource": [f"arn:aws:s3:::{PUBLIC_BUCKET}", f"arn:aws:s3:::{PUBLIC_BUCKET}/*"],
            }
        ],
    }
    s3.put_bucket_policy(PUBLIC_BUCKET, json.dumps(anyone_reads).encode())
    total = 0
    for key, content in tqdm(_objects(bins), desc="public bucket", unit="object"):
        s3.put_object(PUBLIC_BUCKET, key, content)
        total += 1
    return total


def _objects(bins: Path) -> Iterator[tuple[str, bytes]]:
    """Key and content of each file in a folder, or tar, laid out as the public bucket."""
    if bins.is_dir():
        for file in sorted(bins.glob("*/*")):
            yield file.relative_to(bins).as_posix(), file.read_bytes()
        return
    with tarfile.open(bins) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content:
                yield member.name.removeprefix("./"), content.read()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rehearsal.moto_server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument(
        "--bins", type=Path, required=True, help="bin-images/ and metadata/, a folder or a tar"
    )
    parser.add_argument(
        "--calls", type=Path, required=True, help="table of the roles' calls, to be written"
    )
    parser.add_argument(
        "--jobs", type=Path, required=True, help="folder for what runs on SageMaker"
    )
    args = parser.parse_args()
    end_jobs = run_jobs(f"http://127.0.0.1:{args.port}", args.jobs)
    record_calls(CallTable(args.calls).note)
    print(f"{fill_public_bucket(args.bins)} objects in {PUBLIC_BUCKET}", flush=True)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=args.port, verbose=True)
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        threading.Event().wait()
    finally:
        end_jobs()


if __name__ == "__main__":
    main()
