"""Is a packed data set what its manifest says?"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from tqdm import tqdm

from common.outputs import check_region
from data_prep.folder import dataset_path, read_json
from data_prep.processes import process_pool
from data_prep.split import SIDES, Side
from data_prep.upload import stored
from serving.container.preprocess import PhotoError, to_pixels


@dataclass
class Found:
    """What a shard holds."""

    file: str
    problems: list[str] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)


def verify_folder(folder: Path, name: str, workers: int | None = None) -> list[str]:
    """Read every byte of `<folder>/datasets/<name>/`; returns the problems, a line each.

    Hashes, counts per class, ids that are in it twice, photos that cannot be decoded or have
    another size, groups on both sides, lists. Raises DataError without a manifest.
    """
    dataset = dataset_path(folder, name)
    manifest = read_json(
        dataset / "manifest.json", f"run `python -m data_prep pack --name {name}` first"
    )
    shards = [(side, shard) for side in SIDES for shard in manifest["shards"][side]]
    look = partial(look_at_shard, dataset, size=manifest["size"])
    with process_pool(workers) as pool:
        looks = pool.map(look, [shard for _, shard in shards])
        found = list(tqdm(looks, total=len(shards), desc="verify", unit=" shards"))
    problems = [problem for one in found for problem in one.problems]
    by_side = {
        side: [one for (its, _), one in zip(shards, found, strict=True) if its == side]
        for side in SIDES
    }
    problems += _compare_sides(manifest, by_side)
    problems += _compare_lists(dataset, by_side)
    return problems


def look_at_shard(dataset: Path, shard: dict[str, Any], size: int) -> Found:
    """What is in one shard, and what is wrong with it."""
    found = Found(shard["file"])
    try:
        content = (dataset / shard["file"]).read_bytes()
    except FileNotFoundError:
        found.problems.append(f"{shard['file']} is missing")
        return found
    if hashlib.sha256(content).hexdigest() != shard["sha256"]:
        found.problems.append(f"{shard['file']} does not have the hash in the manifest")
    try:
        for photo_id, jpeg, label in read_samples(content):
            found.ids.append(photo_id)
            found.counts[label["count"]] += 1
            found.groups.add(label["group"])
            _look_at_photo(found, photo_id, jpeg, size)
    except (tarfile.TarError, ValueError, KeyError) as error:
        found.problems.append(f"{shard['file']} cannot be read: {error}")
    if len(found.ids) != shard["photos"]:
        found.problems.append(
            f"{shard['file']} has {len(found.ids)} photos, the manifest says {shard['photos']}"
        )
    return found


def _look_at_photo(found: Found, photo_id: str, jpeg: bytes, size: int) -> None:
    try:
        shape = to_pixels(jpeg, size).shape
    except PhotoError as error:
        found.problems.append(f"{found.file}: photo {photo_id} cannot be decoded: {error}")
    else:
        if shape != (size, size, 3):
            found.problems.append(f"{found.file}: photo {photo_id} has another size")


def read_samples(shard: bytes) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Id, JPEG and label of each photo."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        members = iter(tar)
        for photo, label in zip(members, members, strict=True):
            jpeg, text = tar.extractfile(photo), tar.extractfile(label)
            if jpeg is None or text is None:
                raise ValueError(f"{photo.name} or {label.name} is no file")
            yield photo.name.removesuffix(".jpg"), jpeg.read(), json.loads(text.read())


def _compare_sides(manifest: dict[str, Any], by_side: dict[Side, list[Found]]) -> Iterator[str]:
    for side, found in by_side.items():
        there = sum((one.counts for one in found), Counter())
        listed = {int(count): number for count, number in manifest["photos"][side].items()}
        if {count: there[count] for count in listed} != listed or set(there) - set(listed):
            yield f"{side}: {dict(sorted(there.items()))} by count, the manifest says {listed}"
    ids = Counter(photo_id for found in by_side.values() for one in found for photo_id in one.ids)
    for photo_id, times in ids.items():
        if times > 1:
            yield f"photo {photo_id} is in it {times} times"
    if manifest["split"]["method"] == "group":
        train, test = (set().union(*(one.groups for one in by_side[side])) for side in SIDES)
        if both := train & test:
            yield f"{len(both)} groups are on both sides, such as {min(both)}"


def _compare_lists(dataset: Path, by_side: dict[Side, list[Found]]) -> Iterator[str]:
    for side, found in by_side.items():
        file = dataset / f"{side}_list.json"
        names = read_json(file, "run `python -m data_prep pack` again")
        listed = sorted(Path(name).stem for listed in names.values() for name in listed)
        if listed != sorted(photo_id for one in found for photo_id in one.ids):
            yield f"{file.name} lists other photos than the shards hold"


def verify_bucket(bucket: str, name: str) -> list[str]:
    """Compare the objects under `datasets/<name>/` with the manifest there, without their bytes:
    sizes, and the hashes that `upload` left. Returns the problems, a line each.
    Raises RegionsDifferError."""
    check_region()
    client, prefix = boto3.client("s3"), f"datasets/{name}"
    manifest = json.loads(
        client.get_object(Bucket=bucket, Key=f"{prefix}/manifest.json")["Body"].read()
    )
    problems = []
    for side in SIDES:
        for shard in tqdm(manifest["shards"][side], desc=f"verify {side}", unit=" shards"):
            key = f"{prefix}/{shard['file']}"
            there = stored(client, bucket, key)
            if there is None:
                problems.append(f"s3://{bucket}/{key} is missing, or you may not read it")
            elif there != (shard["bytes"], shard["sha256"]):
                problems.append(f"s3://{bucket}/{key} is not the shard that the manifest describes")
    return problems
