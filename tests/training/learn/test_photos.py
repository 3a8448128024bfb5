import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.dataset import PhotoIndex, open_dataset
from serving.container.preprocess import to_pixels
from tests.support.packed import COUNTS, SIZE, draw_photos, write_packed
from training.learn.batch import Batch, soft_targets
from training.learn.distributed import World
from training.learn.photos import EvalPhotos, PhotoBatches, map_ahead
from training.learn.products import MEASURES, product_slots

CPU = torch.device("cpu")
PHOTOS = draw_photos(23)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> PhotoIndex:
    folder = tmp_path_factory.mktemp("squares")
    return open_dataset(write_packed(folder, PHOTOS, PHOTOS[:3])).index("train")


def source(index: PhotoIndex, *, seed: int = 0, threads: int = 2) -> PhotoBatches:
    classes = torch.from_numpy(np.searchsorted(COUNTS, index.counts))
    return PhotoBatches(
        index,
        soft_targets(classes, COUNTS, 0),
        packed=SIZE,
        size=SIZE,
        batch_size=4,
        seed=seed,
        threads=threads,
        device=CPU,
    )


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        all(map(torch.equal, x.inputs, y.inputs)) and torch.equal(x.targets, y.targets)
        for x, y in zip(one, other, strict=True)
    )


def test_an_epoch_shows_photos_once_with_their_own_counts(index: PhotoIndex) -> None:
    batches = list(source(index).batches(0, 0))
    assert [len(batch.targets) for batch in batches] == [4] * 5  # 3 are left over
    assert batches[0].inputs.photos.shape == (4, SIZE, SIZE, 3)
    for batch in batches:
        # A square has 49 bright pixels; colours move by less than half of the distance.
        bright = (batch.inputs.photos.mean(3) > 110).sum((1, 2)) / 49
        shown = [COUNTS[k] for k in batch.targets.argmax(1)]
        assert bright.tolist() == pytest.approx(shown, abs=0.45)
        counted = batch.inputs.products[:, 0, MEASURES.index("weight")] * 4
        assert (counted > 0).any()
        assert all(of in (count, -4) for of, count in zip(counted.tolist(), shown, strict=True))


@settings(max_examples=15, deadline=None)
@given(first=st.integers(0, 5), threads=st.integers(1, 3), epoch=st.integers(0, 3))
def test_a_batch_is_the_same_wherever_an_epoch_begins_and_with_any_number_of_threads(
    index: PhotoIndex, first: int, threads: int, epoch: int
) -> None:
    whole = list(source(index).batches(epoch, 0))
    assert equal(list(source(index, threads=threads).batches(epoch, first)), whole[first:])


def test_epochs_and_seeds_differ_in_order_and_augmentation(index: PhotoIndex) -> None:
    first = list(source(index).batches(0, 0))
    assert not equal(first, list(source(index).batches(1, 0)))
    assert not equal(first, list(source(index, seed=1).batches(0, 0)))


def test_photos_to_measure_on_are_those_that_are_served_in_their_order(index: PhotoIndex) -> None:
    for size in (SIZE, 20):
        still = EvalPhotos(index, size=size, batch_size=10, threads=2, device=CPU)
        expected = [to_pixels(photo.jpeg, size) for photo in PHOTOS]
        mirrored = EvalPhotos(index, size=size, batch_size=10, threads=2, device=CPU, mirrored=True)
        np.testing.assert_array_equal(
            torch.cat([batch.photos for batch in mirrored]), np.array(expected)[:, :, ::-1]
        )
        for _ in range(2):  # as often as asked
            batches = list(still)
            assert [len(batch.products) for batch in batches] == [10, 10, 3]
            np.testing.assert_array_equal(torch.cat([batch.photos for batch in batches]), expected)
            products = torch.cat([batch.products for batch in batches])
            torch.testing.assert_close(products, product_slots(index))


@given(items=st.lists(st.integers()), threads=st.integers(1, 3), ahead=st.integers(1, 4))
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int, ahead: int) -> None:
    results = map_ahead(lambda item: -item, items, threads=threads, ahead=ahead)
    assert list(results) == [-item for item in items]


def test_no_more_than_a_few_items_are_taken_before_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = map_ahead(lambda item: item, items(), threads=2, ahead=3)
    assert taken == []
    for expected in range(5):
        assert next(results) == expected
        assert len(taken) <= expected + 1 + 3
    results.close()  # type: ignore[attr-defined]
    assert len(taken) < 10


def test_a_failure_reaches_the_one_who_asks_and_leaves_no_thread() -> None:
    def fail_at_three(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    before = threading.active_count()
    results = map_ahead(fail_at_three, range(9), threads=2, ahead=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_a_batch_and_no_photo_is_in_two_shares(
    index: PhotoIndex, size: int
) -> None:
    classes = torch.from_numpy(np.searchsorted(COUNTS, index.counts))
    targets = soft_targets(classes, COUNTS, 0)

    def batches(batch_size: int, world: World) -> list[Batch]:
        found = PhotoBatches(
            index,
            targets,
            packed=SIZE,
            size=SIZE,
            batch_size=batch_size,
            seed=0,
            threads=1,
            device=CPU,
            world=world,
        )
        return list(found.batches(0, 0))

    whole = batches(2 * size, World())
    shares = [batches(2, World(rank, rank, size)) for rank in range(size)]
    for number, batch in enumerate(whole):
        together = [share[number] for share in shares]
        assert {share.total for share in together} == {batch.total} == {2 * size}
        rows = torch.cat([share.inputs.photos for share in together]).flatten(1)
        expected = batch.inputs.photos.flatten(1)
        assert sorted(rows.sum(1).tolist()) == sorted(expected.sum(1).tolist())
