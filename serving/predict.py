"""Count the items in photos, with a deployed endpoint or a model on this machine.

    python -m serving.predict bin.jpg                           the endpoint of EndpointStack
    python -m serving.predict bins/ --model model.tar.gz        every photo of a folder
    python -m serving.predict s3://bucket/bins/ --output counts.csv
    python -m serving.predict bins/ --expected records.csv      which records are most likely wrong

With --output, each row goes to the file at once, and the same command goes on where it was
stopped. In Python: `ImagePredictor(model="model.tar.gz").predict("bin.jpg").count`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from tqdm import tqdm

from common.command import in_one_line, interruptible
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
MISSING = ("404", "NoSuchKey", "NoSuchBucket", "AccessDenied")  # of a photo in S3


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Without --endpoint and --model, the endpoint that {STACK} deployed is asked.",
    )
    flag = parser.add_argument
    flag(
        "places",
        nargs="+",
        metavar="PHOTO",
        help="JPEG or PNG: a file, a folder, a web address, or an S3 prefix (s3://bucket/prefix/)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--endpoint", metavar="NAME", help="SageMaker endpoint to ask")
    source.add_argument("--model", metavar="PATH", help="local model folder or model.tar.gz")
    flag(
        "--expected",
        type=Path,
        metavar="CSV",
        help="inventory records, columns `photo` and `count`: what is printed is ranked by how "
        "likely the record is wrong, and has that of photos with a record alone",
    )
    flag(
        "--output",
        type=Path,
        metavar="CSV",
        help="write each row to this file at once, and go on with what is there, if the same model "
        "or endpoint counted it; nothing is printed but, with --expected, the ranking",
    )
    flag(
        "--format",
        choices=FORMATS,
        default="table",
        help="what is printed, in the order of the photos (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    if args.output and not args.expected and args.format != "table":
        parser.error("--output is a CSV file, and nothing is printed: leave --format out")
    return args


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the counts; exit code 1 when any photo, or the endpoint or model, failed."""
    options = parse_arguments(arguments)
    try:
        records = read_records(options.expected) if options.expected else None
        predictor = ImagePredictor(endpoint=options.endpoint, model=options.model)
        names = photo_names(options.places)
        output = Output(options.output, predictor.name) if options.output else None
        counted, failed = count(predictor, names, output)
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
    if records is not None:
        counted, missing = with_records(counted, records)
        if missing:
            total = f"{len(missing)} photos have" if len(missing) > 1 else f"{missing[0]} has"
            print(f"{total} no record in {options.expected}: not ranked", file=sys.stderr)
        if unused := without_photo(names, records):
            named = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
            print(f"records without a photo here: {len(unused)} ({named})", file=sys.stderr)
    if records is not None or not options.output:
        sys.stdout.write(FORMATS[options.format](counted))
    if failed:
        sys.exit(1)


def count(
    predictor: ImagePredictor, names: Sequence[str], output: Output | None
) -> tuple[list[Counted], int]:
    """The counted photos in the order of `names`, and how many failed (named on stderr).

    Rows that are in `output` are taken from there, and each new one goes there at once.
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
    """Each name with what is counted there, or why nothing is; as many at once as pays."""
    with ThreadPoolExecutor(predictor.at_once) as pool:
        try:
            found = pool.map(lambda name: attempt(predictor, name), names)
            yield from zip(names, found, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def attempt(predictor: ImagePredictor, name: str) -> Prediction | str:
    """Raises NotReadyError, and botocore's errors where they are not the photo's."""
    try:
        return predictor.predict(name)
    except BotoCoreError:  # some of which are OSErrors, too
        raise
    except OSError as error:
        return error.strerror or in_one_line(error)
    except (HTTPException, ValueError) as error:  # RequestError, or an odd address
        return in_one_line(error)
    except ClientError as error:
        if name.startswith("s3://") and error.response["Error"]["Code"] in MISSING:
            return in_one_line(error)
        raise


if __name__ == "__main__":
    main()
