"""moto's server, whose public bucket is filled before it answers.

The photos are put straight into moto's S3 backend, without a request for each.
"""

import json
import signal
import sys
import threading
from pathlib import Path

from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from common.flags import command_line
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


APP = command_line("python -m rehearsal.aws.moto_server", __doc__)


@APP.default
def run(*, port: int, bins: Path, calls: Path, violations: Path, jobs: Path) -> None:
    """Serve until SIGTERM.

    Parameters
    ----------
    port
        Port on 127.0.0.1.
    bins
        Folder with bin-images/ and metadata/.
    calls
        Output: CSV of API calls by role.
    violations
        Output: list of requests that AWS would refuse.
    jobs
        Folder for what runs on SageMaker.
    """
    end_jobs = run_jobs(f"http://127.0.0.1:{port}", jobs)
    record_calls(CallTable(calls).note)
    check_requests(ViolationList(violations).note)
    fill_public_bucket(bins)
    behave_as_cloudformation()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=True)
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        threading.Event().wait()
    finally:
        end_jobs()


if __name__ == "__main__":
    APP()
