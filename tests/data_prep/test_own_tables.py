"""The user's own records: a row of a table, or a line of JSON, for each product."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.folder import DataError, metadata_path
from data_prep.own_photos import OwnPhoto, take_in
from data_prep.own_tables import read_csv, read_jsonl
from data_prep.products import read_products

TABLE = """\
photo,count,group,asin,quantity,length,width,height,weight
a.jpg,3,aisle 1,B000C33MI2,2,3.9,2.9,2.8,0.3
a.jpg,3,aisle 1,0050,1,,,,
b.jpg,0,,,,,,,
c.jpg,1,,,1,2,,,
"""
LINES = """\
{"photo": "a.jpg", "group": "aisle 1", "record": {"count": 3, "products": [\
{"asin": "B000C33MI2", "quantity": 2, "length": 3.9, "width": 2.9, "height": 2.8, "weight": 0.3}, \
{"asin": "0050", "quantity": 1}]}}

{"photo": "b.jpg", "record": {"count": 0, "products": []}}
{"photo": "c.jpg", "record": {"count": 1, "products": [{"quantity": 1, "length": 2}]}}
"""


def table(folder: Path, text: str) -> list[OwnPhoto]:
    (folder / "own.csv").write_text(text)
    return read_csv(folder / "own.csv")


def lines(folder: Path, *objects: Any) -> list[OwnPhoto]:
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, objects)))
    return read_jsonl(folder / "own.jsonl")


def one(folder: Path, product: Any) -> list[OwnPhoto]:
    return lines(folder, {"photo": "a.jpg", "record": {"count": 1, "products": [product]}})


def test_a_table_and_json_lines_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(LINES)
    photos = table(tmp_path, TABLE)
    assert read_jsonl(tmp_path / "own.jsonl") == photos
    assert [(photo.count, photo.group, len(photo.products)) for photo in photos] == [
        (3, "aisle 1", 2),
        (0, "", 0),
        (1, "", 1),
    ]


def test_products_reach_the_metadata_and_are_read_from_it(tmp_path: Path) -> None:
    photos = table(tmp_path, TABLE)
    for photo in photos:
        Path(photo.place).write_bytes(b"a photo")
    take_in(photos, tmp_path / "data", range(0, 6))
    found = {}
    for photo in photos:
        metadata = metadata_path(tmp_path / "data", photo.id).read_bytes()
        products, problems = read_products(metadata)
        assert not {name for name in problems if not name.endswith("missing")}
        found[Path(photo.place).name] = products
    measures = {"length": 3.9, "width": 2.9, "height": 2.8, "weight": 0.3}
    assert found["a.jpg"] == [
        {"asin": "0050", "quantity": 1},
        {"asin": "B000C33MI2", "quantity": 2, **measures},
    ]
    assert found["b.jpg"] == []
    (nameless,) = found["c.jpg"]
    assert nameless == {"quantity": 1, "length": 2.0}
    (key,) = photos[2].metadata()["BIN_FCSKU_DATA"]
    assert photos[2].id in key, "no other photo has this product"


def test_a_group_that_is_called_as_a_product_takes_nothing_from_it(tmp_path: Path) -> None:
    (photo,) = table(tmp_path, "photo,count,group,asin,quantity\na.jpg,2,B1,B1,2\n")
    assert photo.metadata()["BIN_FCSKU_DATA"] == {"B1": {"asin": "B1", "quantity": 2}}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("a.jpg,1,,B1,1\na.jpg,2,,B2,1", "line 3: a.jpg has another count or group"),
        ("a.jpg,2,x,B1,1\na.jpg,2,y,B2,1", "line 3: a.jpg has another count or group"),
        ("a.jpg,2,,B1,1\na.jpg,2,,B1,1", "line 3: a.jpg has product B1 more than once"),
        ("a.jpg,2,,B1,1\na.jpg,2,,,", "line 3: a.jpg is listed more than once"),
        ("a.jpg,2,,B1,some", "line 2: quantity 'some' is not a number"),
        ("a.jpg,2,,B1,0.5", "line 2: quantity 0.5 is no number of items"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path: Path, rows: str, says: str) -> None:
    with pytest.raises(DataError) as raised:
        table(tmp_path, f"photo,count,group,asin,quantity\n{rows}\n")
    assert says in str(raised.value)


@pytest.mark.parametrize("name", ["length", "width", "height", "weight"])
@pytest.mark.parametrize(
    "value", [0, -1, 1e9, 10**400, math.nan, math.inf, "3", True, [3], {"unit": "cm"}]
)
def test_measures_that_cannot_be_are_refused_with_their_line(
    tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(DataError, match=rf"own\.jsonl, line 1: {name} "):
        one(tmp_path, {name: value})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([], "an object with no fields but group, photo, record"),
        ({"photo": "a.jpg"}, "record: an object"),
        ({"photo": "a.jpg", "record": {"count": 1.0}}, "a whole count"),
        ({"photo": "a.jpg", "record": {"count": -1}}, "a whole count"),
        ({"photo": "", "record": {"count": 1}}, "a photo"),
        ({"photo": 3, "record": {"count": 1}}, "photo 3 is not text"),
        ({"photo": "a.jpg", "record": {"count": 1}, "group": 3}, "group 3 is not text"),
        ({"photo": "a.jpg", "record": {"count": 1, "products": 3}}, "products are a list"),
        ({"photo": "a.jpg", "record": {"count": 1, "products": [3]}}, "an object"),
        ({"photo": "a.jpg", "record": {"count": 1, "products": [{"asin": 3}]}}, "asin 3"),
        ({"photo": "a.jpg", "record": {"count": 1, "products": [{"size": 3}]}}, "no fields but"),
        ({"photo": "https://a/b.jpg", "record": {"count": 1}}, "neither a path nor s3://"),
        ({"photo": "a.jpg", "record": {"count": 10**400}}, "a whole count"),
        ({"photo": "a.jpg", "record": {"count": 1, "products": False}}, "products are a list"),
        ({"photo": "a.jpg", "record": {"count": 1, "products": [{}]}}, "a product has no field"),
        ({"photo": "a\ud800.jpg", "record": {"count": 1}}, "characters that are not text"),
        ({"photo": "a\0.jpg", "record": {"count": 1}}, "characters that are not text"),
        ({"photo": "a.jpg", "record": {"count": 1}, "group": "x\r"}, "characters that are not"),
        ({"photo": "a.jpg", "record": {"count": 1, "products": [{"quantity": 10**400}]}}, "quant"),
    ],
)
def test_a_line_of_another_form_is_refused(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(DataError, match=r"own\.jsonl, line 1") as raised:
        lines(tmp_path, row)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_photo_has_one_line_and_a_field_one_value(tmp_path: Path) -> None:
    photo = {"photo": "a.jpg", "record": {"count": 1, "products": [{"quantity": 1}]}}
    with pytest.raises(DataError, match=r"line 2: a\.jpg is listed more than once"):
        lines(tmp_path, photo, photo)
    (tmp_path / "own.jsonl").write_text('{"photo": "a", "record": {"count": 1, "count": 4}}')
    with pytest.raises(DataError, match="an object has a field twice"):
        read_jsonl(tmp_path / "own.jsonl")


def test_a_line_may_have_any_letter_and_space(tmp_path: Path) -> None:
    name = "aisle\u2028one\u00a0ä.jpg"
    (photo,) = lines(tmp_path, {"photo": name, "record": {"count": 1}})
    assert Path(photo.place).name == name


def test_a_row_of_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: more cells than the first line has columns"):
        table(tmp_path, "photo,count,length\na.jpg,1,3,9\n")


def test_a_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names a column twice"):
        table(tmp_path, "photo,count,count\na.jpg,1,2\n")


def test_columns_that_are_not_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path, "photo,count,lenght\na.jpg,1,2\n")
    assert capsys.readouterr().err == "columns that are not read: lenght\n"


def test_files_that_are_not_json_lines_are_refused_in_one_line(tmp_path: Path) -> None:
    for text in ("", "no JSON", "[" * 100_000, "\xff"):
        (tmp_path / "own.jsonl").write_text(text, "latin-1")
        with pytest.raises(DataError, match=r"--source jsonl .*own\.jsonl") as raised:
            read_jsonl(tmp_path / "own.jsonl")
        assert "\n" not in str(raised.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["photo", "record", "count", "products", "asin", "quantity", "length"]),
            inner,
        )
    ),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries(
    {"photo": st.just("a.jpg") | ANYTHING},
    optional={
        "record": st.fixed_dictionaries(
            {"count": st.integers(-1, 9) | ANYTHING}, optional={"products": ANYTHING}
        )
        | ANYTHING
    },
)


@given(st.lists(ROWS | ANYTHING, max_size=3))
def test_any_json_lines_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    try:
        photos = lines(tmp_path_factory.getbasetemp(), *rows)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        for photo in photos:
            read_products(json.dumps(photo.metadata()).encode())
