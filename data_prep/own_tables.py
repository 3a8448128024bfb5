"""Tables of the user's own photos, with the products of their records: CSV or JSON lines.

    photo,count,group,asin,quantity,length,width,height,weight
    shelf/a.jpg,3,aisle 1,B000C33MI2,2,3.9,2.9,2.8,0.3
    shelf/a.jpg,3,aisle 1,B0050Z27KG,1,,,,
    shelf/b.jpg,0,,,,,,,

    {"photo": "shelf/a.jpg", "group": "aisle 1", "record": {"count": 3, "products": [
        {"asin": "B000C33MI2", "quantity": 2, "length": 3.9, "width": 2.9, "height": 2.8},
        {"asin": "B0050Z27KG", "quantity": 1}]}}      # all of it on one line

A table has one row for each product, or one for a photo without any. Only photo and count are
required. Lengths are in inches, weights in pounds, of one item. Paths are relative to the file.
"""

import csv
import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.folder import DataError
from data_prep.own_photos import OwnPhoto, id_of
from data_prep.products import MOST, Product

FIELDS = ("asin", "quantity", *MOST)  # of a product
COLUMNS = ("photo", "count", "group", *FIELDS)
MOST_ITEMS = 1_000_000  # more are a mistake

Row = tuple[str, Mapping[str, Any], list[Product]]  # where it is, its other fields, its products


def read_csv(file: Path) -> list[OwnPhoto]:
    """Read the photos of a table; raises DataError if it or one of its rows is invalid."""
    return _joined(f"--source csv {file}", file.parent, _csv_rows(file), many_rows=True)


def read_jsonl(file: Path) -> list[OwnPhoto]:
    """Read the photos of JSON lines; raises DataError if one of them is invalid."""
    return _joined(f"--source jsonl {file}", file.parent, _json_rows(file), many_rows=False)


def _csv_rows(file: Path) -> Iterator[Row]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            reader = csv.DictReader(content)
            names = list(reader.fieldnames or [])
            if missing := {"photo", "count"} - set(names):
                raise DataError(
                    f"--source csv {file}: no column {' and no '.join(sorted(missing))}; the first "
                    f"line must name photo, count and optionally {', '.join(COLUMNS[2:])}"
                )
            if len(set(names)) < len(names):
                raise DataError(f"--source csv {file}: the first line names a column twice")
            if unread := [name for name in names if name not in COLUMNS]:
                print(f"columns that are not read: {', '.join(unread)}", file=sys.stderr)
            for row in reader:
                where = f"--source csv {file}, line {reader.line_num}"
                if None in row:  # such as 3,9 for 3.9
                    raise DataError(f"{where}: more cells than the first line has columns")
                cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
                if not cells["count"].isdecimal() or len(cells["count"]) > len(str(MOST_ITEMS)):
                    raise DataError(f"{where}: a photo and a whole count are required")
                given = {name: cells[name] for name in FIELDS if cells[name]}
                fields = {
                    name: text if name == "asin" else _number(text) for name, text in given.items()
                }
                products = [_product(fields, where)] if fields else []
                yield where, cells | {"count": int(cells["count"])}, products
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--source csv {file}: {error}") from error


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _json_rows(file: Path) -> Iterator[Row]:
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--source jsonl {file}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"--source jsonl {file}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_without_repetition)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error})") from error
        row = _object(row, where, {"photo", "record", "group"})
        record = _object(row.get("record"), f"{where}, record", {"count", "products"})
        listed = record.get("products", [])
        if not isinstance(listed, list):
            raise DataError(f"{where}: products are a list of objects")
        products = [_product(_object(each, where, set(FIELDS)), where) for each in listed]
        yield where, {**row, "count": record.get("count")}, products


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("an object has a field twice")
    return dict(pairs)


def _object(value: Any, where: str, fields: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() - fields:
        known = ", ".join(sorted(fields))
        raise DataError(f"{where}: an object with no fields but {known} is required")
    return value


def _product(fields: Mapping[str, Any], where: str) -> Product:
    """Check the fields of a product; raises DataError for a value that cannot be."""
    product = Product()
    for name, value in fields.items():
        if value is None:
            continue
        if name == "asin":
            product["asin"] = _text(value, name, where)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{where}: {name} {value!r:.20} is not a number")
        elif name == "quantity":
            if not 1 <= value <= MOST_ITEMS or value != int(value):
                raise DataError(f"{where}: quantity {value!r:.20} is no number of items")
            product["quantity"] = int(value)
        elif not 0 < value <= MOST[name]:
            unit = "pounds" if name == "weight" else "inches"
            raise DataError(f"{where}: {name} {value!r:.20} is not in 0–{MOST[name]:.0f} {unit}")
        else:
            product[name] = float(value)  # type: ignore[literal-required]
    if not product:
        raise DataError(f"{where}: a product has no field")
    return product


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {name} {value!r:.20} is not text")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise DataError(f"{where}: {name} {value!r:.40} has characters that are not text")
    return value


def _joined(source: str, folder: Path, rows: Iterable[Row], *, many_rows: bool) -> list[OwnPhoto]:
    """The photo of each row; with `many_rows`, rows of one photo are its products."""
    photos: dict[str, OwnPhoto] = {}
    for where, row, products in rows:
        photo = _photo(where, folder, row, products)
        before = photos.get(photo.place)
        if before is None:
            photos[photo.place] = photo
        elif not many_rows or not before.products or not products:
            raise DataError(f"{where}: {row['photo']} is listed more than once")
        elif (before.count, before.group) != (photo.count, photo.group):
            raise DataError(f"{where}: {row['photo']} has another count or group than above")
        else:
            photos[photo.place] = photo.with_products(before.products)
        asins = [each["asin"] for each in photos[photo.place].products if "asin" in each]
        if len(set(asins)) < len(asins):
            raise DataError(f"{where}: {row['photo']} has product {asins[-1]} more than once")
    if not photos:
        raise DataError(f"{source}: there is no photo in it")
    return list(photos.values())


def _photo(where: str, folder: Path, row: Mapping[str, Any], products: list[Product]) -> OwnPhoto:
    place, count, group = row.get("photo"), row.get("count"), row.get("group") or ""
    if type(count) is not int or not 0 <= count <= MOST_ITEMS or not place:
        raise DataError(f"{where}: a photo and a whole count are required")
    place = _text(place, "photo", where)
    group = _text(group, "group", where) if group else ""
    scheme = place.partition("://")[0] if "://" in place else ""
    if scheme not in {"", "s3"}:
        raise DataError(f"{where}: {place} is neither a path nor s3://bucket/key")
    absolute = place if scheme else str(folder / place)
    return OwnPhoto(id_of(place), absolute, count, group, tuple(products))
