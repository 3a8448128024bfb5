"""Features of a frozen backbone, computed once per photo and kept in chunks on disk."""

import copy
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Never

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from common.dataset import Dataset, PhotoIndex, Side
from common.files import replacing
from common.signals import StoppedError
from serving.container import preprocess
from training.learn.distributed import ALONE, World
from training.learn.model import Backbone, export_onnx, fold_batch_norm
from training.learn.photos import AHEAD, decode, map_ahead
from training.learn.precision import DTYPES
from training.settings import CHUNK_PHOTOS, BackbonePrecision

Extract = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # pixels → features

BATCH_PHOTOS = 8  # larger batches are no faster and need more memory
VIEWS = 2  # the photo and its mirror image


def features_key(
    dataset: Dataset, arch: str, weights: Path, size: int, precision: BackbonePrecision = "float32"
) -> str:
    """Return a hash, 16 hex digits, of everything that the features depend on.

    That is the photos, the input size, backbone, weights, precision, and the source code of
    preprocessing and pooling.
    """
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
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """Runs a backbone over photos and stores the features as files in `folder`.

    Uses ONNX Runtime for float32 on the CPU, and PyTorch for bfloat16 or on a GPU. Processes divide
    the chunks among them.
    """

    backbone: Backbone
    folder: Path
    size: int  # pixels a side
    precision: BackbonePrecision = "float32"
    threads: int
    device: torch.device
    should_stop: Callable[[], bool]  # called before each batch
    world: World = ALONE

    def compute(self, dataset: Dataset, side: Side) -> NDArray[np.float16]:
        """Return the features of all photos of `side`, [photos, VIEWS, features].

        Chunks that exist in `folder` are reused, so that a second call resumes an interrupted one.
        Afterwards, every process has all chunks in its `folder`. Raises StoppedError once
        `should_stop()` is true.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        photos = dataset.index(side)
        chunks = {
            self.folder / f"{side}-{number:05d}.npy": rows
            for number, rows in enumerate(_split(range(len(photos)), CHUNK_PHOTOS))
        }
        mine = dict(list(chunks.items())[self.world.rank :: self.world.size])
        missing = {file: rows for file, rows in mine.items() if not _is_chunk(file, len(rows))}
        if self.world.any(bool(missing)):
            extract = self._load_backbone()
            total, left = (sum(map(len, part.values())) for part in (mine, missing))
            with tqdm(total=total, desc=f"features {side}", unit="photo") as progress:
                progress.update(total - left)
                self._write_chunks(extract, photos, missing, progress)
        self._exchange(chunks, mine)
        return np.concatenate([np.load(file, mmap_mode="r") for file in chunks])

    def _load_backbone(self) -> Extract:
        if self.precision == "bfloat16" or self.device.type != "cpu":
            return self._in_torch()
        if self.world.local_rank == 0:  # writes the file that the others on its machine read
            self._in_onnx_runtime()
        self.world.barrier()
        return self._in_onnx_runtime()

    def _in_torch(self) -> Extract:
        """Load a copy of the backbone that is optimised for PyTorch."""
        dtype = DTYPES[self.precision]
        fast = copy.deepcopy(self.backbone).eval()
        fold_batch_norm(fast.network)
        fast.to(self.device).network.to(dtype, memory_format=torch.channels_last)
        fast.dtype = dtype

        def extract(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                on_device = torch.from_numpy(pixels).to(self.device)
                features: NDArray[np.float32] = fast(on_device).cpu().numpy()
            return features

        return extract

    def _in_onnx_runtime(self) -> Extract:
        """Load the backbone into ONNX Runtime; its file is exported to `folder` once."""
        file = self.folder / ".backbone.onnx"  # hidden, so that it is not stored with the chunks
        if not _is_model(file):
            example = torch.zeros(2, self.size, self.size, 3, dtype=torch.uint8)
            with replacing(file) as partial:
                export_onnx(self.backbone, example, partial, names=("pixels", "features"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        return lambda pixels: np.asarray(session.run(None, {"pixels": pixels})[0])

    def _write_chunks(
        self,
        extract: Extract,
        photos: PhotoIndex,
        chunks: dict[Path, range],
        progress: "tqdm[Never]",
    ) -> None:
        """Write each of `chunks`, given as file → rows of `photos`: [photos, VIEWS, features]."""
        batches = [rows for chunk in chunks.values() for rows in _split(chunk, BATCH_PHOTOS)]
        decoded = map_ahead(
            lambda rows: decode(photos, rows, self.size).numpy(),
            batches,
            threads=self.threads,
            ahead=AHEAD,
        )
        for file, chunk in chunks.items():
            views = []
            for pixels in islice(decoded, len(_split(chunk, BATCH_PHOTOS))):
                if self.should_stop():
                    raise StoppedError
                both = np.concatenate([pixels, pixels[:, :, ::-1]])
                features = extract(both).astype(np.float16)
                views.append(np.stack(np.split(features, VIEWS), axis=1))
                progress.update(len(pixels))
            _write_chunk(file, np.concatenate(views))

    def _exchange(self, chunks: dict[Path, range], mine: dict[Path, range]) -> None:
        """Send the chunks of this process to the processes on other machines."""
        self.world.barrier()
        if not self.world.any(not all(_is_chunk(file, len(rows)) for file, rows in chunks.items())):
            return
        for computed in self.world.gather({file.name: np.load(file) for file in mine}):
            for file, rows in chunks.items():
                if file.name in computed and not _is_chunk(file, len(rows)):
                    _write_chunk(file, computed[file.name])


def _is_model(file: Path) -> bool:
    """Whether `file` exists and ONNX Runtime can load it."""
    try:
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception:  # the errors of ONNX Runtime have no common base class
        return False
    return True


def _split(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _is_chunk(file: Path, photos: int) -> bool:
    """Whether `file` exists and has the features of `photos` photos."""
    try:
        views = np.load(file, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return False
    return bool(views.shape[:2] == (photos, VIEWS))


def _write_chunk(file: Path, views: NDArray[np.float16]) -> None:
    with replacing(file) as partial, partial.open("wb") as stream:
        np.save(stream, views)
