"""Runs a SageMaker training job on this machine, where a folder stands for each host's /opt/ml.

There is no container. In the drivers that the SDK uploads, `/opt/ml` is replaced by the host's
folder and the address of the first host by 127.0.0.1; everything else is unchanged.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from common.storage import list_keys, pack_files
from rehearsal.aws.ports import free_port
from rehearsal.aws.toolkit import toolkit_command, toolkit_variables

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

OPT_ML = "/opt/ml"
MASTER = ("algo-1", "7777")  # address and port of the first host in the drivers
LOOK_SECONDS = 0.05
SYNC_SECONDS = 1.0
GRACE_SECONDS = 1.0  # from SIGTERM to SIGKILL; SageMaker gives two minutes
KILL_SECONDS = 5.0
TOLD = 300  # last characters of a failed job's log that its reason has


class JobFailedError(RuntimeError):
    """The job's own code failed; the message is the FailureReason."""


class JobStoppedError(RuntimeError):
    """The job was stopped on request."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine of a job: its /opt/ml, and the shell that runs there."""

    name: str
    root: Path
    process: "subprocess.Popen[bytes]"
    log: Path

    def kill(self) -> None:
        """Kill everything that runs on the machine."""
        for each in self._everything():
            with suppress(psutil.NoSuchProcess):
                each.suspend()  # otherwise one of them could start another
        everything = self._everything()
        for each in everything:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()
        psutil.wait_procs(everything, timeout=KILL_SECONDS)

    def _everything(self) -> list[psutil.Process]:
        """The shell's process group, which may outlive it, and the sessions of torchrun."""
        group = [each for each in psutil.process_iter() if _group_of(each) == self.process.pid]
        return [each for member in group for each in (member, *_descendants(member))]


class TrainingJob:
    """Runs a job from its CreateTrainingJob request; `s3` has the credentials of its role.

    With `interrupt_after`, managed spot interrupts the machines once metrics.jsonl has that many
    lines, and starts others with the checkpoints.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        *,
        work: Path,
        s3: "S3Client",
        interrupt_after: int | None = None,
    ) -> None:
        self._request, self._work, self._s3 = request, work, s3
        self._interrupt_after = interrupt_after
        self._stop = threading.Event()
        self._starts = 0
        self._checkpoints: dict[Path, int] = {}  # modified when stored, by file
        self.logs: list[Path] = []  # of the first host, one per start
        self.started: datetime | None = None
        self.away_seconds = 0.0  # between an interruption and the new start

    def run(self) -> None:
        """Run until the end, and upload the results.

        Raises JobFailedError when a host fails, JobStoppedError after `stop`.
        """
        hosts = self._start()
        while self._watch(hosts):
            interrupted = time.monotonic()
            hosts = self._start()
            self.away_seconds += time.monotonic() - interrupted
        self._upload(hosts)

    def stop(self) -> None:
        """Request the end of the job, which follows within LOOK_SECONDS."""
        self._stop.set()

    def metrics(self) -> dict[str, float]:
        """The last value of each defined metric in the log of the first host."""
        if not self.logs:
            return {}
        log = "\n".join(file.read_text(errors="replace") for file in self.logs)
        found = {}
        for each in self._request["AlgorithmSpecification"].get("MetricDefinitions", []):
            if values := re.findall(each["Regex"], log):
                found[each["Name"]] = float(values[-1])
        return found

    def _start(self) -> list[Host]:
        self._starts += 1
        count = self._request["ResourceConfig"]["InstanceCount"]
        names = [f"algo-{number + 1}" for number in range(count)]
        port = free_port()
        roots = [self._lay_out(name, names, port) for name in names]
        hosts = [
            self._boot(root, name, names, port) for root, name in zip(roots, names, strict=True)
        ]
        self.logs.append(hosts[0].log)
        self.started = self.started or datetime.now(UTC)
        return hosts

    def _lay_out(self, name: str, names: list[str], port: int) -> Path:
        """Fill the host's /opt/ml as SageMaker does before the container starts; returns it."""
        root = self._work / f"start-{self._starts}" / name / "opt" / "ml"
        for folder in ("input/config", "input/data", "model", "output/data", "checkpoints"):
            (root / folder).mkdir(parents=True)
        channels = {each["ChannelName"]: each for each in self._request["InputDataConfig"]}
        instance_type = self._request["ResourceConfig"]["InstanceType"]
        group = {"instance_group_name": "homogeneousCluster", "instance_type": instance_type}
        config = {
            "hyperparameters": self._request.get("HyperParameters", {}),
            "inputdataconfig": {
                channel: {
                    "TrainingInputMode": "File",
                    "S3DistributionType": "FullyReplicated",
                    "RecordWrapperType": "None",
                }
                for channel in channels
            },
            "resourceconfig": {
                "current_host": name,
                "current_instance_type": instance_type,
                "current_group_name": "homogeneousCluster",
                "hosts": names,
                "instance_groups": [{**group, "hosts": names}],
                "network_interface_name": "lo",
            },
        }
        for name_of, content in config.items():
            (root / f"input/config/{name_of}.json").write_text(json.dumps(content))
        for channel, each in channels.items():
            uri = each["DataSource"]["S3DataSource"]["S3Uri"]
            self._download(uri, root / "input/data" / channel)
        checkpoints = self._request.get("CheckpointConfig", {}).get("S3Uri")
        if checkpoints:
            self._download(checkpoints, root / "checkpoints")
        for driver in (root / "input/data/sm_drivers").rglob("*.[ps][yh]"):
            self._put_in_place(driver, root, port)
        return root

    def _download(self, uri: str, folder: Path) -> None:
        """Download everything under an S3 prefix, or a single object."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for key in list_keys(self._s3, bucket, prefix):
            name = key.removeprefix(prefix).lstrip("/") or key.rpartition("/")[2]
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            self._s3.download_file(bucket, key, str(file))

    @staticmethod
    def _put_in_place(file: Path, root: Path, port: int) -> None:
        address, usual = MASTER
        text = file.read_text().replace(OPT_ML, str(root))
        text = text.replace(f'"{address}"', '"127.0.0.1"').replace(usual, str(port))
        file.write_text(text)

    def _boot(self, root: Path, name: str, names: list[str], port: int) -> Host:
        algorithm = self._request["AlgorithmSpecification"]
        variables = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(root),
            "PIP_NO_INDEX": "1",  # the requirements must be installed here, or the job fails
            "PIP_NO_DEPS": "1",  # checking what they depend on in turn takes seconds per host
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRAINING_JOB_NAME": self._request["TrainingJobName"],
            "TRAINING_JOB_ARN": self._arn(),
            "AWS_REGION": self._s3.meta.region_name,
            **self._request.get("Environment", {}),
        }
        if "ContainerEntrypoint" in algorithm:
            words = [*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]]
            command = [word.replace(OPT_ML, str(root)) for word in words]
        else:
            hyperparameters = self._request["HyperParameters"]
            bucket, _, key = (
                hyperparameters["sagemaker_submit_directory"].removeprefix("s3://").partition("/")
            )
            archive = root / "code.tar.gz"
            self._s3.download_file(bucket, key, str(archive))
            with tarfile.open(archive) as tar:
                tar.extractall(root / "code", filter="data")
            variables |= toolkit_variables(root, hyperparameters, name, names)
            command = toolkit_command(root, hyperparameters, name, names, port)
        log = root.parent.parent / "output.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=variables,
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # of the same session, which ends as a whole
            )
        return Host(name=name, root=root, process=process, log=log)

    def _arn(self) -> str:
        account = self._request["RoleArn"].split(":")[4]
        name = self._request["TrainingJobName"]
        return f"arn:aws:sagemaker:{self._s3.meta.region_name}:{account}:training-job/{name}"

    def _watch(self, hosts: list[Host]) -> bool:
        """Wait for the hosts to end; returns whether managed spot interrupted them."""
        synced = time.monotonic()
        try:
            while any(host.process.poll() is None for host in hosts):
                time.sleep(LOOK_SECONDS)
                if self._stop.is_set():
                    raise JobStoppedError
                if failed := [host for host in hosts if host.process.poll()]:
                    raise JobFailedError(_reason(failed[0]))
                if self._interruption_due(hosts):
                    self._take_back(hosts)
                    return True
                if time.monotonic() - synced >= SYNC_SECONDS:
                    self._store_checkpoints(hosts)
                    synced = time.monotonic()
            if failed := [host for host in hosts if host.process.poll()]:
                raise JobFailedError(_reason(failed[0]))
        finally:
            for host in hosts:
                host.kill()
            self._store_checkpoints(hosts)
        return False

    def _interruption_due(self, hosts: list[Host]) -> bool:
        if self._interrupt_after is None:
            return False
        metrics = hosts[0].root / "output/data/metrics.jsonl"
        return metrics.exists() and metrics.read_text().count("\n") >= self._interrupt_after

    def _take_back(self, hosts: list[Host]) -> None:
        """Send SIGTERM to each container's first process, a shell, which does not forward it."""
        self._interrupt_after = None
        for host in hosts:
            host.process.terminate()
        time.sleep(GRACE_SECONDS)

    def _store_checkpoints(self, hosts: list[Host]) -> None:
        uri = self._request.get("CheckpointConfig", {}).get("S3Uri")
        if not uri:
            return
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for host in hosts:
            folder = host.root / "checkpoints"
            for file in sorted(folder.rglob("*")):
                try:
                    modified = file.stat().st_mtime_ns
                    if file.is_file() and self._checkpoints.get(file) != modified:
                        key = f"{prefix.rstrip('/')}/{file.relative_to(folder).as_posix()}"
                        self._s3.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())
                        self._checkpoints[file] = modified
                except FileNotFoundError:
                    continue  # replaced or removed meanwhile

    def _upload(self, hosts: list[Host]) -> None:
        """Upload the results of all hosts in two archives."""
        output = self._request["OutputDataConfig"]["S3OutputPath"].removeprefix("s3://")
        bucket, _, prefix = output.partition("/")
        for name, folder in (("model", "model"), ("output", "output/data")):
            archive = self._work / f"{name}.tar.gz"
            files = [file for host in hosts for file in sorted((host.root / folder).iterdir())]
            pack_files(archive, files)
            key = f"{prefix.rstrip('/')}/{self._request['TrainingJobName']}/output/{archive.name}"
            self._s3.upload_file(str(archive), bucket, key)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def _reason(host: Host) -> str:
    """Why a host failed, in SageMaker's words: its failure file, or the end of its log."""
    failure = host.root / "output/failure"
    text = failure.read_text() if failure.exists() else host.log.read_text(errors="replace")
    code = host.process.returncode
    return f"AlgorithmError: {host.name}: {text.strip()[-TOLD:]}, exit code: {code}"
