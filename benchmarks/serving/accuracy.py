"""What a trained model loses on its way to the server, each photo against itself.

    python -m benchmarks.serving.accuracy --model out/model --data .accuracy/data/datasets/bins \\
        --native abid-native-400.tar

In int8: with 8 bits a weight, as it is served, and with 7 (`reduce_range`), which keep sums from
saturating on CPUs without VNNI. Calibrated on photos that the model was trained on, judged on its
validation photos. And on photos at their native size, as they are served, against the same photos
packed as for training. Needs a CPU with VNNI. Tables in Markdown go to stdout.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training.measure import BenchmarkError
from benchmarks.training.photos import native_entries, unpack_photos
from benchmarks.training.report import difference, number, table
from common.command import in_one_line, interruptible
from common.dataset import DatasetError, open_dataset
from data_prep.pack import encode
from serving.container.artifact import NETWORKS, Model, ModelError, has_vnni, load_model
from serving.container.preprocess import to_pixels
from training.export.int8 import calibration_batches, compare, probabilities_of
from training.learn.quantize import quantize_onnx
from training.learn.task import split_validation

VARIANTS = {"8 bits a weight": False, "7 bits a weight": True}


def judge_int8(model: Path, data: Path) -> dict[str, dict[str, Any]]:
    """Variant → what training.export.int8.compare says of it. Raises OSError, DatasetError,
    BenchmarkError."""
    if not has_vnni():
        raise BenchmarkError("int8 is exact on CPUs with VNNI alone: use another machine")
    description = json.loads((model / "model.json").read_text())
    if "settings" not in description:
        raise BenchmarkError(f"{model} does not say how it was trained: name a run's model folder")
    settings, size = description["settings"], description["size"]
    dataset = open_dataset(data)
    photos = dataset.index("train")
    fitted, held_out = split_validation(photos, settings["validation_fraction"])
    validation = photos.subset(held_out)
    float_model = model / NETWORKS["float32"]
    in_float = probabilities_of(float_model, validation, size)
    batches = calibration_batches(photos.subset(fitted), size)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, reduced in VARIANTS.items():
            file = Path(folder) / "int8.onnx"
            quantize_onnx(float_model, file, batches, reduce_range=reduced)
            in_int8 = probabilities_of(file, validation, size)
            found[name] = compare(
                in_float, in_int8, validation.counts, dataset.counts, settings["decision"]
            )
    return found


def describe_int8(found: dict[str, dict[str, Any]]) -> str:
    """Differences to float32, with 95 % intervals."""

    rows = [
        [
            name,
            difference(each["cross_entropy_difference"], 1, 4),
            difference(each["exact_difference"], 100, 1),
            "yes" if each["served"] else "no",
        ]
        for name, each in found.items()
    ]
    return table(["int8 against float32", "loss", "exact, points", "would be served"], rows)


def compare_native(model: Model, photos: Sequence[Path], packed_size: int) -> dict[str, float]:
    """How answers to photos as they are differ from those to the same photos as data_prep packs
    them, `packed_size` pixels a side."""
    both = [(file.read_bytes(), encode(file, packed_size)) for file in photos]
    native, packed = (
        np.stack([to_pixels(photo, model.size) for photo in form if photo])
        for form in zip(*both, strict=True)
    )
    said, said_packed = (
        np.concatenate([model.probabilities(row[np.newaxis]) for row in pixels])
        for pixels in (native, packed)
    )
    apart = np.abs(native.astype(np.int16) - packed.astype(np.int16))
    return {
        "photos": float(len(photos)),
        "mean difference of a pixel, of 255": float(apart.mean()),
        "mean difference of a probability": float(np.abs(said - said_packed).mean()),
        "same most probable count, %": 100.0
        * float((said.argmax(axis=1) == said_packed.argmax(axis=1)).mean()),
    }


def run(args: argparse.Namespace) -> None:
    print(describe_int8(judge_int8(args.model, args.data)))
    if args.native:
        with tempfile.TemporaryDirectory() as folder:
            unpack_photos(args.native, Path(folder))
            photos = [entry.file for entry in native_entries(Path(folder))]
            model = load_model(args.model, precision="float32")
            found = compare_native(model, photos, open_dataset(args.data).size)
        rows = [[name, number(value)] for name, value in found.items()]
        print(f"\n{table(['native against packed', ''], rows)}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder of a run")
    parser.add_argument("--data", type=Path, required=True, help="its data set, packed")
    parser.add_argument(
        "--native",
        type=Path,
        metavar="TAR",
        help="photos at native size, laid out as the public bucket (default: none)",
    )
    try:
        run(parser.parse_args(arguments))
    except (BenchmarkError, DatasetError, ModelError, OSError, ValueError) as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    with interruptible():
        main()
