"""A stand-in for an AWS account on this machine: moto's server, deployed to by the real CDK CLI."""

import os
import sys
import time
import urllib.request
from pathlib import Path

from data_prep.objects import PUBLIC_BUCKET
from rehearsal.ports import free_port
from rehearsal.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
CDK = ROOT / "node_modules" / ".bin" / "cdk"
ACCOUNT, REGION = "123456789012", "us-east-1"  # moto's account
START_SECONDS = 60.0
# There is no Docker here: the endpoint's container is rehearsal/endpoint.py.
SERVING_IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/bin-counter:rehearsal"


class StandInError(RuntimeError):
    """The stand-in did not start; the message is one line."""


class StandIn:
    """Starts moto and deploys to it; `environment` makes every AWS client talk to it."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        port = free_port()
        self._port = port
        self.calls = folder / "calls.csv"  # what each role called
        self.jobs = folder / "jobs"  # what SageMaker runs
        # localhost: the CDK CLI does not address buckets on 127.0.0.1.
        self.endpoint = f"http://localhost:{port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            # Nothing of the user's own account is looked at.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "localhost,127.0.0.1",
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
            "NODE_NO_WARNINGS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, bins: Path) -> str:
        """Start moto with `bins` in the public bucket; returns what it says once it answers."""
        log = self._folder / "moto.log"
        command = [sys.executable, "-m", "rehearsal.moto_server"]
        process = self._processes.start(
            [
                *command,
                "--port",
                str(self._port),
                "--bins",
                bins,
                "--calls",
                self.calls,
                "--jobs",
                self.jobs,
            ],
            environment=self.environment,
            log=log,
            folder=ROOT,
        )
        end = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/moto-api/data.json", timeout=5):
                    return _filled(log)
            except OSError:
                time.sleep(0.2)
        raise StandInError(f"the stand-in for AWS did not start, see {log}")

    def bootstrap(self) -> None:
        """Synthesize the stacks, once for all deploys, and prepare the account for the CDK."""
        self._cdk(["synth"], "--quiet", "--context", f"serving_image={SERVING_IMAGE}")
        self._cdk(["bootstrap", f"aws://{ACCOUNT}/{REGION}"], "--app", str(self._assembly))

    def deploy(self, *stacks: str) -> None:
        """`cdk deploy`, with the flags that moto needs (no change sets)."""
        self._cdk(["deploy", *stacks], "--require-approval", "never", *self.deploy_flags)

    @property
    def deploy_flags(self) -> list[str]:
        return [
            *("--app", str(self._assembly)),
            *("--method", "direct", "--previous-parameters=false"),
        ]

    @property
    def _assembly(self) -> Path:
        return self._folder / "cdk.out"

    def _cdk(self, words: list[str], *flags: str) -> None:
        self._processes.run(
            [CDK, *words, *flags, "--output", str(self._assembly), "--no-color", "--no-notices"],
            environment=self.environment,
            label=f"{' ' * 11}$ cdk {' '.join(words)}",
            log=self._folder / "cdk.log",
            folder=ROOT,
        )


def _filled(log: Path) -> str:
    """What the server said of the public bucket."""
    return next(line for line in log.read_text().splitlines() if PUBLIC_BUCKET in line)
