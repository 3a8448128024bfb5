"""An account with the stacks deployed and rehearsed machines, for tests of a run's endings.

The boot script, training.machine and the launcher's booking are the real ones, against
moto's server; only training.train is a stand-in.
"""

import json
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psutil

from common.run_record import VERSION, Attempt, Request, RunRecord, utc_now
from common.storage import list_keys
from infra.train_stack import boot_script
from rehearsal.aws.group import RehearsedGroups
from rehearsal.aws.machine import Machine
from rehearsal.aws.processes import Processes
from training.launcher.code import ON_EC2, pack_code
from training.launcher.deployment import Deployment
from training.runs.active_run import LEASE, CurrentRun, activate_run

GROUP, ON_DEMAND = GROUPS = ("trainer", "trainer-on-demand")
LOG_GROUP, PARAMETER, ROLE = "/training", "/model", "machine"
LIMIT = 600.0  # seconds until a test gives up, which only one that fails comes to

# What training.train does as far as its machine can see: two epochs, the first with a checkpoint;
# $ENDINGS says what comes then.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
output, checkpoints = Path(options["--output"]), Path(options["--checkpoint-dir"])
for folder in (output / "model", checkpoints):
    folder.mkdir(parents=True, exist_ok=True)
checkpoint = checkpoints / "checkpoint.json"
epoch = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
print("resuming after epoch", epoch, flush=True)

def save(*_):
    (checkpoints / ".new").write_text(json.dumps(epoch))
    (checkpoints / ".new").replace(checkpoint)

def leave(*_):
    save()
    sys.exit(75)

signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGUSR1, save)
epoch += 1
save()
epoch += 1
(output / "metrics.jsonl").write_text("{}\\n" * epoch)
print("epoch", epoch, flush=True)
endings = Path(os.environ["ENDINGS"])  # a line for each machine, the last for all after it
then, *others = endings.read_text().splitlines()
endings.write_text("\\n".join(others or [then]))
if then == "waits":
    while not (output.parent / "go").exists():
        time.sleep(0.05)
if then == "raises":
    raise ValueError("the head has no layers")
if then == "takes all memory":  # and the kernel ends it
    os.kill(os.getpid(), signal.SIGKILL)
if then == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
if then == "fills the disk":
    Path("/dev/full").write_text("checkpoint")
(output / "metrics.json").write_text(json.dumps({"epoch": epoch}))
for name in ("loss.png", "report.html", "weights.pth"):
    (output / name).write_text("content")
(output / "model" / "model.onnx").write_text("graph")
if then == "leaves no room for the model":
    (output / ".model.tar.gz.partial").symlink_to("/dev/full")
if then == "is stored slowly":
    (output / "loss.png").unlink()
    os.mkfifo(output / "loss.png")  # whoever reads it waits
"""


@dataclass
class Account:
    """An account with the stacks deployed, and one run."""

    folder: Path
    deployment: Deployment
    group: RehearsedGroups
    queue: str

    @property
    def record(self) -> RunRecord:
        return self.deployment.record("r1")

    @property
    def machines(self) -> list[Machine]:
        return list(self.group.machines.values())

    def launch(self, *endings: str, failures: int = 0) -> None:
        """What training.launch does; training ends so on each machine; `failures` came before."""
        s3, bucket = self.deployment.s3, self.deployment.bucket
        deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        s3.put_object(Bucket=bucket, Key="runs/r1/code.tar.gz", Body=packed_code())
        request = Request(
            run_id="r1",
            dataset="photos",
            arch="resnet50",
            train_arguments=["--epochs", "2"],
            deadline=deadline.isoformat(),
            estimate={"seconds": 600, "dollars": 0.01, "basis": "guessed"},
            mode="head",
            ensemble_size=1,
            version=VERSION,
            epochs=2,
            chunks=0,
            runtime="runtime/a/",
        )
        self.record.write("request.json", request)
        before = Attempt(
            instance_id="i-0",
            instance_type="c7i.large",
            zone="us-east-1a",
            purchase="spot",
            started=utc_now(),
            ended=utc_now(),
            outcome="failed",
        )
        self.record.set_status("requested", "", [before] * failures)
        activate_run(s3, bucket, CurrentRun(run_id="r1", runtime="runtime/a/"))
        self.deployment.book_end(deadline)
        self.deployment.book_fallback(20, deadline)
        self.deployment.start_machine()
        self.next_endings(*endings)

    def next_endings(self, *endings: str) -> None:
        """How training ends on the machines that start from now on."""
        file = self.folder / "endings"
        file.write_text("\n".join(endings))
        self.group.settings["ENDINGS"] = str(file)

    def machine_at(self, event: str, other_than: Machine | None = None) -> Machine:
        while True:
            machine = self.group.machine_at(event)
            assert machine, f"the group is at 0, and no machine ever came to {event}"
            if machine is not other_than:
                return machine

    def minute_passes(self) -> None:
        """The lease of a machine that is gone runs out."""
        s3, bucket = self.deployment.s3, self.deployment.bucket
        held = json.loads(s3.get_object(Bucket=bucket, Key=LEASE)["Body"].read())
        s3.put_object(Bucket=bucket, Key=LEASE, Body=json.dumps(held | {"expires": 0}).encode())

    def fallback_comes(self) -> None:
        """The time for which the on-demand machine is booked."""
        self.deployment.book_fallback(0, datetime.now(UTC) + timedelta(hours=1))

    def deadline_comes(self) -> None:
        self.deployment.book_end(datetime.now(UTC))

    def ends(self) -> None:
        """Wait for it, and look that nothing is left."""
        self.group.wait_for_end()
        assert self.group.states() == {"desired": 0, "instances": 0}
        assert not [
            it
            for it in psutil.process_iter(["cmdline"])
            if str(self.folder) in " ".join(it.info["cmdline"] or [])
        ]

    def state(self) -> str:
        return self.record.status()["state"]

    def message(self) -> str:
        return self.record.status()["message"]

    def outcomes(self) -> list[str]:
        return [attempt.get("outcome", "") for attempt in self.record.status()["attempts"]]

    def model(self) -> str:
        value: str = boto3.client("ssm").get_parameter(Name=PARAMETER)["Parameter"]["Value"]
        return value

    def told(self) -> list[str]:
        """Subjects of what the alert topic sent."""
        messages = boto3.client("sqs").receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10)
        return [json.loads(message["Body"])["Subject"] for message in messages.get("Messages", [])]

    def keys(self, prefix: str) -> list[str]:
        return list_keys(self.deployment.s3, self.deployment.bucket, prefix)

    def log(self, machine: Machine, run: str = "r1") -> str:
        """The machine's log in the run's folder."""
        key = f"runs/{run}/logs/{machine.metadata.instance_id}.log"
        body = self.deployment.s3.get_object(Bucket=self.deployment.bucket, Key=key)["Body"].read()
        return body.decode()

    def cloudwatch(self, machine: Machine, run: str = "r1") -> str:
        events = boto3.client("logs").filter_log_events(
            logGroupName=LOG_GROUP, logStreamNames=[f"{run}/{machine.metadata.instance_id}"]
        )["events"]
        return "\n".join(event["message"] for event in events)

    def until(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.05)

    def deploy_again(self, properties: Mapping[str, Any]) -> None:
        """What CloudFormation does with a group whose template has changed in some other part."""
        capacities = ("MinSize", "MaxSize", "DesiredCapacity")
        boto3.client("autoscaling").update_auto_scaling_group(
            AutoScalingGroupName=GROUP,
            **{name: int(properties[name]) for name in capacities if name in properties},
        )

    def forbid(self, action: str, resource: str = "*") -> None:
        """Take one right from the machines' role, with AWS's checks on."""
        statements = [
            {"Effect": "Allow", "Action": "*", "Resource": "*"},
            {"Effect": "Deny", "Action": action, "Resource": resource},
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        boto3.client("iam").put_role_policy(RoleName=ROLE, PolicyName="all", PolicyDocument=policy)
        check_permissions(True)

    def allow_everything(self) -> None:
        self.forbid("nothing:AtAll")


def packed_code() -> bytes:
    """code.tar.gz with the stand-in for training.train."""
    train = "training/train.py"
    return pack_code([place for place in ON_EC2 if place != train], {train: TRAINER.encode()})


def check_permissions(checked: bool) -> None:
    endpoint = boto3.client("s3").meta.endpoint_url
    body = b"0" if checked else b"inf"
    urllib.request.urlopen(
        urllib.request.Request(
            f"{endpoint}/moto-api/reset-auth", body, {"Content-Type": "text/plain"}
        )
    )


def administrator() -> boto3.Session:
    """A user whose rights do not end when permissions are checked."""
    iam = boto3.Session().client("iam")
    iam.create_user(UserName="admin")
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
    iam.put_user_policy(UserName="admin", PolicyName="all", PolicyDocument=policy)
    key = iam.create_access_key(UserName="admin")["AccessKey"]
    return boto3.Session(
        aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"]
    )


def deploy(processes: Processes, session: boto3.Session, endpoint: str, folder: Path) -> Account:
    """What the stacks leave, as far as machines can see it."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    for key in (
        "datasets/photos/manifest.json",
        "weights/resnet50.pth",
        "runtime/a/requirements.txt",
    ):
        s3.put_object(Bucket="bins", Key=key, Body=b"")
    boto3.client("ssm").put_parameter(Name=PARAMETER, Value="none", Type="String")
    boto3.client("logs").create_log_group(logGroupName=LOG_GROUP)
    sns, sqs = boto3.client("sns"), boto3.client("sqs")
    topic = sns.create_topic(Name="alerts")["TopicArn"]
    queue = sqs.create_queue(QueueName="alerts")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["QueueArn"])
    create_groups(
        boot_script(
            {
                "BUCKET": "bins",
                "GROUP_NAMES": " ".join(GROUPS),
                "MODEL_PARAMETER": PARAMETER,
                "TOPIC_ARN": topic,
                "LOG_GROUP": LOG_GROUP,
                "AWS_DEFAULT_REGION": "us-east-1",
                "VOLUME_GIB": "30",
            }
        )
    )
    group = RehearsedGroups(
        processes=processes,
        endpoint=endpoint,
        groups=GROUPS,
        folder=folder / "machines",
        say=print,
    )
    for name, seconds in {"POLL": 0.1, "STORE": 0.2, "ASK": 0.2, "RENEW": 0.2, "STOP": 2}.items():
        group.settings[f"SPOT_{name}_SECONDS"] = str(seconds)
    return Account(folder, Deployment(session, bucket="bins", groups=GROUPS), group, queue)


def create_groups(user_data: str) -> None:
    iam = boto3.client("iam")
    # The rehearsal takes the role itself, to hand its credentials to the machine.
    anyone = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [anyone]})
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=trust)
    profile = iam.create_instance_profile(InstanceProfileName=ROLE)["InstanceProfile"]
    iam.add_role_to_instance_profile(InstanceProfileName=ROLE, RoleName=ROLE)
    template = boto3.client("ec2").create_launch_template(
        LaunchTemplateName=GROUP,
        LaunchTemplateData={
            "ImageId": "ami-12c6146b",
            "InstanceType": "c7i.large",
            "IamInstanceProfile": {"Arn": profile["Arn"]},
            "UserData": b64encode(user_data.encode()).decode(),
        },
    )["LaunchTemplate"]
    chosen = {"LaunchTemplateId": template["LaunchTemplateId"], "Version": "1"}
    for name, on_demand_percentage in ((GROUP, 0), (ON_DEMAND, 100)):
        boto3.client("autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=0,
            MaxSize=1,
            AvailabilityZones=["us-east-1a"],
            MixedInstancesPolicy={
                "LaunchTemplate": {"LaunchTemplateSpecification": chosen},
                "InstancesDistribution": {
                    "OnDemandPercentageAboveBaseCapacity": on_demand_percentage
                },
            },
        )
