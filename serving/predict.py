"""Count the items in photos, with a deployed endpoint or a model on this machine.

For example:

    python -m serving.predict bin.jpg
    python -m serving.predict bins/ --model model.tar.gz
    python -m serving.predict s3://bucket/bins/ --output counts.csv
    python -m serving.predict bins/ --records records.csv

With --output, each row is written to the file immediately, and the same command continues after an
interruption. In Python: `ImagePredictor(model="model.tar.gz").predict("bin.jpg").count`.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Literal

from botocore.exceptions import BotoCoreError, ClientError
from cyclopts import Group, Parameter
from cyclopts.validators import mutually_exclusive
from tqdm import tqdm

from common.command import in_one_line, interruptible
from common.flags import command_line
from common.outputs import NotDeployedError
from serving.client.counted import (
    Counted,
    FileError,
    Output,
    as_csv,
    as_json,
    as_table,
    read_records,
    with_records,
    without_photo,
)
from serving.client.places import NoPhotosError, photo_names
from serving.client.predictor import STACK, ImagePredictor, NotReadyError
from serving.container.artifact import ModelError
from serving.container.inference import Prediction

FORMATS = {"table": as_table, "csv": as_csv, "json": as_json}
MISSING = ("404", "NoSuchKey", "NoSuchBucket", "AccessDenied")  # error codes for a photo in S3
SOURCE = Group(
    "Source",
    help=f"By default, the endpoint that {STACK} deployed.",
    validator=mutually_exclusive,
)

app = command_line("python -m serving.predict", __doc__)


@app.default
def predict(
    photo: list[str],
    /,
    *,
    endpoint: Annotated[str | None, Parameter(group=SOURCE)] = None,
    model: Annotated[Path | None, Parameter(group=SOURCE)] = None,
    records: Path | None = None,
    output: Path | None = None,
    format: Literal["table", "csv", "json"] = "table",
) -> None:
    """Print the counts; exit code 1 when a photo, or the endpoint or model, failed.

    Args:
        photo: JPEG or PNG: files, folders, URLs, or S3 prefixes (s3://bucket/prefix/).
        endpoint: Name of a SageMaker endpoint.
        model: Local model folder or model.tar.gz.
        records: CSV file of inventory records, with the columns `photo` and `count`. Only photos
            with a record are then printed, those whose record is most likely wrong first.
        output: CSV file to which each row is written immediately. Rows that the same model or
            endpoint has written there earlier are kept and not counted again. Nothing is printed
            except, with --records, the ranking.
        format: Format of what is printed.
    """
    if output and not records and format != "table":
        print("error: --output is a CSV file, so --format has no effect", file=sys.stderr)
        sys.exit(2)
    try:
        counts = read_records(records) if records else None
        predictor = ImagePredictor(endpoint=endpoint, model=model)
        names = photo_names(photo)
        rows = Output(output, predictor.name) if output else None
        counted, failed = count(predictor, names, rows)
    except (
        FileError,
        ModelError,
        NoPhotosError,
        NotDeployedError,
        NotReadyError,
        BotoCoreError,
        ClientError,
    ) as error:
        sys.exit(f"error: {in_one_line(error)}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {place}{error.strerror or in_one_line(error)}")
    if counts is not None:
        counted = _ranked(counted, counts)
        if unused := without_photo(names, counts):
            named = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
            print(f"records without a photo here: {len(unused)} ({named})", file=sys.stderr)
    if counts is not None or not output:
        sys.stdout.write(FORMATS[format](counted))
    if failed:
        sys.exit(1)


def _ranked(counted: Sequence[Counted], records: Mapping[str, int]) -> list[Counted]:
    """The photos with a record, the one most likely wrong first; the others are reported."""
    ranked, missing = with_records(counted, records)
    if missing:
        total = f"{len(missing)} photos have" if len(missing) > 1 else f"{missing[0]} has"
        print(f"{total} no record: not ranked", file=sys.stderr)
    return ranked


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    app(arguments)


def count(
    predictor: ImagePredictor, names: Sequence[str], output: Output | None
) -> tuple[list[Counted], int]:
    """The counted photos in the order of `names`, and how many failed (reported on stderr).

    Rows that are in `output` are taken from there, and each new one is written there immediately.
    """
    counted = {each.file: each for each in output.counted} if output else {}
    left = [name for name in names if name not in counted]
    done = len(names) - len(left)
    bar = tqdm(total=len(names), initial=done, unit="photo", delay=0.5, leave=False)
    try:
        for name, outcome in predictions(predictor, left):
            bar.update()
            if isinstance(outcome, Prediction):
                counted[name] = Counted(name, outcome)
                if output:
                    output.add(counted[name])
            else:
                tqdm.write(f"{name}: {outcome}", file=sys.stderr)
    finally:
        bar.close()
        if output:
            output.close()
    found = [counted[name] for name in names if name in counted]
    return found, len(names) - len(found)


def predictions(
    predictor: ImagePredictor, names: Sequence[str]
) -> Iterator[tuple[str, Prediction | str]]:
    """Each name with its prediction, or why there is none; several photos are counted at once."""
    with ThreadPoolExecutor(predictor.at_once) as pool:
        try:
            found = pool.map(lambda name: attempt(predictor, name), names)
            yield from zip(names, found, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def attempt(predictor: ImagePredictor, name: str) -> Prediction | str:
    """Raises NotReadyError, and botocore's errors that do not concern this photo alone."""
    try:
        return predictor.predict(name)
    except BotoCoreError:  # some of them are OSErrors as well
        raise
    except OSError as error:
        return error.strerror or in_one_line(error)
    except (HTTPException, ValueError) as error:  # RequestError, or an unusable URL
        return in_one_line(error)
    except ClientError as error:
        if name.startswith("s3://") and error.response["Error"]["Code"] in MISSING:
            return in_one_line(error)
        raise


if __name__ == "__main__":
    main()
