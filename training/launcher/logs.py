"""What the machines of a run printed, from the copies that they keep in runs/<id>/logs/.

The same lines are in CloudWatch; these outlive it, and need no further permission.
"""

import sys
import time
from pathlib import PurePosixPath

from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import POLL_SECONDS
from training.launcher.status import Run, look


def print_logs(deployment: Deployment, run_id: str, *, follow: bool) -> None:
    """Print the log of each machine in turn; with `follow`, what is added until the run ends.

    Raises LaunchError for a run without a log, and for one on SageMaker, which keeps it itself.
    """
    _refuse_jobs(look(deployment, run_id))
    printed: dict[str, int] = {}  # bytes, by key
    while True:
        run = look(deployment, run_id)  # before the logs: they end later
        _print_new(deployment, run, printed)
        if not (follow and run.standing.at_work):
            break
        time.sleep(POLL_SECONDS)
    if not printed:
        raise LaunchError(f"no machine of run {run_id} has stored a log yet")


def _refuse_jobs(run: Run) -> None:
    if run.request.get("service") == "sagemaker" and run.attempts:
        raise LaunchError(
            f"run {run.run_id} is on SageMaker: `aws logs tail /aws/sagemaker/TrainingJobs "
            f"--since 7d --log-stream-name-prefix {run.attempts[-1]['instance_id']}/` prints it"
        )


def _print_new(deployment: Deployment, run: Run, printed: dict[str, int]) -> None:
    prefix = deployment.record(run.run_id).key("logs/")
    pages = deployment.s3.get_paginator("list_objects_v2").paginate(
        Bucket=deployment.bucket, Prefix=prefix
    )
    sizes = {
        PurePosixPath(item["Key"]).stem: item["Size"]
        for page in pages
        for item in page.get("Contents", [])
    }
    attempts = [attempt["instance_id"] for attempt in run.attempts]
    others = sorted(sizes.keys() - set(attempts))  # that never began, or have not yet
    for machine in [*attempts, *others]:
        seen = printed.get(machine, 0)
        if sizes.get(machine, 0) <= seen:
            continue
        if not seen:
            print(f"== {machine}")
        answer = deployment.s3.get_object(
            Bucket=deployment.bucket, Key=f"{prefix}{machine}.log", Range=f"bytes={seen}-"
        )
        content = answer["Body"].read()
        sys.stdout.write(content.decode(errors="replace"))
        sys.stdout.flush()
        printed[machine] = seen + len(content)
