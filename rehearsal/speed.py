"""How fast this machine is, so that the demo takes and announces about the same time everywhere."""

import time
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from serving.container.cores import available_cores

SLICES, SLICE_SECONDS = 4, 0.4  # the slowest counts, as a processor is fast only for a moment
MARGIN = 0.95  # of the goal
# Measured in November 2026 on two cores of an AMD EPYC "Milan" (AVX2, no AVX-512): passes through
# the blocks below per second, and photos per second of a run, for features and a head's epochs.
REFERENCE_PASSES = {1: 66.0, 2: 115.0}  # by cores
REFERENCE_PHOTOS = 30.0
PIXELS = (4, 3, 224, 224)
CONVOLUTIONS = (  # output channels, kernel, groups, stride: three of EfficientNet-Lite0's 16 blocks
    *((32, 3, 1, 2), (96, 1, 1, 1), (96, 3, 96, 2), (24, 1, 1, 1)),
    *((144, 1, 1, 1), (144, 5, 144, 2), (40, 1, 1, 1)),
    *((240, 1, 1, 1), (240, 3, 240, 2), (80, 1, 1, 1)),
)
FEWEST, MOST_SYNTHETIC, MOST_REAL = 240, 800, 6749


@dataclass(frozen=True)
class Plan:
    """How many photos the demo uses, and how long this machine takes."""

    photos: int
    photos_a_second: float
    slowness: float  # relative to the reference machine; 2 takes twice as long
    seconds: float  # in total


def make_plan(
    *, goal: float, others: float, most: int, asked: int | None, speed: float, speed_of_one: float
) -> Plan:
    """Plan as many photos as fit into `goal` seconds: at least FEWEST, at most `most`, or `asked`.

    `others` are the seconds that the reference machine takes without photos, mostly on one core.
    """
    slowness = 1 / speed_of_one
    photos_a_second = REFERENCE_PHOTOS * speed
    fitting = int((MARGIN * goal - others * slowness) * photos_a_second)
    photos = asked or min(max(fitting, FEWEST), most)
    seconds = others * slowness + photos / photos_a_second
    return Plan(photos, photos_a_second, slowness, seconds)


def measure_speed(cores: int | None = None) -> float:
    """This machine's speed at convolutions, which take longest, on `cores` cores or on all.

    1 is the speed of the reference machine on as many cores, or on its two.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(cores or available_cores(), available_cores())
    session = onnxruntime.InferenceSession(
        _blocks().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    pixels = np.ones(PIXELS, np.float32)
    session.run(None, {"pixels": pixels})
    slices = [_passes_a_second(session, pixels) for _ in range(SLICES)]
    return min(slices) / REFERENCE_PASSES[cores or 2]


def _passes_a_second(session: onnxruntime.InferenceSession, pixels: NDArray[np.float32]) -> float:
    passes, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < SLICE_SECONDS:
        session.run(None, {"pixels": pixels})
        passes += 1
    return passes / passed


def _blocks() -> ModelProto:
    """A network of CONVOLUTIONS with random weights."""
    random = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "pixels", 3
    for number, (out, kernel, groups, stride) in enumerate(CONVOLUTIONS):
        shape = (out, channels // groups, kernel, kernel)
        values: NDArray[np.float32] = random.normal(0, 0.1, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"weights{number}"))
        output = f"map{number}"
        nodes.append(
            helper.make_node(
                "Conv",
                [last, weights[-1].name],
                [output],
                strides=[stride, stride],
                pads=[kernel // 2] * 4,
                group=groups,
            )
        )
        last, channels = output, out
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, PIXELS)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
