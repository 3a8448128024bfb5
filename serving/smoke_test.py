"""Test the deployed endpoint with one real photo, which the model also counts on this machine.

The photo is the first test photo of the data set that the model was trained on. Both answers must
agree.
"""

import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import numpy as np
from botocore.exceptions import BotoCoreError, ClientError

from common.chosen_model import NoModelError, chosen_model, run_of
from common.command import in_one_line, interruptible
from common.dataset import Photo, read_photos
from common.flags import command_line
from common.outputs import NotDeployedError, stack_output
from common.run_record import MODEL
from serving.client.predictor import ImagePredictor, NotReadyError
from serving.container.artifact import ModelError, has_vnni, load_model
from serving.container.inference import Prediction, count_photo
from serving.container.questions import RequestError
from serving.models import served_model

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Allowed differences in probability. Float32 differs by about 1e-6 between kinds of processors, and
# the endpoint rounds to 1e-6. In int8, a sum may be quantised to the next step; int8 and float32
# differ by a few hundredths. Another photo or another model differs by far more than TOLERANCE.
TOLERANCE = 1e-3
INT8_TOLERANCE = 0.03
INT8_TO_FLOAT = 0.1


class SmokeTestError(RuntimeError):
    """The endpoint does not answer as its model does; the message is one line."""


app = command_line("python -m serving.smoke_test", __doc__)


def check_endpoint() -> str:
    """Send one request to the endpoint; returns a line that describes the answer.

    Raises SmokeTestError when it serves another model than a deploy now would, or when its answer
    differs from the model's.
    """
    uri = chosen_model()
    served = served_model()
    if served != uri:
        raise SmokeTestError(
            f"the endpoint serves run {run_of(served)}, not {run_of(uri)}: "
            "run `npx cdk deploy EndpointStack`"
        )
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3 = boto3.client("s3")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / MODEL
        s3.download_file(bucket, key, str(archive))
        photo = first_test_photo(s3, bucket, _dataset_of(archive))
        expected = answers_here(archive, photo.jpeg)
    endpoint = ImagePredictor(endpoint=stack_output("EndpointStack", "EndpointName"))
    started = time.monotonic()
    answer = endpoint.predict(photo.jpeg)
    seconds = time.monotonic() - started
    here, _ = expected[0]
    if not any(largest_difference(answer, said) <= allowed for said, allowed in expected):
        raise SmokeTestError(
            f"{photo.id}.jpg: the endpoint counts {answer.count}, the same model {here.count} on "
            f"this machine (probabilities differ by {largest_difference(answer, here):.2g}): look "
            "at its log"
        )
    return (
        f"{photo.id}.jpg: counted {answer.count}, true {photo.count}, in {seconds:.2f} s; "
        f"run {run_of(uri)} answers the same on this machine"
    )


def answers_here(archive: Path, photo: bytes) -> list[tuple[Prediction, float]]:
    """Each prediction that is correct, with the allowed difference: the model's in float32, and if
    the endpoint may use int8, the one in int8 or a larger difference."""
    model = load_model(archive, precision="float32")
    in_float = count_photo(photo, model)
    if not model.has_int8:
        return [(in_float, TOLERANCE)]
    if not has_vnni():  # int8 is not exact on this machine
        return [(in_float, INT8_TO_FLOAT)]
    in_int8 = count_photo(photo, load_model(archive, precision="int8"))
    return [(in_float, TOLERANCE), (in_int8, INT8_TOLERANCE)]


def _dataset_of(archive: Path) -> str:
    """Name of the data set that the packed model was trained on. Raises SmokeTestError."""
    try:
        with tarfile.open(archive) as tar:
            description: Any = tar.extractfile("model.json")
            return str(json.load(description)["dataset"]["name"])
    except Exception as error:  # for a damaged archive tarfile raises nearly anything
        raise SmokeTestError(f"the model does not say its data set ({error!r:.100})") from error


def first_test_photo(s3: "S3Client", bucket: str, dataset: str) -> Photo:
    """The first photo of a data set's first test shard, whose remainder is not fetched."""
    folder = f"datasets/{dataset}"
    manifest = json.load(_get(s3, bucket, f"{folder}/manifest.json"))
    shard = manifest["shards"]["test"][0]["file"]
    with tarfile.open(fileobj=_get(s3, bucket, f"{folder}/{shard}"), mode="r|") as tar:
        return next(read_photos(tar))


def _get(s3: "S3Client", bucket: str, key: str) -> Any:
    """The object as a stream of bytes. Raises SmokeTestError when there is none."""
    try:
        return s3.get_object(Bucket=bucket, Key=key)["Body"]
    except s3.exceptions.NoSuchKey as error:
        raise SmokeTestError(f"s3://{bucket}/{key} is gone: prepare the data set again") from error


def largest_difference(answer: Prediction, expected: Prediction) -> float:
    """Largest difference between two predictions in the probability of a count; may be NaN."""
    if answer.probabilities.keys() != expected.probabilities.keys():
        return 1.0
    said, wanted = (
        np.array([prediction.probabilities[label] for label in expected.probabilities])
        for prediction in (answer, expected)
    )
    return float(np.abs(said - wanted).max())


@app.default
def smoke_test() -> None:
    print(check_endpoint())


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 1 when the endpoint fails the test."""
    try:
        app(arguments)
    except (
        ModelError,
        NoModelError,
        NotDeployedError,
        NotReadyError,
        RequestError,
        SmokeTestError,
        BotoCoreError,
        ClientError,
    ) as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    main()
