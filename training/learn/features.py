"""The backbone runs once over the data; its features are kept in chunks that survive a restart."""

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Never

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from common.dataset import Dataset, PhotoIndex, Side
from common.files import replacing
from common.signals import StoppedError
from serving.container import preprocess
from serving.container.artifact import has_vnni
from training.learn import quantize
from training.learn.distributed import ALONE, World
from training.learn.model import Backbone, export_onnx, fold_batch_norm
from training.learn.photos import AHEAD, decode, map_ahead
from training.learn.precision import DTYPES
from training.learn.quantize import quantize_onnx
from training.settings import CHUNK_PHOTOS

Precision = Literal["float32", "bfloat16", "int8"]
Extract = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # pixels → features

BATCH_PHOTOS = 8  # more are no faster, and their feature maps are in memory
VIEWS = 2  # as it is, and mirrored
CALIBRATION_BATCH = 2  # calibration keeps every feature map of a batch in memory
CALIBRATION_PHOTOS = 32  # of EfficientNet-Lite0; the features of 128 were no nearer to float32


class PrecisionError(ValueError):
    """This machine cannot compute with the precision asked for; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """One side of a data set as the head sees it; row i of each field is the same photo."""

    ids: list[str]
    groups: list[str]
    counts: NDArray[np.int64]  # [photos]
    views: NDArray[np.float16]  # [photos, VIEWS, features]


def features_key(
    dataset: Dataset, arch: str, weights: Path, size: int, precision: Precision = "float32"
) -> str:
    """What the features depend on, as 16 hex digits: photos, preprocessing, pixels a side,
    backbone, weights, precision. Preprocessing and pooling count as the source has them."""
    parts = [
        dataset.manifest_sha256,
        arch,
        hashlib.sha256(weights.read_bytes()).hexdigest(),
        f"{CHUNK_PHOTOS} photos, {VIEWS} views, {size} pixels",
        inspect.getsource(preprocess),
        inspect.getsource(Backbone),
    ]
    if precision == "bfloat16":
        parts.append("bfloat16")
    if precision == "int8":
        parts += [f"calibrated on {CALIBRATION_PHOTOS} photos", inspect.getsource(quantize)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def compute_features(
    dataset: Dataset,
    side: Side,
    backbone: Backbone,
    folder: Path,
    *,
    size: int,
    precision: Precision = "float32",
    threads: int,
    device: torch.device,
    should_stop: Callable[[], bool],
    world: World = ALONE,
) -> Features:
    """Run the backbone over the photos of one side: through ONNX Runtime on the CPU, in bfloat16
    or on a GPU through PyTorch. int8 is for CPUs in any case.

    Chunks already in `folder` are taken as they are, so that a second call goes on where the
    first was stopped. With int8 the backbone is quantised on the first photos of the training
    side, and kept in `folder` for the other side and for later calls. Several processes share the
    chunks, and afterwards each has all of them in its `folder`. Raises StoppedError as soon
    as `should_stop()`, at the end of a batch; PrecisionError if int8 is still to be computed on a
    CPU without VNNI: its sums may saturate, and 7 bits would make other features than elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photos = dataset.index(side)
    chunks = {
        folder / f"{side}-{number:05d}.npy": rows
        for number, rows in enumerate(_pieces(range(len(photos)), CHUNK_PHOTOS))
    }
    mine = dict(list(chunks.items())[world.rank :: world.size])
    missing = {file: rows for file, rows in mine.items() if not _is_chunk(file, len(rows))}
    if world.any(bool(missing)):
        if precision == "int8" and not has_vnni():
            raise PrecisionError(
                "int8 needs a CPU with VNNI (avx512_vnni or avx_vnni): use float32 on this one"
            )
        calibration = _Calibration(dataset, size, should_stop)
        if precision == "bfloat16" or (precision == "float32" and device.type != "cpu"):
            extract = _in_torch(backbone, DTYPES[precision], device)
        else:
            if world.local_rank == 0:  # makes the file that the others on its machine read
                _in_onnx_runtime(backbone, folder, size, precision, threads, calibration)
            world.barrier()
            extract = _in_onnx_runtime(backbone, folder, size, precision, threads, calibration)
        total, left = (sum(map(len, part.values())) for part in (mine, missing))
        with tqdm(total=total, desc=f"features {side}", unit="photo") as progress:
            progress.update(total - left)
            _run(extract, photos, missing, size, threads, progress, should_stop)
    _exchange(chunks, mine, world)
    return Features(
        ids=photos.ids,
        groups=photos.groups,
        counts=photos.counts,
        views=np.concatenate([np.load(file, mmap_mode="r") for file in chunks]),
    )


def _exchange(chunks: dict[Path, range], mine: dict[Path, range], world: World) -> None:
    """Give the processes on other machines, which see other files, what this one computed."""
    world.barrier()
    if not world.any(not all(_is_chunk(file, len(rows)) for file, rows in chunks.items())):
        return
    for computed in world.gather({file.name: np.load(file) for file in mine}):
        for file, rows in chunks.items():
            if file.name in computed and not _is_chunk(file, len(rows)):
                _write_chunk(file, computed[file.name])


class _Calibration:
    """Batches of the first photos of the training side, until asked to stop."""

    def __init__(self, dataset: Dataset, size: int, should_stop: Callable[[], bool]) -> None:
        self._photos, self._size = dataset.index("train"), size
        self._should_stop = should_stop
        photos = min(len(self._photos), CALIBRATION_PHOTOS)
        self._batches = _pieces(range(photos), CALIBRATION_BATCH)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for rows in self._batches:
            if self._should_stop():
                raise StoppedError
            yield decode(self._photos, rows, self._size, pinned=False).numpy()


def _in_torch(backbone: Backbone, dtype: torch.dtype, device: torch.device) -> Extract:
    """A copy of the backbone as PyTorch runs it fastest; the caller sets the threads."""
    fast = copy.deepcopy(backbone).eval()
    fold_batch_norm(fast.network)
    fast.to(device).network.to(dtype, memory_format=torch.channels_last)
    fast.dtype = dtype

    def extract(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            features: NDArray[np.float32] = fast(torch.from_numpy(pixels).to(device)).cpu().numpy()
        return features

    return extract


def _in_onnx_runtime(
    backbone: Backbone,
    folder: Path,
    size: int,
    precision: Precision,
    threads: int,
    calibration: Iterable[NDArray[np.uint8]],
) -> Extract:
    """The backbone in ONNX Runtime; `folder` keeps its file for the other side of the data set."""
    exported = folder / ".backbone.onnx"  # hidden: not stored with the chunks
    quantized = folder / "backbone-int8.onnx"  # stored: another machine may round differently
    file = exported if precision == "float32" else quantized
    if not _is_model(file):
        _export(backbone, exported, size)
        if precision == "int8":
            quantize_onnx(exported, quantized, calibration)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run(None, {"pixels": pixels})[0])


def _is_model(file: Path) -> bool:
    """Whether ONNX Runtime can load `file`: it is there, and was not cut off on its way here."""
    try:
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime's errors have no base of their own
        return False
    return True


def _export(backbone: Backbone, file: Path, size: int) -> None:
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with replacing(file) as partial:
        export_onnx(backbone, example, partial, names=("pixels", "features"))


def _run(
    extract: Extract,
    photos: PhotoIndex,
    chunks: dict[Path, range],
    size: int,
    threads: int,
    progress: "tqdm[Never]",
    should_stop: Callable[[], bool],
) -> None:
    """Write each of `chunks`, given as file → rows of `photos`: [photos, VIEWS, features]."""
    batches = [rows for chunk in chunks.values() for rows in _pieces(chunk, BATCH_PHOTOS)]
    decoded = map_ahead(
        lambda rows: decode(photos, rows, size, pinned=False).numpy(),
        batches,
        threads=threads,
        ahead=AHEAD,
    )
    for file, chunk in chunks.items():
        views = []
        for pixels in islice(decoded, len(_pieces(chunk, BATCH_PHOTOS))):
            if should_stop():
                raise StoppedError
            both = np.concatenate([pixels, pixels[:, :, ::-1]])
            features = extract(both).astype(np.float16)
            views.append(np.stack(np.split(features, VIEWS), axis=1))
            progress.update(len(pixels))
        _write_chunk(file, np.concatenate(views))


def _pieces(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _is_chunk(file: Path, photos: int) -> bool:
    """Whether `file` has the features of so many photos: it is there, and was not cut off."""
    try:
        views = np.load(file, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return False
    return bool(views.shape[:2] == (photos, VIEWS))


def _write_chunk(file: Path, views: NDArray[np.float16]) -> None:
    with replacing(file) as partial, partial.open("wb") as stream:
        np.save(stream, views)
