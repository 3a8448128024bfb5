import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.container.artifact import Model
from serving.container.inference import (
    Answer,
    Answers,
    Prediction,
    count_photo,
    input_fn,
    model_fn,
    output_fn,
    predict_fn,
)
from serving.container.questions import Question, Questions, RequestError
from tests.support.tiny_model import LABELS, grey_photo, write_tiny_model

PREDICTION = Prediction(2, 1.9, {"1": 0.1, "2": 0.9})
ONE = Answers([Answer(PREDICTION, None, review=False)], many=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_fn(write_tiny_model(tmp_path_factory.mktemp("model")))


def ask(model: Model, *questions: Question, review_below: float = 0.1) -> list[dict[str, Any]]:
    """What is answered in JSON to a list."""
    answers = predict_fn(Questions(questions, many=True), model, review_below)
    found: list[dict[str, Any]] = json.loads(output_fn(answers, "application/json")[0])
    return found


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_each_count_is_recognised(model: Model, count: int, form: str) -> None:
    assert count_photo(grey_photo(count, form), model).count == count


def test_the_four_handlers_follow_each_other(model: Model) -> None:
    questions = input_fn(grey_photo(4), "image/jpeg")
    body, content_type = output_fn(predict_fn(questions, model), None)
    assert content_type == "application/json"
    assert json.loads(body)["count"] == 4


def test_the_answer_is_a_distribution_over_the_labels_and_its_mean(model: Model) -> None:
    prediction = count_photo(grey_photo(3), model)
    assert list(prediction.probabilities) == LABELS
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    mean = sum(int(label) * share for label, share in prediction.probabilities.items())
    assert prediction.mean == pytest.approx(mean, abs=1e-4)


def test_the_count_is_the_label_and_not_its_position(tmp_path: Path) -> None:
    model = model_fn(write_tiny_model(tmp_path, labels=["0", "3", "5"]))
    assert count_photo(grey_photo(3), model).count == 3


def test_a_broken_photo_is_the_clients_mistake(model: Model) -> None:
    with pytest.raises(RequestError, match=r"^not a readable") as caught:
        count_photo(b"no photo", model)
    assert caught.value.status == 400


def test_many_photos_are_answered_in_their_order(model: Model) -> None:
    counts = [1 + number % 5 for number in range(20)]
    answers = ask(model, *(Question(grey_photo(count)) for count in counts))
    assert [answer["count"] for answer in answers] == counts


def test_of_many_photos_the_broken_one_is_named(model: Model) -> None:
    questions = [Question(grey_photo(1)) for _ in range(12)]
    questions[9] = Question(b"no photo")
    with pytest.raises(RequestError, match=r"^photo 10 of 12: not a readable"):
        ask(model, *questions)


def test_pixels_are_counted_like_the_photo_that_shows_them(model: Model) -> None:
    pixels = np.full((40, 60, 3), round(4 / 6 * 255), np.uint8)
    (of_pixels,) = ask(model, Question(pixels))
    (of_photo,) = ask(model, Question(grey_photo(4, "PNG")))
    assert of_pixels == of_photo


def test_a_record_is_answered_with_how_probable_it_is(model: Model) -> None:
    right, wrong, unknown = ask(model, *(Question(grey_photo(3), record) for record in (3, 5, 17)))
    assert right["agreement"] == right["probabilities"]["3"] > 0.9
    assert wrong["agreement"] == wrong["probabilities"]["5"] < 0.1
    assert unknown["agreement"] == 0
    assert [answer["review"] for answer in (right, wrong, unknown)] == [False, True, True]


def test_an_unsure_count_is_to_be_reviewed_and_a_sure_one_says_nothing(model: Model) -> None:
    (sure,) = ask(model, Question(grey_photo(3)))
    assert set(sure) == {"count", "mean", "probabilities"}
    (unsure,) = ask(model, Question(grey_photo(3)), review_below=0.9999)
    assert unsure["review"] is True


@pytest.mark.parametrize(
    "accept", [None, "", "*/*", "application/json", "application/*", "text/html, */*;q=0.8"]
)
def test_json_is_the_default_answer(accept: str | None) -> None:
    body, content_type = output_fn(ONE, accept)
    assert content_type == "application/json"
    assert json.loads(body) == {
        "count": 2,
        "mean": 1.9,
        "probabilities": {"1": 0.1, "2": 0.9},
    }


@pytest.mark.parametrize("accept", ["text/csv", "text/*", "Text/CSV;q=1", "text/csv, */*"])
def test_csv_is_one_row(accept: str) -> None:
    assert output_fn(ONE, accept) == ("2,1.9,0.1,0.9,,false\n", "text/csv")


def test_csv_has_a_row_for_each_photo_and_what_follows_from_its_record() -> None:
    answers = Answers([Answer(PREDICTION, 0.9, False), Answer(PREDICTION, 0.1, True)], many=True)
    body, _ = output_fn(answers, "text/csv")
    assert body == "2,1.9,0.1,0.9,0.9,false\n2,1.9,0.1,0.9,0.1,true\n"


@given(st.text(st.characters(codec="ascii"), max_size=300))
def test_an_accept_header_gets_an_answer_or_406_in_one_line(accept: str) -> None:
    refusals = []
    try:
        assert output_fn(ONE, accept)[1] in ("application/json", "text/csv")
    except RequestError as error:
        refusals.append(error)
    assert all(error.status == 406 and "\n" not in str(error) for error in refusals)
