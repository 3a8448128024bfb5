"""Squashed to a square, or the short side to its length: what a photo's shape is worth.

    python -m benchmarks.photo_shape --photos abid-224.tar --native abid-native-400.tar

A photo becomes 192 × 192 as ours do, squashed; or its short side becomes 192, and the square in its
middle is cut out; or its short side becomes 192 and all of it is kept, which the network takes
because it averages over all places. A linear head on features of EfficientNet-Lite0, of the photo
and its mirror image, is trained on nine tenths of the products and judged on the last, ten times,
so that each photo is judged once; each shape has the penalty on its head's weights that suits it
best. Photos are those of native size on the training side of the large tar; its test side is not
looked at. A table in Markdown goes to stdout.
"""

import argparse
import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from benchmarks.accuracy import DATASET, prepare
from benchmarks.training_report import describe_machine, difference, machine, table
from data_prep.folder import DataError, dataset_path
from infra.command import in_one_line, interruptible
from serving.preprocess import to_pixels
from training.data import open_dataset
from training.export_int8 import compare
from training.model import Backbone, load_backbone

ARCH = "efficientnet_lite0"
SIZE = 192
FOLDS = 10
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)  # on the squared weights of the head

Shape = Callable[[bytes], NDArray[np.uint8]]  # a photo's bytes → RGB pixels [height, width, 3]


def squashed(photo: bytes) -> NDArray[np.uint8]:
    return to_pixels(photo, SIZE)


def whole(photo: bytes) -> NDArray[np.uint8]:
    """The short side becomes SIZE."""
    with Image.open(io.BytesIO(photo)) as image:
        scale = SIZE / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        image.draft("RGB", (width, height))
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def cut(photo: bytes) -> NDArray[np.uint8]:
    """The square in the middle."""
    pixels = whole(photo)
    top, left = ((side - SIZE) // 2 for side in pixels.shape[:2])
    return pixels[top : top + SIZE, left : left + SIZE]


SHAPES: dict[str, Shape] = {
    "squashed, as ours": squashed,
    "short side, cut to a square": cut,
    "short side, all of it": whole,
}


@torch.inference_mode()
def features_of(backbone: Backbone, photos: list[bytes], shape: Shape) -> torch.Tensor:
    """Of each photo and of its mirror image, float32 [photos, 2, features]."""
    found = []
    for photo in tqdm(photos, desc=shape.__name__, unit=" photos"):
        pixels = torch.from_numpy(shape(photo).copy())
        views = [pixels[None], pixels.flip(1)[None]]
        found.append(torch.cat([backbone(view) for view in views]))
    return torch.stack(found)


def probabilities(
    features: torch.Tensor, classes: torch.Tensor, folds: NDArray[np.int64], penalty: float
) -> NDArray[np.float32]:
    """Of each photo by the head that was trained without its fold, [photos, classes]."""
    found = torch.zeros(len(classes), int(classes.max()) + 1)
    for fold in range(FOLDS):
        judged = torch.from_numpy(folds == fold)
        known = features[~judged]
        mean, spread = known.mean((0, 1)), known.std((0, 1)) + 1e-6
        head = fit((known - mean) / spread, classes[~judged], penalty)
        logits = head((features[judged] - mean) / spread)
        found[judged] = logits.log_softmax(2).mean(1).softmax(1)
    return found.numpy()


def best(
    features: torch.Tensor, classes: torch.Tensor, folds: NDArray[np.int64]
) -> tuple[float, NDArray[np.float32]]:
    """The penalty with the lowest loss, and the probabilities with it."""
    tried = {penalty: probabilities(features, classes, folds, penalty) for penalty in PENALTIES}
    return min(tried.items(), key=lambda item: loss_of(item[1], classes))


def loss_of(found: NDArray[np.float32], classes: torch.Tensor) -> float:
    """Mean cross-entropy of the probabilities, nats."""
    return float(-np.log(found[np.arange(len(classes)), classes]).mean())


def fit(
    features: torch.Tensor, classes: torch.Tensor, penalty: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Softmax regression of features [photos, views, features], to its optimum."""
    weights = torch.zeros(features.shape[2], int(classes.max()) + 1, requires_grad=True)
    bias = torch.zeros(weights.shape[1], requires_grad=True)
    targets = classes[:, None].expand(-1, features.shape[1]).flatten()
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=500, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        value = functional.cross_entropy((features @ weights + bias).flatten(0, 1), targets)
        value = value + penalty * weights.square().sum()
        value.backward()
        return value.item()

    optimizer.step(loss)
    return lambda other: (other @ weights + bias).detach()


def fold_of(group: str) -> int:
    return int.from_bytes(hashlib.sha256(f"fold:{group}".encode()).digest()[:8], "big") % FOLDS


def lost(photo: bytes) -> float:
    """The share of its area that a square cut out of its middle leaves out."""
    with Image.open(io.BytesIO(photo)) as image:
        return 1 - min(image.size) / max(image.size)


def report(folder: Path, native: dict[str, bytes]) -> str:
    dataset = open_dataset(dataset_path(folder, DATASET))
    index = dataset.index("train")
    rows = [row for row, photo_id in enumerate(index.ids) if photo_id in native]
    if not rows:
        raise DataError("no photo of --native is on the training side of --photos")
    photos = [native[index.ids[row]] for row in rows]
    truth = index.counts[rows]
    classes = torch.from_numpy(np.searchsorted(np.array(dataset.counts), truth))
    folds = np.array([fold_of(index.groups[row]) for row in rows])
    backbone = load_backbone(ARCH, folder / "weights" / f"{ARCH}.pth", all_stages=True)
    judged = {
        name: best(features_of(backbone, photos, shape), classes, folds)
        for name, shape in SHAPES.items()
    }
    _, ours = next(iter(judged.values()))
    lines = []
    for name, (penalty, each) in judged.items():
        found = compare(ours, each, truth, dataset.counts, "argmax")
        exact = np.array(dataset.counts)[each.argmax(1)] == truth
        lines.append(
            [
                name,
                f"{exact.mean():.1%}",
                difference(found["exact_difference"], 100, 1),
                f"{loss_of(each, classes):.3f}",
                difference(found["cross_entropy_difference"], 1, 3),
                f"{penalty:g}",
            ]
        )
    header = ["shape", "exact", "points against ours", "loss", "loss against ours", "penalty"]
    away = np.percentile([lost(photo) for photo in photos], [50, 90])
    return (
        f"{len(photos)} photos; a square out of its middle leaves out {away[0]:.0%} of a photo "
        f"(median), of one in ten {away[1]:.0%} or more\n\n{table(header, lines)}"
    )


@interruptible()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.photo_shape",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--photos", type=Path, required=True, help="a tar laid out as the public bucket")
    flag("--native", type=Path, required=True, help="some of the same photos at native size")
    flag("--folder", type=Path, default=Path(".shape"), help="all it writes (%(default)s)")
    args = parser.parse_args()
    try:
        prepare(args.folder, args.photos)
        with tarfile.open(args.native) as tar:
            files = {name: tar.extractfile(name) for name in tar.getnames() if ".jpg" in name}
            native = {Path(name).stem: file.read() for name, file in files.items() if file}
        found = report(args.folder, native)
    except (DataError, OSError, tarfile.TarError) as error:
        sys.exit(f"error: {in_one_line(error)}")
    print(describe_machine(machine(os.cpu_count() or 1)))
    print(found)


if __name__ == "__main__":
    main()
