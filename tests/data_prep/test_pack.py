import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_prep import pack as module
from data_prep.folder import DataError, metadata_path, photo_path
from data_prep.pack import encode, pack
from data_prep.products import read_products
from data_prep.split import split_folder
from data_prep.synthetic import synthesize
from serving.container.preprocess import to_pixels

COUNTS = range(1, 6)
SIZE = 48


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    synthesize(folder, 150, 3, sides=range(64, 81), workers=1)
    split_folder(folder, COUNTS)
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "data")


def packed_bytes(folder, name="bins"):
    files = (folder / "datasets" / name).glob("*.*")
    return {path.name: path.read_bytes() for path in files}


def read_samples(folder, manifest, side):
    """Return name → (JPEG, label); like WebDataset, join files whose names have the same stem."""
    samples = {}
    for shard in manifest["shards"][side]:
        with tarfile.open(folder / "datasets" / "bins" / shard["file"]) as tar:
            members = tar.getmembers()
            assert len(members) == 2 * shard["photos"]
            for jpeg, label in zip(members[::2], members[1::2], strict=True):
                stem = jpeg.name.removesuffix(".jpg")
                assert label.name == f"{stem}.json"
                content = [tar.extractfile(member).read() for member in (jpeg, label)]
                samples[stem] = content[0], json.loads(content[1])
    return samples


def test_the_same_photos_give_the_same_bytes_whatever_the_number_of_workers(folder):
    pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    first = packed_bytes(folder)
    shutil.rmtree(folder / "datasets")
    pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=3)
    assert packed_bytes(folder) == first
    assert {"train-00001.tar", "test-00000.tar", "manifest.json"} <= first.keys()


def test_the_manifest_counts_products_and_what_is_wrong_with_them(folder):
    manifest = pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    sides = [read_samples(folder, manifest, side) for side in ("train", "test")]
    products = [len(label["products"]) for side in sides for _, label in side.values()]
    assert manifest["products"] == {"products": sum(products)}
    entry = next(iter(sides[0]))
    metadata = json.loads(metadata_path(folder, entry).read_text())
    one, *_ = metadata["BIN_FCSKU_DATA"].values()
    one |= {"weight": None, "quantity": one["quantity"] + 1}
    metadata_path(folder, entry).write_text(json.dumps(metadata))
    assert pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)["products"] == {
        "products": sum(products),
        "quantities that do not add up to the count": 1,
        "weight missing": 1,
    }


def test_a_shard_of_an_older_version_is_packed_again(folder):
    manifest = pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    part = folder / "datasets/bins/parts/train-00000.json"
    content = json.loads(part.read_text())
    del content["products"]
    part.write_text(json.dumps(content))
    assert pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1) == manifest
    assert "products" in json.loads(part.read_text())


def test_every_photo_is_packed_once_with_its_count_and_group(folder):
    split = split_folder(folder, COUNTS)
    manifest = pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    for side in ("train", "test"):
        samples = read_samples(folder, manifest, side)
        expected = {
            photo.id: {
                "count": photo.count,
                "group": photo.group,
                "products": read_products(metadata_path(folder, photo.id).read_bytes())[0],
            }
            for photo in split.photos
            if photo.side == side
        }
        assert {name: label for name, (_, label) in samples.items()} == expected
        assert list(samples) == sorted(samples)
        for jpeg, label in samples.values():
            assert to_pixels(jpeg, SIZE).shape == (SIZE, SIZE, 3)
            assert json.loads(metadata_path(folder, next(iter(samples))).read_text())
            assert label["count"] in COUNTS
        counted = {str(c): sum(e["count"] == c for e in expected.values()) for c in COUNTS}
        assert manifest["photos"][side] == counted


def test_the_manifest_describes_the_files(folder):
    manifest = pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    files = packed_bytes(folder)
    assert json.loads(files["manifest.json"]) == manifest
    listed = [shard for side in ("train", "test") for shard in manifest["shards"][side]]
    for shard in listed:
        content = files[shard["file"]]
        assert shard["bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert len(content) < 0.15e6, "about 0.1 MB"
    assert {shard["file"] for shard in listed} == {name for name in files if ".tar" in name}
    names = json.loads(files["train_list.json"])
    assert {count: len(listed) for count, listed in names.items()} == manifest["photos"]["train"]
    assert all(name.startswith("data/metadata/") for listed in names.values() for name in listed)


def test_tar_entries_tell_nothing_of_the_machine(folder):
    pack(folder, "bins", size=SIZE, workers=1)
    with tarfile.open(folder / "datasets" / "bins" / "train-00000.tar") as tar:
        for entry in tar:
            assert (entry.mtime, entry.uid, entry.gid, entry.uname) == (0, 0, 0, "")


def test_broken_photos_are_left_out_counted_and_named(folder):
    photos = split_folder(folder, COUNTS).photos
    cut, text = photos[0].id, photos[1].id
    path = photo_path(folder, cut)
    path.write_bytes(path.read_bytes()[:300])
    photo_path(folder, text).write_text("no photo at all")
    manifest = pack(folder, "bins", size=SIZE, workers=1)
    left_out = manifest["left_out"]
    reason = "photo cannot be decoded"
    assert left_out["photos"][reason] == sorted([cut, text])
    assert left_out["reasons"][reason] == 2
    assert left_out["reasons"]["count out of range"] > 0
    assert left_out["total"] == sum(map(len, left_out["photos"].values()))
    packed = read_samples(folder, manifest, "train") | read_samples(folder, manifest, "test")
    assert len(packed) == len(photos) - 2
    assert not packed.keys() & {cut, text}


def test_too_many_broken_photos_end_it_without_a_manifest(folder):
    pack(folder, "bins", size=SIZE, workers=1)
    for photo in split_folder(folder, COUNTS).photos:
        if photo.side == "test" and photo.count == 2:
            photo_path(folder, photo.id).write_bytes(b"")
    with pytest.raises(DataError, match="no test photo with count 2 is left"):
        pack(folder, "bins", size=SIZE, workers=1)
    assert "manifest.json" not in packed_bytes(folder)


def test_shards_of_an_earlier_packing_do_not_stay(folder):
    pack(folder, "bins", size=SIZE, shard_mb=0.05, workers=1)
    assert "train-00001.tar" in packed_bytes(folder)
    pack(folder, "bins", size=SIZE, workers=1)
    assert "train-00001.tar" not in packed_bytes(folder)


def test_pack_without_a_split_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"split. first"):
        pack(tmp_path, "bins")


def jpeg_of(size, **options):
    ramp = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    content = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(content, "JPEG", quality=60, **options)
    return content.getvalue()


def test_a_photo_that_fits_keeps_its_bytes(tmp_path):
    path = tmp_path / "1.jpg"
    path.write_bytes(jpeg_of((SIZE, SIZE)))
    assert encode(path, SIZE) == path.read_bytes()


def test_another_photo_is_squashed_to_the_same_pixels_as_serving_sees(tmp_path):
    path = tmp_path / "1.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    for photo in (jpeg_of((90, 60)), jpeg_of((SIZE, SIZE), exif=turned)):
        path.write_bytes(photo)
        squashed = encode(path, SIZE)
        assert squashed != photo
        with Image.open(io.BytesIO(squashed)) as image:
            assert (image.size, image.format, image.mode) == ((SIZE, SIZE), "JPEG", "RGB")
        difference = to_pixels(squashed, SIZE).astype(int) - to_pixels(photo, SIZE)
        assert np.abs(difference).mean() < 3


def test_colours_are_kept_as_fine_as_brightness(tmp_path):
    stripes = np.zeros((SIZE * 2, SIZE, 3), np.uint8)
    stripes[:, ::2] = 255, 0, 0  # red and blue columns, one pixel wide
    stripes[:, 1::2] = 0, 0, 255
    path = tmp_path / "1.png"
    Image.fromarray(stripes).save(path)
    packed = to_pixels(encode(path, SIZE), SIZE).astype(int)
    assert np.abs(packed - to_pixels(path.read_bytes(), SIZE)).mean() < 8


def test_what_was_packed_before_it_was_stopped_is_not_packed_again(folder, monkeypatch):
    pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    whole = packed_bytes(folder)
    dataset = folder / "datasets" / "bins"
    (dataset / "train-00000.tar").unlink()
    packed = []
    write = module._write_shard

    def noted(path, samples):
        packed.append(path.name)
        return write(path, samples)

    monkeypatch.setattr(module, "_write_shard", noted)
    pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    assert packed == ["train-00000.tar"]
    assert packed_bytes(folder) == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, shard: shard.write_bytes(shard.read_bytes()[:-600] + bytes(600)),
        lambda folder, shard: shard.write_bytes(b""),
        lambda folder, shard: photo_path(folder, first_id(shard)).write_bytes(b"no photo"),
        lambda folder, shard: photo_path(folder, first_id(shard)).unlink(),
    ],
    ids=["shard damaged", "shard emptied", "photo replaced", "photo gone"],
)
def test_a_shard_that_is_not_what_it_should_be_is_packed_again(folder, change):
    pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    change(folder, folder / "datasets" / "bins" / "train-00001.tar")
    pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    found = packed_bytes(folder)
    shutil.rmtree(folder / "datasets")
    pack(folder, "bins", size=SIZE, shard_mb=0.1, workers=1)
    assert found == packed_bytes(folder)


def first_id(shard):
    with tarfile.open(shard) as tar:
        return tar.getnames()[0].removesuffix(".jpg")
