"""The backbone runs once over the data; its features are kept in chunks that survive a restart."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Never

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from serving.preprocess import to_pixels
from training.data import Dataset, Photo, Side
from training.model import Backbone, export_onnx
from training.settings import CHUNK_PHOTOS

BATCH_PHOTOS = 32
VIEWS = 2  # as it is, and mirrored


class StoppedError(Exception):
    """Asked to stop; everything finished so far is on disk."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """One side of a data set as the head sees it; row i of each field is the same photo."""

    ids: list[str]
    groups: list[str]
    counts: NDArray[np.int64]  # [photos]
    views: NDArray[np.float16]  # [photos, VIEWS, features]


def features_key(dataset: Dataset, arch: str, weights: Path) -> str:
    """What the features depend on, as 16 hex digits: photos, backbone, weights."""
    weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    parts = [dataset.manifest_sha256, arch, weights_sha256, f"{CHUNK_PHOTOS} photos, {VIEWS} views"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def compute_features(
    dataset: Dataset,
    side: Side,
    backbone: Backbone,
    folder: Path,
    *,
    threads: int,
    should_stop: Callable[[], bool],
) -> Features:
    """Run the backbone, through ONNX Runtime, over the photos of one side.

    Chunks already in `folder` are taken as they are, so that a second call goes on where the
    first was stopped. Raises StoppedError as soon as `should_stop()`, at the end of a batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    session: onnxruntime.InferenceSession | None = None
    onnx_file = folder / ".backbone.onnx"  # hidden: not stored with the chunks
    photos = dataset.photos(side)
    ids: list[str] = []
    groups: list[str] = []
    counts: list[int] = []
    chunks: list[NDArray[np.float16]] = []
    with tqdm(total=dataset.photo_total(side), desc=f"features {side}", unit="photo") as progress:
        while chunk := list(islice(photos, CHUNK_PHOTOS)):
            file = folder / f"{side}-{len(chunks):05d}.npy"
            views = _read_chunk(file, len(chunk))
            if views is None:
                session = session or _session(backbone, onnx_file, dataset.size, threads)
                views = _run(session, chunk, dataset.size, threads, progress, should_stop)
                _write_chunk(file, views)
            else:
                progress.update(len(chunk))
            chunks.append(views)
            ids += [photo.id for photo in chunk]
            groups += [photo.group for photo in chunk]
            counts += [photo.count for photo in chunk]
    return Features(
        ids=ids, groups=groups, counts=np.array(counts, np.int64), views=np.concatenate(chunks)
    )


def _session(
    backbone: Backbone, file: Path, size: int, threads: int
) -> onnxruntime.InferenceSession:
    """The backbone in ONNX Runtime; `file` keeps the export for the other side of the data set."""
    if not file.exists():
        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        partial = file.with_name(f"{file.name}.partial")
        export_onnx(backbone, example, partial, names=("pixels", "features"))
        partial.replace(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run(
    session: onnxruntime.InferenceSession,
    photos: list[Photo],
    size: int,
    threads: int,
    progress: "tqdm[Never]",
    should_stop: Callable[[], bool],
) -> NDArray[np.float16]:
    """Features of `photos`, [photos, VIEWS, features]."""
    rows = []
    for pixels in _decoded_batches(photos, size, threads):
        if should_stop():
            raise StoppedError
        both = np.concatenate([pixels, pixels[:, :, ::-1]])
        features = session.run(None, {"pixels": both})[0].astype(np.float16)
        rows.append(np.stack(np.split(features, VIEWS), axis=1))
        progress.update(len(pixels))
    return np.concatenate(rows)


def _decoded_batches(photos: list[Photo], size: int, threads: int) -> Iterator[NDArray[np.uint8]]:
    """Batches of pixels, the next one decoded while the caller works on this one."""
    batches = [photos[i : i + BATCH_PHOTOS] for i in range(0, len(photos), BATCH_PHOTOS)]

    def decode(batch: list[Photo]) -> NDArray[np.uint8]:
        return np.stack([to_pixels(photo.jpeg, size) for photo in batch])

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(decode, batches)


def _read_chunk(file: Path, photos: int) -> NDArray[np.float16] | None:
    """The chunk in `file`, or None when it is not there, or was cut off on its way here."""
    try:
        views: NDArray[np.float16] = np.load(file)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return views if views.shape[:2] == (photos, VIEWS) else None


def _write_chunk(file: Path, views: NDArray[np.float16]) -> None:
    temporary = file.with_name(f".{file.name}.partial")
    with temporary.open("wb") as stream:
        np.save(stream, views)
    temporary.replace(file)
