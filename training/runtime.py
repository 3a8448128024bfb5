"""Upload wheels for the training machines, which install nothing from the internet.

They are the packages in training/requirements.txt for Amazon Linux (x86-64, Python 3.11), and go
to `runtime/<hash>/` in DataStack's bucket. PyTorch is built for the CPU, or with `--gpu` for CUDA,
which takes 3 GB.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import boto3
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from cyclopts import Parameter
from tqdm import tqdm

from common.flags import Switch, command_line
from common.outputs import NotDeployedError, stack_output
from common.storage import list_keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# Builds without CUDA, a tenth of the size; pip prefers their "+cpu" versions to PyPI's.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Amazon Linux 2023 has glibc 2.34; pip needs the older versions named as well.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 16, -1)]
PLATFORMS += ["manylinux2014_x86_64"]  # the legacy name of 2.17


class RuntimeBuildError(RuntimeError):
    """The wheels could not be downloaded or found; the message is one line."""


def download_wheels(folder: Path, *, gpu: bool) -> None:
    """Download all wheels for a training machine; raises RuntimeBuildError if pip fails."""
    builds = [] if gpu else ["--extra-index-url", TORCH_CPU_INDEX]  # PyPI has the CUDA builds
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
    """Return a requirements.txt with the version and hash of each wheel in `folder`.

    Raises RuntimeBuildError if there is none.
    """
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = re.split("-", wheel.name)[:2]
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    if not lines:
        raise RuntimeBuildError(f"no wheels in {folder}")
    return "".join(lines)


def upload_runtime(s3: "S3Client", bucket: str, folder: Path) -> str:
    """Upload the wheels in `folder`, then their requirements.txt; return the prefix."""
    requirements = lock(folder)
    prefix = f"runtime/{hashlib.sha256(requirements.encode()).hexdigest()[:16]}/"
    present = set(list_keys(s3, bucket, prefix))
    for wheel in tqdm(sorted(folder.glob("*.whl")), desc="upload wheels", unit="wheel"):
        if f"{prefix}{wheel.name}" not in present:
            s3.upload_file(str(wheel), bucket, f"{prefix}{wheel.name}")
    s3.put_object(Bucket=bucket, Key=f"{prefix}requirements.txt", Body=requirements.encode())
    return prefix


app = command_line("python -m training.runtime", __doc__)


@app.default
def build(
    *,
    wheels: Annotated[
        Path | None, Parameter(help="Folder of wheels to upload instead of downloading them.")
    ] = None,
    gpu: Annotated[Switch, Parameter(help="Include CUDA, for the setting machine=gpu.")] = False,
) -> None:
    try:
        bucket = stack_output("DataStack", "BucketName")
        with tempfile.TemporaryDirectory() as temporary:
            folder = wheels or Path(temporary)
            if not wheels:
                download_wheels(folder, gpu=gpu)
            prefix = upload_runtime(boto3.client("s3"), bucket, folder)
    except (RuntimeBuildError, NotDeployedError) as error:
        sys.exit(f"error: {error}")
    except (Boto3Error, BotoCoreError, ClientError) as error:
        sys.exit(f"error: AWS: {error}")
    print(f"s3://{bucket}/{prefix}")


def main() -> None:
    app(sys.argv[1:])


if __name__ == "__main__":
    main()
