"""Wheels for training machines, which install nothing from the internet.

    python -m training.runtime

Downloads what training/requirements.txt needs on Amazon Linux (x86-64, Python 3.11), with
PyTorch's CPU builds, and uploads it to runtime/<hash>/ in DataStack's bucket.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from tqdm import tqdm

from infra.outputs import NotDeployedError, stack_output
from training.transfer import list_keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# The builds without CUDA, a tenth of the size; their "+cpu" versions sort above PyPI's.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


class RuntimeBuildError(RuntimeError):
    """The wheels could not be had; the message is one line."""


def download_wheels(folder: Path) -> None:
    """Download all wheels for a training machine. Raises RuntimeBuildError when pip fails."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [
        *(sys.executable, "-m", "pip", "download", "--only-binary", ":all:"),
        *("--python-version", "3.11", "--implementation", "cp", *platforms),
        *("--extra-index-url", TORCH_CPU_INDEX),
        *("--requirement", str(REQUIREMENTS), "--dest", str(folder)),
    ]
    if subprocess.run(command).returncode:
        raise RuntimeBuildError("pip could not download the wheels, see its message above")


def lock(folder: Path) -> str:
    """requirements.txt with the version and hash of each wheel in `folder`, for pip."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = re.split("-", wheel.name)[:2]
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    if not lines:
        raise RuntimeBuildError(f"no wheels in {folder}")
    return "".join(lines)


def upload_runtime(s3: "S3Client", bucket: str, folder: Path) -> str:
    """Upload the wheels in `folder`, their requirements.txt last; returns the prefix."""
    requirements = lock(folder)
    prefix = f"runtime/{hashlib.sha256(requirements.encode()).hexdigest()[:16]}/"
    present = set(list_keys(s3, bucket, prefix))
    for wheel in tqdm(sorted(folder.glob("*.whl")), desc="upload wheels", unit="wheel"):
        if f"{prefix}{wheel.name}" not in present:
            s3.upload_file(str(wheel), bucket, f"{prefix}{wheel.name}")
    s3.put_object(Bucket=bucket, Key=f"{prefix}requirements.txt", Body=requirements.encode())
    return prefix


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.runtime",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--wheels", type=Path, help="folder of wheels to take instead of downloading them"
    )
    args = parser.parse_args()
    try:
        bucket = stack_output("DataStack", "BucketName")
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.wheels or Path(temporary)
            if not args.wheels:
                download_wheels(folder)
            prefix = upload_runtime(boto3.client("s3"), bucket, folder)
    except (RuntimeBuildError, NotDeployedError) as error:
        sys.exit(f"error: {error}")
    except (Boto3Error, BotoCoreError, ClientError) as error:
        sys.exit(f"error: AWS: {error}")
    print(f"s3://{bucket}/{prefix}")


if __name__ == "__main__":
    main()
