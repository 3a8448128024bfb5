"""Products of records as a tensor, and the part of the head that counts with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.dataset import Entry, PhotoIndex
from training.learn.model import Head, make_ensemble
from training.learn.products import ABSENT, MEASURES, SLOTS, UNKNOWN, has_products, product_slots

BOOK = {"asin": "0205902278", "quantity": 2, "length": 9.1, "width": 6.4, "height": 1.2}
CLASSES = 5


def index(*records: list[dict[str, Any]]) -> PhotoIndex:
    return PhotoIndex(
        [
            Entry(f"{row:05}", 1, "group", Path("shard"), 0, 0, each)
            for row, each in enumerate(records)
        ]
    )


def head(members: int = 1) -> nn.Module:
    """Heads with random weights in all layers."""
    torch.manual_seed(0)
    heads = [Head(6, CLASSES, 0, 0.3) for _ in range(members)]
    for each in heads:
        nn.init.normal_(each.with_products.layers[-1].weight)
    return make_ensemble(heads).eval()


def random_products(rows: int, seed: int) -> Tensor:
    """Between 0 and SLOTS products for each row, a quarter of the measures unknown."""
    generator = torch.Generator().manual_seed(seed)
    products = torch.rand(rows, SLOTS, len(MEASURES), generator=generator) * 20
    products[torch.rand(products.shape, generator=generator) < 0.25] = UNKNOWN
    present = torch.randint(SLOTS + 1, (rows, 1), generator=generator) > torch.arange(SLOTS)
    products[~present] = ABSENT
    return products


def test_slots_have_the_measures_but_not_the_quantities() -> None:
    slots = product_slots(index([BOOK, {"weight": 0.5}], []))
    expected = torch.full((2, SLOTS, 4), ABSENT)
    expected[0, 0] = torch.tensor([9.1, 6.4, 1.2, UNKNOWN])
    expected[0, 1] = torch.tensor([UNKNOWN, UNKNOWN, UNKNOWN, 0.5])
    torch.testing.assert_close(slots, expected)
    assert has_products(index([BOOK], [])).tolist() == [True, False]


def test_a_record_of_more_products_than_slots_is_not_used() -> None:
    photos = index([BOOK] * SLOTS, [BOOK] * (SLOTS + 1))
    assert has_products(photos).tolist() == [True, False]
    assert (product_slots(photos) != ABSENT).any(2).sum(1).tolist() == [SLOTS, 0]


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(SLOTS)))
def test_the_order_of_products_changes_nothing(seed: int, order: list[int]) -> None:
    network, features, products = head(), torch.randn(4, 6), random_products(4, seed)
    torch.testing.assert_close(
        network(features, products), network(features, products[:, order]), atol=1e-5, rtol=1e-5
    )


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
def test_the_order_of_the_sides_of_a_product_changes_nothing(seed: int, order: list[int]) -> None:
    network, features, products = head(), torch.randn(4, 6), random_products(4, seed)
    turned = products[:, :, [*order, 3]]
    torch.testing.assert_close(network(features, products), network(features, turned))


@pytest.mark.parametrize("members", [1, 3])
def test_without_products_the_photo_alone_answers(members: int) -> None:
    network, features = head(members), torch.randn(4, 6)
    products = random_products(4, 1)
    products[1] = ABSENT
    logits = network(features, products)
    assert logits.shape == (4, 2, CLASSES)
    torch.testing.assert_close(logits[:, 0], network(features))
    torch.testing.assert_close(logits[1, 0], logits[1, 1])
    assert not torch.allclose(logits[0, 0], logits[0, 1])


def test_products_train_nothing_of_the_answer_to_a_photo_alone() -> None:
    network, features = head().train(), torch.randn(4, 6, requires_grad=True)
    network(features, random_products(4, 1))[:, 1].sum().backward()
    assert features.grad is None or not features.grad.any()
    trained = {
        name
        for name, weights in network.named_parameters()
        if weights.grad is not None and weights.grad.any()
    }
    assert trained
    assert all(name.startswith("with_products.") for name in trained)


def test_an_unknown_measure_is_no_tiny_one() -> None:
    network, features = head(), torch.randn(1, 6)
    known, unknown = (
        product_slots(index([{"length": 9.0, "weight": w}])) for w in (0.001, UNKNOWN)
    )
    assert not torch.allclose(network(features, known), network(features, unknown))


def test_before_any_training_products_change_nothing() -> None:
    network, features = Head(6, CLASSES, 0, 0.3).eval(), torch.randn(4, 6)
    without, with_products = network(features, random_products(4, 1)).unbind(1)
    torch.testing.assert_close(without, with_products)
