"""What the endpoint answers for some test photos, and a picture of that."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from common.dataset import Dataset
from serving.client.predictor import ImagePredictor
from serving.container.inference import Prediction

SIDE, CAPTION, GAP = 224, 40, 8  # pixels


@dataclass(frozen=True)
class Sample:
    """A test photo, its true count, and what the endpoint answered."""

    photo_id: str
    jpeg: bytes
    truth: int
    prediction: Prediction

    @property
    def data_url(self) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def ask_endpoint(endpoint: str, dataset: Dataset, *, per_count: int) -> list[Sample]:
    """Ask for the first test photos of each count."""
    predictor = ImagePredictor(endpoint=endpoint)
    chosen: dict[int, list[Sample]] = {count: [] for count in dataset.counts}
    for photo in dataset.photos("test"):
        if len(chosen[photo.count]) < per_count:
            answer = predictor.predict(photo.jpeg)
            chosen[photo.count].append(Sample(photo.id, photo.jpeg, photo.count, answer))
    return [sample for samples in chosen.values() for sample in samples]


def draw_samples(samples: list[Sample], file: Path, *, columns: int = 5) -> Path:
    """Draw the photos as a PNG, each above its true and its predicted count."""
    rows = -(-len(samples) // columns)
    wide, high = SIDE + GAP, SIDE + CAPTION + GAP
    picture = Image.new("RGB", (columns * wide + GAP, rows * high + GAP), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=18)
    for number, sample in enumerate(samples):
        left, top = GAP + number % columns * wide, GAP + number // columns * high
        photo = Image.open(io.BytesIO(sample.jpeg)).convert("RGB").resize((SIDE, SIDE))
        picture.paste(photo, (left, top))
        right = sample.prediction.count == sample.truth
        text = f"true {sample.truth}, predicted {sample.prediction.count}"
        draw.text((left, top + SIDE + 8), text, "#2e8b57" if right else "#c8553d", font)
    picture.save(file)
    return file
