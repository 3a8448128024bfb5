"""Wheels for training machines, which install nothing from the internet.

    python -m training.runtime [--gpu]

Downloads what training/requirements.txt needs on Amazon Linux (x86-64, Python 3.11), with
PyTorch's CPU builds or, for machines with a GPU, its CUDA builds and 3 GB, and uploads it to
runtime/<hash>/ in DataStack's bucket.
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

from common.outputs import NotDeployedError, stack_output
from common.storage import list_keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# The builds without CUDA, a tenth of the size; their "+cpu" versions sort above PyPI's.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Amazon Linux 2023 has glibc 2.34; pip takes no wheel for an older one unless it is named.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 16, -1)]
PLATFORMS += ["manylinux2014_x86_64"]  # is 2.17


class RuntimeBuildError(RuntimeError):
    """The wheels could not be had; the message is one line."""


def download_wheels(folder: Path, *, gpu: bool) -> None:
    """Download all wheels for a training machine. Raises RuntimeBuildError when pip fails."""
    builds = [] if gpu else ["--extra-index-url", TORCH_CPU_INDEX]  # PyPI's are the CUDA builds
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [
        *(sys.executable, "-m", "pip", "download", "--only-binary", ":all:"),
        *("--python-version", "3.11", "--implementation", "cp", *platforms),
        *builds,
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
    parser.add_argument("--gpu", action="store_true", help="with CUDA, for the setting machine=gpu")
    args = parser.parse_args()
    try:
        bucket = stack_output("DataStack", "BucketName")
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.wheels or Path(temporary)
            if not args.wheels:
                download_wheels(folder, gpu=args.gpu)
            prefix = upload_runtime(boto3.client("s3"), bucket, folder)
    except (RuntimeBuildError, NotDeployedError) as error:
        sys.exit(f"error: {error}")
    except (Boto3Error, BotoCoreError, ClientError) as error:
        sys.exit(f"error: AWS: {error}")
    print(f"s3://{bucket}/{prefix}")


if __name__ == "__main__":
    main()
