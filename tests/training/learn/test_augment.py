import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.learn.augment import FIELDS, SHIFT, augment, draw

IDS = st.text("0123456789", min_size=1, max_size=6)


def spot(size: int, row: int, column: int) -> torch.Tensor:
    """A black photo with one bright square of 5 pixels around a place."""
    pixels = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    pixels[:, row - 2 : row + 3, column - 2 : column + 3] = 200
    return pixels


@given(ids=st.lists(IDS, min_size=1, max_size=5), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_what_is_drawn_depends_on_seed_epoch_and_id_alone(
    ids: list[str], seed: int, epoch: int
) -> None:
    drawn = draw(ids, seed=seed, epoch=epoch)
    assert drawn.shape == (len(ids), FIELDS)
    assert drawn.abs().max() <= 1
    for photo_id, row in zip(ids, drawn, strict=True):
        assert torch.equal(draw([photo_id], seed=seed, epoch=epoch)[0], row)
    for other in (draw(ids, seed=seed + 1, epoch=epoch), draw(ids, seed=seed, epoch=epoch + 1)):
        assert not torch.equal(other, drawn)


def test_ids_are_text() -> None:
    one, other = draw(["00001", "1"], seed=0, epoch=0)
    assert not torch.equal(one, other)


def test_every_amount_is_drawn_about_evenly() -> None:
    drawn = draw([str(number) for number in range(2000)], seed=0, epoch=0)
    assert (drawn.mean(0).abs() < 0.06).all()
    assert ((drawn.std(0) - 3**-0.5).abs() < 0.03).all()


def test_with_nothing_drawn_a_photo_stays_as_it_is_or_is_mirrored() -> None:
    pixels = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    drawn = torch.zeros(2, FIELDS)
    drawn[1, 0] = -1
    same, mirrored = augment(pixels, drawn, pixels.shape[1])
    torch.testing.assert_close(same, pixels[0].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(mirrored, pixels[1].flip(1).float(), atol=1e-3, rtol=0)


@settings(deadline=None)
@given(
    photo_id=IDS,
    row=st.integers(14, 49),
    column=st.integers(14, 49),
)
def test_what_is_not_at_the_very_edge_stays_in_the_picture(
    photo_id: str, row: int, column: int
) -> None:
    """A spot in the inner two thirds of a photo is there once, and about as large."""
    drawn = draw([photo_id], seed=1, epoch=1)
    drawn[:, 6:] = 0
    (changed,) = augment(spot(64, row, column), drawn, 64)
    bright = changed[..., 0].double()
    assert 0.75 < bright.sum().item() / (25 * 200) < 1.3
    weights = bright / bright.sum()
    places = torch.arange(64, dtype=torch.float64)
    centre = np.array([(weights.sum(1) * places).sum(), (weights.sum(0) * places).sum()])
    expected = np.array([row, column if drawn[0, 0] >= 0 else 63 - column])
    assert np.abs(centre - expected).max() < 64 * (SHIFT + 0.5 * (0.06 + 0.09)) + 1


def test_colours_change_within_their_range_and_stay_bytes() -> None:
    pixels = torch.randint(256, (64, 8, 8, 3), dtype=torch.uint8)
    drawn = draw([str(number) for number in range(64)], seed=0, epoch=0)
    drawn[:, :6] = 0
    changed = augment(pixels, drawn, pixels.shape[1])
    assert changed.dtype is torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 255
    ratio = changed.mean((1, 2, 3)) / pixels.float().mean((1, 2, 3))
    assert ratio.min() < 0.85
    assert ratio.max() > 1.15


def test_a_photo_is_brought_to_the_size_of_the_input() -> None:
    pixels = torch.full((2, 30, 30, 3), 77, dtype=torch.uint8)
    for size in (20, 48):
        changed = augment(pixels, torch.zeros(2, FIELDS), size)
        assert changed.shape == (2, size, size, 3)
        torch.testing.assert_close(changed, torch.full_like(changed, 77))
