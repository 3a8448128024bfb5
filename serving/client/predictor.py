"""ImagePredictor: counts with an endpoint or with a model on this machine."""

import functools
import io
import json
import os
import random
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from PIL import Image
from tqdm import tqdm

from common.outputs import check_region, stack_output
from serving.container.artifact import load_model
from serving.container.inference import Prediction, count_photo
from serving.container.questions import RequestError

if TYPE_CHECKING:
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

STACK = "EndpointStack"
ENDPOINT_AT_ONCE = 5  # calls; the default limit of the serverless endpoint
LARGEST_PHOTO = 64 << 20  # bytes that are read from a URL
LARGEST_SENT = 4 << 20  # bytes; the largest request that a serverless endpoint accepts
SENT_SIDE = 2048  # maximum pixels a side of photos larger than LARGEST_SENT; networks use far fewer
BUSY_TRIES = 5  # for each photo while the endpoint is busy
BUSY_PAUSE = 1  # mean seconds between two tries
START_SECONDS = 120  # maximum time that a photo waits for an endpoint to start
START_PAUSE = 3  # mean seconds between two tries while it starts
URL_SECONDS = 30

Photo = str | Path | bytes


class NotReadyError(RuntimeError):
    """The endpoint does not start; the message is one line that says what to do."""


class ImagePredictor:
    """Counts items with an endpoint (its name) or a local model (folder or model.tar.gz).

    By default, the endpoint in the outputs of EndpointStack is used. The predictor may be used from
    several threads; more than `at_once` gain nothing. `name` identifies the endpoint or model.
    Raises ModelError, NotDeployedError or botocore's errors when that source does not exist.
    """

    def __init__(self, *, endpoint: str | None = None, model: str | Path | None = None) -> None:
        if endpoint and model:
            raise ValueError("give an endpoint or a model, not both")
        self._s3 = boto3.client("s3")
        self._count: Callable[[bytes], Prediction]
        if model:
            self.at_once = os.cpu_count() or 1
            loaded = load_model(model, threads=1)
            self.name = f"model {loaded.digest}"
            self._count = lambda photo: count_photo(photo, loaded)
        else:
            check_region()
            self.at_once = ENDPOINT_AT_ONCE
            name = endpoint or stack_output(STACK, "EndpointName")
            self.name = name
            retries = Config(retries={"mode": "adaptive", "max_attempts": 8})
            client = boto3.client("sagemaker-runtime", config=retries)
            self._answered = False

            def ask(photo: bytes) -> Prediction:
                answer = ask_endpoint(client, name, photo, started=self._answered)
                self._answered = True
                return answer

            self._count = ask

    def predict(self, photo: Photo) -> Prediction:
        """Count the items in a photo.

        A path, a URL (http, https, s3), or the bytes of a JPEG or PNG. Raises OSError when it
        cannot be read, botocore's errors when it is not in S3, RequestError when it is no photo,
        ValueError for another kind of URL, and NotReadyError when the endpoint has not started
        after START_SECONDS.
        """
        return self._count(self._bytes_of(photo))

    def _bytes_of(self, photo: Photo) -> bytes:
        if isinstance(photo, bytes):
            return photo
        if isinstance(photo, str) and photo.startswith(("http://", "https://")):
            with urllib.request.urlopen(photo, timeout=URL_SECONDS) as response:
                content: bytes = response.read(LARGEST_PHOTO)
            return content
        if isinstance(photo, str) and photo.startswith("s3://"):
            bucket, _, key = photo.removeprefix("s3://").partition("/")
            return self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        if isinstance(photo, str) and "://" in photo:
            raise ValueError("an address begins with http://, https:// or s3://")
        return Path(photo).read_bytes()


def ask_endpoint(
    client: "SageMakerRuntimeClient", name: str, photo: bytes, *, started: bool = False
) -> Prediction:
    """Send one photo to a SageMaker endpoint, a smaller copy if the photo is too large for it.

    Raises RequestError when the endpoint refuses the photo, fails on it, or stays busy, and
    NotReadyError when it does not start. If it has `started` before, no answer means that it has
    failed on the photo.
    """
    photo = smaller(photo) if len(photo) > LARGEST_SENT else photo
    response = _invoke(client, name, photo, started)
    try:
        answer = json.load(response["Body"])
        return Prediction(answer["count"], answer["mean"], answer["probabilities"])
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(502, f"endpoint {name} does not answer with a count") from error


def _invoke(client: "SageMakerRuntimeClient", name: str, photo: bytes, started: bool) -> Any:
    """The endpoint's response; repeats the request while it is busy or still starting."""
    tries, deadline = BUSY_TRIES, time.monotonic() + START_SECONDS
    while True:
        try:
            return client.invoke_endpoint(
                EndpointName=name,
                ContentType="application/x-image",
                Accept="application/json",
                Body=photo,
            )
        except ClientError as error:
            if why := _starting(error, started):
                if time.monotonic() >= deadline:
                    raise NotReadyError(
                        f"endpoint {name} did not start within {START_SECONDS} seconds ({why}): "
                        "run the command again in a few minutes; if that does not help, look at "
                        f"`aws logs tail /aws/sagemaker/Endpoints/{name}`"
                    ) from error
                _say_once(
                    f"endpoint {name} is starting ({why}): waiting for up to "
                    f"{START_SECONDS} seconds"
                )
                pause = START_PAUSE
            else:
                refused = _refusal(error, name)
                tries -= 1
                if refused.status != 503 or not tries:
                    raise refused from error
                pause = BUSY_PAUSE
        time.sleep(pause * random.uniform(0.5, 1.5))


def _starting(error: ClientError, started: bool) -> str | None:
    """Why an endpoint that has not started yet does not answer; None for another error.

    botocore retries none of these errors.
    """
    reply: dict[str, Any] = dict(error.response)
    if reply["Error"]["Code"] == "ModelNotReadyException":  # 429, of a serverless endpoint
        return "it is still being provisioned"
    if started:
        return None
    if reply.get("OriginalStatusCode") == 0:  # no container has answered
        return "its container did not answer in time"
    if reply["ResponseMetadata"]["HTTPStatusCode"] == 530:  # InternalDependencyException
        return "SageMaker answered 530"
    return None


@functools.cache  # once for all photos that wait
def _say_once(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _refusal(error: ClientError, name: str) -> RequestError:
    """The container's answer, which SageMaker wraps in a ModelError of its own.

    Raises `error` if it does not come from the container.
    """
    reply: dict[str, Any] = dict(error.response)
    if reply["ResponseMetadata"]["HTTPStatusCode"] == 413:  # SageMaker's limit, not ours
        # EndpointStack's names contain the kind.
        limit = f" ({LARGEST_SENT >> 20} MB)" if "serverless" in name else ""
        message = f"the photo is larger than the endpoint accepts{limit}, send a smaller one"
        return RequestError(413, message)
    if "OriginalStatusCode" not in reply:
        raise error
    message = reply.get("OriginalMessage", "") or "its container did not answer"
    try:
        message = json.loads(message)["error"]
    except (KeyError, TypeError, ValueError):
        message = " ".join(message.split())[:200]  # of a container that is not ours
    return RequestError(reply["OriginalStatusCode"], message)


def smaller(photo: bytes) -> bytes:
    """The photo as a JPEG of at most SENT_SIDE pixels a side.

    Returns an unreadable photo unchanged, so that the endpoint reports the reason.
    """
    try:
        with Image.open(io.BytesIO(photo), formats=("JPEG", "PNG")) as image:
            image.draft("RGB", (SENT_SIDE, SENT_SIDE))
            orientation = {"exif": image.getexif()} if image.getexif() else {}
            rgb = image.convert("RGB")
    except Exception:  # Pillow raises nearly anything for damaged files
        return photo
    rgb.thumbnail((SENT_SIDE, SENT_SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=95, **orientation)
    return buffer.getvalue()
