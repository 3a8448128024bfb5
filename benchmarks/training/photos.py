"""The photos to measure on: real ones out of a tar, or drawn, in every layout that a side reads."""

import tarfile
from pathlib import Path

from benchmarks.training.measure import BenchmarkError
from common.dataset import Entry
from data_prep.folder import photo_path, write_selection
from data_prep.split import read_split, split_folder
from data_prep.synthetic import synthesize

COUNTS = range(1, 6)


def unpack_photos(tar: Path, folder: Path) -> None:
    """Fill `folder` with the photos of `tar`, split by products into train and test.

    The tar is laid out as the public bucket: `bin-images/<id>.jpg`, `metadata/<id>.json`.
    """
    try:
        with tarfile.open(tar) as photos:
            photos.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise BenchmarkError(f"{tar} is not a tar of photos, or is damaged: {error}") from error
    ids = [file.stem for file in (folder / "metadata").glob("*.json")]
    write_selection(folder, ids, [])
    split_folder(folder, COUNTS)
    _link_image_folder(folder)


def draw_photos(folder: Path, photos: int, sides: range) -> None:
    """Fill `folder` with `photos` synthetic photos, split by products into train and test."""
    synthesize(folder, photos, seed=0, sides=sides)
    split_folder(folder, COUNTS)
    _link_image_folder(folder)


def image_folder(folder: Path, side: str) -> Path:
    """The photos of one side as torchvision's ImageFolder reads them: `<count>/<id>.jpg`."""
    return folder / "image-folder" / side


def _link_image_folder(folder: Path) -> None:
    for photo in read_split(folder).photos:
        link = image_folder(folder, photo.side) / str(photo.count) / f"{photo.id}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(photo_path(folder, photo.id).resolve())


def native_entries(folder: Path) -> list[Entry]:
    """All photos at their own size, each in a file of its own."""
    entries = []
    for photo in read_split(folder).photos:
        file = photo_path(folder, photo.id)
        entries.append(Entry(photo.id, photo.count, photo.group, file, 0, file.stat().st_size))
    return entries
