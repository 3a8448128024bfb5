"""The handlers as SageMaker's own containers call them; in model.tar.gz it is code/inference.py.

They count a handler's parameters and pass one more, their context, to one that has room for it.
"""

from serving.container import inference
from serving.container.artifact import Model
from serving.container.inference import Answers
from serving.container.questions import Questions


def model_fn(model_dir: str) -> Model:
    return inference.model_fn(model_dir)


def input_fn(body: bytes, content_type: str) -> Questions:
    return inference.input_fn(body, content_type)


def predict_fn(questions: Questions, model: Model) -> Answers:
    return inference.predict_fn(questions, model)


def output_fn(answers: Answers, accept: str) -> tuple[str, str]:
    return inference.output_fn(answers, accept)
