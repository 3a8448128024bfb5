"""Count the items in photos, with a deployed endpoint or a model on this machine.

    python -m serving.predict bin.jpg                       the endpoint of EndpointStack
    python -m serving.predict bins/*.jpg --model model.tar.gz --format csv

In Python: `ImagePredictor(model="model.tar.gz").predict("bin.jpg").count`.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image, ImageOps
from tqdm import tqdm

from costs.table import table
from infra.command import in_one_line, interruptible
from infra.outputs import NotDeployedError, stack_output
from serving.inference import ModelError, Prediction, RequestError, load_model, predict_fn

if TYPE_CHECKING:
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

STACK = "EndpointStack"

Photo = str | Path | bytes | Image.Image


class ImagePredictor:
    """Counts items by asking an endpoint (its name) or a local model (folder or model.tar.gz).

    With neither, the endpoint that EndpointStack names in its outputs is asked.
    Raises ModelError, NotDeployedError or botocore's errors when that source is not there.
    """

    def __init__(self, *, endpoint: str | None = None, model: str | Path | None = None) -> None:
        if endpoint and model:
            raise ValueError("give an endpoint or a model, not both")
        self._count: Callable[[bytes], Prediction]
        if model:
            loaded = load_model(model)
            self._count = lambda photo: predict_fn(photo, loaded)
        else:
            name = endpoint or stack_output(STACK, "EndpointName")
            client = boto3.client("sagemaker-runtime")
            self._count = lambda photo: ask_endpoint(client, name, photo)

    def predict(self, photo: Photo) -> Prediction:
        """Count the items in a photo: a path, the bytes of a JPEG or PNG, or a Pillow image.

        Raises OSError when a file cannot be read, RequestError when it is no photo.
        """
        if isinstance(photo, Image.Image):
            buffer = io.BytesIO()
            ImageOps.exif_transpose(photo).convert("RGB").save(buffer, "PNG")
            photo = buffer.getvalue()
        if not isinstance(photo, bytes):
            photo = Path(photo).read_bytes()
        return self._count(photo)


def ask_endpoint(client: "SageMakerRuntimeClient", name: str, photo: bytes) -> Prediction:
    """Send one photo to a SageMaker endpoint; raises RequestError when it refuses the photo."""
    try:
        response = client.invoke_endpoint(
            EndpointName=name,
            ContentType="application/x-image",
            Accept="application/json",
            Body=photo,
        )
    except ClientError as error:
        reply: dict[str, Any] = dict(error.response)
        if reply["ResponseMetadata"]["HTTPStatusCode"] == 413:  # SageMaker's limit, not ours
            raise RequestError(413, "the photo is larger than the endpoint takes") from error
        # What the container answered is wrapped in a ModelError of SageMaker's own.
        if 400 <= reply.get("OriginalStatusCode", 0) < 500:
            message = json.loads(reply["OriginalMessage"])["error"]
            raise RequestError(reply["OriginalStatusCode"], message) from error
        raise
    answer = json.load(response["Body"])
    return Prediction(answer["count"], answer["expected"], answer["probabilities"])


def columns(rows: Sequence[tuple[str, Prediction]]) -> str:
    """A table for reading: file, count, expected, the probability of each count."""
    if not rows:
        return ""
    header = ["file", "count", "expected", *(f"P({label})" for label in rows[0][1].probabilities)]
    cells = [
        [
            file,
            str(prediction.count),
            f"{prediction.expected:.2f}",
            *(f"{share:.2f}" for share in prediction.probabilities.values()),
        ]
        for file, prediction in rows
    ]
    return table(header, cells) + "\n"


def comma_separated(rows: Sequence[tuple[str, Prediction]]) -> str:
    """CSV with a header: file, count, expected, probability_1, …"""
    labels = list(rows[0][1].probabilities) if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "count", "expected", *(f"probability_{label}" for label in labels)])
    for file, prediction in rows:
        shares = prediction.probabilities.values()
        writer.writerow([file, prediction.count, prediction.expected, *shares])
    return text.getvalue()


def json_list(rows: Sequence[tuple[str, Prediction]]) -> str:
    """One JSON list of {"file", "count", "expected", "probabilities"}."""
    return json.dumps([{"file": file, **vars(answer)} for file, answer in rows], indent=1) + "\n"


FORMATS = {"table": columns, "csv": comma_separated, "json": json_list}


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the counts; exit code 1 when any photo, or the endpoint or model, failed."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.predict",
        description="Count the items in photos of bins.",
        epilog=f"Without --endpoint and --model, the endpoint that {STACK} deployed is asked.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="JPEG or PNG photo")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--endpoint", metavar="NAME", help="SageMaker endpoint to ask")
    source.add_argument("--model", metavar="PATH", help="local model folder or model.tar.gz")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="what is printed, in the order of the files (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        predictor = ImagePredictor(endpoint=options.endpoint, model=options.model)
        rows, failed = count_files(predictor, options.files)
    except (ModelError, NotDeployedError, BotoCoreError, ClientError) as error:
        parser.exit(1, f"error: {in_one_line(error)}\n")
    sys.stdout.write(FORMATS[options.format](rows))
    if failed:
        parser.exit(1)


def count_files(
    predictor: ImagePredictor, files: Sequence[str]
) -> tuple[list[tuple[str, Prediction]], int]:
    """The predictions in the order of the files, and how many files failed (named on stderr)."""
    rows: list[tuple[str, Prediction]] = []
    for file in tqdm(files, unit="photo", disable=len(files) == 1, delay=0.5):
        try:
            rows.append((file, predictor.predict(file)))
        except OSError as error:
            tqdm.write(f"{file}: {error.strerror}", file=sys.stderr)
        except RequestError as error:
            tqdm.write(f"{file}: {error}", file=sys.stderr)
    return rows, len(files) - len(rows)


if __name__ == "__main__":
    main()
