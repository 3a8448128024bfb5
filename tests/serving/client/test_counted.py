from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client.counted import Counted, FileError, Output, read_records
from serving.container.inference import Prediction

ROWS = [
    Counted(f"bins/{name}", Prediction(count, count + 0.1, {"1": 0.25, "2": 0.75}))
    for count, name in enumerate(["a.jpg", 'b,"c".jpg', "d e.jpg"], start=1)
]


WHOLE = (
    "file,count,mean,probability_1,probability_2,asked\n"
    "bins/a.jpg,1,1.1,0.25,0.75,model\n"
    '"bins/b,""c"".jpg",2,2.1,0.25,0.75,model\n'
    "bins/d e.jpg,3,3.1,0.25,0.75,model\n"
)


def write(file: Path, rows: list[Counted]) -> None:
    output = Output(file, "model")
    for row in rows:
        output.add(row)
    output.close()


def test_a_file_grows_to_what_would_be_written_at_once(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    for row in ROWS:
        write(file, [row])
    assert file.read_text() == WHOLE
    assert Output(file, "model").counted == ROWS


@given(st.integers(0, len(WHOLE)))
def test_a_file_cut_off_anywhere_keeps_its_whole_rows(
    tmp_path_factory: pytest.TempPathFactory, kept: int
) -> None:
    file = tmp_path_factory.mktemp("cut") / "counts.csv"
    file.write_text(WHOLE[:kept])
    found = Output(file, "model").counted
    assert found == ROWS[: len(found)]
    write(file, ROWS[len(found) :])
    assert file.read_text() == WHOLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my,notes\n1,2\n", "is not an output of this command"),
        ('{"my": "notes"}', "is not an output of this command"),
        ("file,count,mean,probability_1,asked\na.jpg,x,1,1,model\n", "line 2: not a counted"),
        ("file,count,mean,probability_1,asked\na.jpg,1\n", "line 2: not a counted photo"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "notes.csv"
    file.write_text(text)
    with pytest.raises(FileError, match=message):
        Output(file, "model")
    assert file.read_text() == text


def test_rows_of_another_model_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "counts.csv", ROWS)
    with pytest.raises(FileError, match="was counted by model, not by other: name another file"):
        Output(tmp_path / "counts.csv", "other")
    assert (tmp_path / "counts.csv").read_text() == WHOLE


def test_a_model_with_other_labels_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "counts.csv", ROWS)
    output = Output(tmp_path / "counts.csv", "model")
    with pytest.raises(FileError, match="was counted by another model"):
        output.add(Counted("new.jpg", Prediction(9, 9.0, {"9": 1.0})))
    output.close()
    assert (tmp_path / "counts.csv").read_text() == WHOLE


def test_a_photo_with_two_records_is_named(tmp_path: Path) -> None:
    file = tmp_path / "records.csv"
    file.write_text("photo,count\na.jpg,2\nb.jpg,1\na.jpg,2\n")
    assert read_records(file) == {"a.jpg": 2, "b.jpg": 1}
    file.write_text("photo,count\na.jpg,2\na.jpg,3\n")
    with pytest.raises(FileError, match=r"line 3: a\.jpg has two counts"):
        read_records(file)
