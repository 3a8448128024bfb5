"""Counted photos: as a table, CSV or JSON; as a CSV file that a stopped command continues; and
ranked by how likely their inventory record is wrong."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from common.files import write_atomic
from common.table import table
from serving.container.inference import Prediction, agreement

FIXED = ("file", "count", "mean")
START = ",".join(FIXED)
ASKED = "asked"
PROBABILITY = "probability_"  # prefix of a label in the CSV header


class FileError(ValueError):
    """A CSV file that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Counted:
    """A photo, the model's prediction, and the inventory record."""

    file: str
    prediction: Prediction
    record: int | None = None

    @property
    def agreement(self) -> float | None:
        """The probability that the record is right; None without one."""
        return None if self.record is None else agreement(self.prediction, self.record)


def read_records(file: Path) -> dict[str, int]:
    """Read counts by photo from a CSV with the columns `photo` and `count`.

    Raises FileError, OSError.
    """
    records: dict[str, int] = {}
    try:
        rows = csv.DictReader(io.StringIO(file.read_text("utf-8-sig"), newline=""))
        if not {"photo", "count"} <= set(rows.fieldnames or ()):
            raise FileError(f'{file}: the first line must name the columns "photo" and "count"')
        for row in rows:
            count = (row["count"] or "").strip()
            if not (count.isdecimal() and len(count) < 10):
                raise FileError(f"{file}, line {rows.line_num}: {count!r:.40} is no count")
            photo = (row["photo"] or "").strip()
            if not photo:
                raise FileError(f"{file}, line {rows.line_num}: there is no photo")
            if records.setdefault(photo, int(count)) != int(count):
                raise FileError(f"{file}, line {rows.line_num}: {photo:.100} has two counts")
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{file} is not readable as CSV ({error})") from error
    return records


def with_records(
    counted: Sequence[Counted], records: Mapping[str, int]
) -> tuple[list[Counted], list[str]]:
    """The photos with a record, the one most likely wrong first, and the files without a record.

    A record matches the file as it was given, its name, or its name without suffix.
    """
    ranked, missing = [], []
    for each in counted:
        found = next((records[key] for key in _keys(each.file) if key in records), None)
        if found is None:
            missing.append(each.file)
        else:
            ranked.append(Counted(each.file, each.prediction, found))
    return sorted(ranked, key=lambda each: each.agreement or 0.0), missing


def without_photo(files: Sequence[str], records: Mapping[str, int]) -> list[str]:
    """Records that belong to none of `files`."""
    keys = {key for file in files for key in _keys(file)}
    return [photo for photo in records if photo not in keys]


def _keys(file: str) -> list[str]:
    name = file.rpartition("/")[2]
    return [file, name, name.rpartition(".")[0] or name]


def as_table(counted: Sequence[Counted]) -> str:
    """A text table: file, record, agreement, count, mean, the probability of each count."""
    if not counted:
        return ""
    ranked = counted[0].record is not None
    head = ["file", *(("record", "agreement") if ranked else ()), "count", "mean"]
    head += [f"P({label})" for label in counted[0].prediction.probabilities]
    rows = []
    for each in counted:
        said = each.prediction
        row = [each.file]
        if ranked:
            row += [str(each.record), f"{each.agreement:.2f}"]
        row += [str(said.count), f"{said.mean:.2f}"]
        rows.append([*row, *(f"{share:.2f}" for share in said.probabilities.values())])
    return table(head, rows) + "\n"


def as_csv(counted: Sequence[Counted]) -> str:
    """CSV with a header: file, count, mean, probability_1, …; with records, the agreement."""
    text = io.StringIO()
    labels = list(counted[0].prediction.probabilities) if counted else []
    ranked = bool(counted) and counted[0].record is not None
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_header(labels), *(("record", "agreement") if ranked else ())])
    for each in counted:
        writer.writerow(_cells(each) + ([each.record, each.agreement] if ranked else []))
    return text.getvalue()


def as_json(counted: Sequence[Counted]) -> str:
    """A JSON list of {"file", "count", "mean", "probabilities"}, with records also "record" and
    "agreement"."""
    objects = []
    for each in counted:
        found: dict[str, Any] = {"file": each.file}
        if each.record is not None:
            found |= {"record": each.record, "agreement": each.agreement}
        objects.append(found | vars(each.prediction))
    return json.dumps(objects, indent=1) + "\n"


class Output:
    """A CSV file of counted photos that is written row by row; existing rows are read first.

    The last column is `asked`, the model or endpoint. Raises FileError if the file was not written
    by this class, or comes from another model or endpoint; so does `add` for other labels, as
    another model may have been deployed.
    """

    def __init__(self, file: Path, asked: str) -> None:
        if not file.parent.is_dir():
            raise FileError(f"{file.parent}: no such folder")
        self._file, self._asked = file, asked
        self.counted = self._read() if file.exists() else []
        # Rewritten as a whole, as the last row may be incomplete.
        write_atomic(file, self._text(self.counted).encode())
        self._stream: TextIO = file.open("a", newline="")

    def add(self, counted: Counted) -> None:
        """Write one row immediately."""
        labels = [list(each.prediction.probabilities) for each in (*self.counted[:1], counted)]
        if labels[0] != labels[-1]:
            raise FileError(f"{self._file} was counted by another model: name another file")
        text = self._text([counted])
        self._stream.write(text.partition("\n")[2] if self.counted else text)
        self._stream.flush()
        self.counted.append(counted)

    def close(self) -> None:
        self._stream.close()

    def _text(self, counted: Sequence[Counted]) -> str:
        """The header and a row for each photo; nothing without photos."""
        if not counted:
            return ""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_header(list(counted[0].prediction.probabilities)), ASKED])
        writer.writerows([*_cells(each), self._asked] for each in counted)
        return text.getvalue()

    def _read(self) -> list[Counted]:
        try:
            text = self._file.read_text()
        except UnicodeDecodeError as error:
            raise FileError(f"{self._file} is no text file: name another file") from error
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        names = list(rows.fieldnames or ())
        labels = [name.removeprefix(PROBABILITY) for name in names[len(FIXED) : -1]]
        cut_off = START.startswith(text) or text.startswith(START)  # in the header
        if names != [*_header(labels), ASKED] and not (cut_off and not names):
            raise FileError(f"{self._file} is not an output of this command: name another file")
        try:
            return [self._counted(row, labels) for row in rows]
        except (TypeError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{self._file}, line {rows.line_num}: not a counted photo") from error

    def _counted(self, row: dict[str, str], labels: Sequence[str]) -> Counted:
        shares = {label: float(row[f"{PROBABILITY}{label}"]) for label in labels}
        said = Prediction(int(row["count"]), float(row["mean"]), shares)
        if row[ASKED] != self._asked:
            raise FileError(
                f"{self._file} was counted by {row[ASKED]}, not by {self._asked}: name another file"
            )
        return Counted(row["file"], said)


def _header(labels: Sequence[str]) -> list[str]:
    return [*FIXED, *(f"{PROBABILITY}{label}" for label in labels)]


def _cells(each: Counted) -> list[Any]:
    said = each.prediction
    return [each.file, said.count, said.mean, *said.probabilities.values()]
