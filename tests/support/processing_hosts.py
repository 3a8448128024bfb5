"""The machines of a processing job, as processes on this one: a folder each stands for /opt/ml."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

OPT_ML = "/opt/ml"


def start_hosts(
    request: Mapping[str, Any], files: Mapping[str, bytes], work: Path, variables: Mapping[str, str]
) -> list["subprocess.Popen[str]"]:
    """Start the container of each; `files` are what S3 has of the job."""
    count = request["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
    names = [f"algo-{number}" for number in range(1, count + 1)]
    return [_start(request, files, work / name, name, names, variables) for name in names]


def _start(
    request: Mapping[str, Any],
    files: Mapping[str, bytes],
    work: Path,
    name: str,
    names: list[str],
    variables: Mapping[str, str],
) -> "subprocess.Popen[str]":
    root = f"{work}{OPT_ML}"
    (given,) = request["ProcessingInputs"]
    job = Path(given["S3Input"]["LocalPath"].replace(OPT_ML, root))
    for folder in (job, Path(root, "config")):
        folder.mkdir(parents=True, exist_ok=True)
    config = {"current_host": name, "hosts": names[::-1]}
    Path(root, "config", "resourceconfig.json").write_text(json.dumps(config))
    for file, content in files.items():
        (job / file).write_bytes(content)
    entry = job / "processing_entry.py"
    entry.write_text(entry.read_text().replace(f'"{OPT_ML}"', f'"{root}"'))
    application = request["AppSpecification"]
    words = [*application["ContainerEntrypoint"], *application["ContainerArguments"]]
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HOME": str(work),
        "PIP_NO_INDEX": "1",  # what is required is installed here, or the job has to fail
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **request["Environment"],
        **variables,
    }
    return subprocess.Popen(
        [word.replace(OPT_ML, root) for word in words],
        env=environment,
        cwd=work,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill(host: "subprocess.Popen[str]") -> None:
    """With all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(host.pid, signal.SIGKILL)
    host.communicate()
