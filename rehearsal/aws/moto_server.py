"""moto's server, with the stand-in for the public bucket filled before it answers.

    python -m rehearsal.aws.moto_server --port 5000 --bins FOLDER --calls FILE --violations FILE \
        --jobs FOLDER

The bins are put straight into moto's S3 backend, without a request for each.
"""

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from data_prep.objects import PUBLIC_BUCKET
from rehearsal.aws.cloudformation import behave_as_cloudformation
from rehearsal.aws.recorder import CallTable, record_calls
from rehearsal.aws.request_check import ViolationList, check_requests
from rehearsal.aws.sagemaker import run_jobs
from rehearsal.aws.stand_in import ACCOUNT


def fill_public_bucket(bins: Path) -> None:
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
    for file in sorted(bins.glob("*/*")):
        s3.put_object(PUBLIC_BUCKET, file.relative_to(bins).as_posix(), file.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rehearsal.aws.moto_server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument(
        "--bins", type=Path, required=True, help="a folder with bin-images/ and metadata/"
    )
    parser.add_argument(
        "--calls", type=Path, required=True, help="table of the roles' calls, to be written"
    )
    parser.add_argument(
        "--violations", type=Path, required=True, help="list of requests that AWS would refuse"
    )
    parser.add_argument(
        "--jobs", type=Path, required=True, help="folder for what runs on SageMaker"
    )
    args = parser.parse_args()
    end_jobs = run_jobs(f"http://127.0.0.1:{args.port}", args.jobs)
    record_calls(CallTable(args.calls).note)
    check_requests(ViolationList(args.violations).note)
    fill_public_bucket(args.bins)
    behave_as_cloudformation()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=args.port, verbose=True)
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        threading.Event().wait()
    finally:
        end_jobs()


if __name__ == "__main__":
    main()
