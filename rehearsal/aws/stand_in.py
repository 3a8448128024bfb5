"""A stand-in for an AWS account on this machine: moto's server, deployed to by the real CDK CLI."""

import os
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from common.files import ROOT
from common.names import NAME_VARIABLE
from rehearsal.aws.ports import free_port
from rehearsal.aws.processes import Processes
from rehearsal.aws.waiting import wait_until

CDK = ROOT / "node_modules" / ".bin" / "cdk"
ACCOUNT, REGION = "123456789012", "us-east-1"  # moto's account
# There is no Docker here: the endpoint's container is rehearsal/aws/endpoint.py.
SERVING_IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/bin-counter:rehearsal"


class StandIn:
    """Starts moto and deploys to it; `environment` makes every AWS client talk to it."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        port = free_port()
        self._port = port
        self.calls = folder / "calls.csv"  # API calls by role
        self.violations = folder / "violations.txt"  # requests that AWS would refuse
        self.jobs = folder / "jobs"  # what runs on SageMaker
        # localhost: the CDK CLI does not address buckets on 127.0.0.1.
        self.endpoint = f"http://localhost:{port}"
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("AWS_", NAME_VARIABLE))
            },
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            # The user's own account is left alone.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "localhost,127.0.0.1",
            "no_proxy": "localhost,127.0.0.1",
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
            "NODE_NO_WARNINGS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, bins: Path) -> None:
        """Start moto with `bins` in the public bucket, and wait until it answers.

        Raises NotReadyError when it never does.
        """
        log = self._folder / "moto.log"
        process = self._processes.start(
            [
                *(sys.executable, "-m", "rehearsal.aws.moto_server", "--port", str(self._port)),
                *("--bins", bins, "--calls", self.calls),
                *("--violations", self.violations, "--jobs", self.jobs),
            ],
            environment=self.environment,
            log=log,
            folder=ROOT,
        )
        wait_until(self._answers, process, name="the stand-in for AWS", log=log)

    def _answers(self) -> bool:
        # Not data.json, which lists every object: that takes seconds on a slow machine.
        try:
            with urllib.request.urlopen(f"{self.endpoint}/moto-api/config", timeout=60):
                return True
        except OSError:
            return False

    def synthesize(self) -> None:
        """Synthesize the stacks once, for all deployments. Moto need not run.

        Without credentials, or else the account's zones would be kept in cdk.context.json.
        """
        image = ("--context", f"serving_image={SERVING_IMAGE}")
        words = ["--quiet", *image, "--output", str(self._assembly)]
        environment = {k: v for k, v in self.environment.items() if k != "AWS_ACCESS_KEY_ID"}
        self._cdk(["synth"], *words, folder=ROOT, environment=environment)

    def bootstrap(self) -> None:
        """Prepare the account for the CDK. The stacks need not be synthesized."""
        empty = self._folder / "bootstrap"  # without a cdk.json, so that the app is not run
        empty.mkdir()
        self._cdk(["bootstrap", f"aws://{ACCOUNT}/{REGION}"], folder=empty)

    def deploy(self, *stacks: str) -> None:
        """Run `cdk deploy` with the flags that moto needs, as it knows no change sets."""
        approve = ("--require-approval", "never")
        self._cdk(["deploy", *stacks], *approve, *self.deploy_flags, folder=ROOT)

    @property
    def deploy_flags(self) -> list[str]:
        return [
            *("--app", str(self._assembly)),
            *("--method", "direct", "--previous-parameters=false"),
        ]

    @property
    def _assembly(self) -> Path:
        return self._folder / "cdk.out"

    def _cdk(
        self,
        words: list[str],
        *flags: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._processes.run(
            [CDK, *words, *flags, "--no-color", "--no-notices"],
            environment=environment or self.environment,
            log=self._folder / f"cdk-{words[0]}.log",
            folder=folder,
        )
