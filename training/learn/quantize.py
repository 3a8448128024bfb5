"""A float32 network in ONNX → the same network with convolutions in int8.

Static quantisation by ONNX Runtime: activations in 8 bits with one scale a tensor, weights in 8
bits with one scale a channel. What lies outside the convolutions stays float32: normalisation,
pooled statistics, head. So does a network's first convolution, which is faster that way: three
channels are too few to fill an int8 product.

Rounded weights shift the mean of what a convolution answers, more than all else that
quantisation does; the bias takes the shift back (Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", section 4.2, with measured means). The ranges
of activations are their least and greatest value on the calibration photos: cutting them short
(entropy, percentiles) was no better on photos of bins.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from tqdm import tqdm

from common.files import replacing

QUANTIZED = ("Conv", "Clip", "Relu", "MaxPool")  # the additions in between follow


def quantize_onnx(
    float_model: Path,
    int8_model: Path,
    calibration: Iterable[NDArray[np.uint8]],
    *,
    reduce_range: bool = False,
) -> None:
    """Write `float_model` with int8 convolutions to `int8_model`: complete, or not at all.

    `calibration` gives batches of the network's input, pixels [N, size, size, 3], and is iterated
    twice: a list, not a generator. What it raises passes through. With `reduce_range` weights
    have 7 bits: less exact, but right without VNNI too.
    """
    model = onnx.load(float_model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    of_pixels = {node.name for node in convolutions if _reads_pixels(model, node)}
    convolutions = [node for node in convolutions if node.name not in of_pixels]
    means = _input_means(model, convolutions, tqdm(calibration, "calibration, means", unit="batch"))
    _round_weights(model, convolutions, means, largest=64 if reduce_range else 127)
    add_pre_process_metadata(model)  # the exporter has inferred shapes and folded BatchNorm
    with replacing(int8_model) as partial:
        quantize_static(
            model,
            partial,
            _Reader(model, tqdm(calibration, "calibration, ranges", unit="batch")),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=sorted(of_pixels),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def _reads_pixels(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a convolution is a network's first: its weights are [out, 3 channels, h, w]."""
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name == node.input[1]]
    return bool(weights.dims[1] == 3)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The batches, one by one, as ONNX Runtime asks for them."""

    def __init__(self, model: onnx.ModelProto, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._name = model.graph.input[0].name
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def _input_means(
    model: onnx.ModelProto,
    convolutions: list[onnx.NodeProto],
    calibration: Iterable[NDArray[np.uint8]],
) -> dict[str, NDArray[np.float64]]:
    """Tensor that a convolution reads → mean of each of its channels over photos and places."""
    if not convolutions:
        return {}
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    graph = observed.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "all_but_channels"))
    tensors = list(dict.fromkeys(node.input[0] for node in convolutions))
    for tensor in tensors:
        mean = f"{tensor}_channel_means"
        graph.node.append(
            helper.make_node("ReduceMean", [tensor, "all_but_channels"], [mean], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(
        observed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    outputs = [f"{tensor}_channel_means" for tensor in tensors]
    sums = dict.fromkeys(tensors, np.zeros(()))
    photos = 0
    for pixels in calibration:
        means = session.run(outputs, {model.graph.input[0].name: pixels})
        photos += len(pixels)
        for tensor, mean in zip(tensors, means, strict=True):
            sums[tensor] = sums[tensor] + mean.astype(np.float64) * len(pixels)
    return {tensor: total / photos for tensor, total in sums.items()}


def _round_weights(
    model: onnx.ModelProto,
    convolutions: list[onnx.NodeProto],
    means: dict[str, NDArray[np.float64]],
    *,
    largest: int,
) -> None:
    """Round the weights to what int8 can say, ±`largest` steps a channel, and have each bias make
    up for what that does to the mean."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in convolutions:
        weights = numpy_helper.to_array(initializers[node.input[1]])  # [out, in / groups, h, w]
        scales = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / largest
        scales[scales == 0] = 1  # a channel that BatchNorm has switched off
        rounded = np.round(weights / scales) * scales
        lost = (weights - rounded).sum(axis=(2, 3))  # [out, in / groups]
        by_group = means[node.input[0]].reshape(-1, lost.shape[1])  # [groups, in / groups]
        shift = (lost * by_group.repeat(len(lost) // len(by_group), axis=0)).sum(axis=1)
        if len(node.input) == 2:
            node.input.append(f"{node.input[1]}_bias")
            zeros = numpy_helper.from_array(np.zeros(len(lost), np.float32), node.input[2])
            model.graph.initializer.append(zeros)
            initializers[zeros.name] = model.graph.initializer[-1]
        bias = numpy_helper.to_array(initializers[node.input[2]])
        _set(initializers[node.input[1]], rounded)
        _set(initializers[node.input[2]], bias + shift)


def _set(initializer: TensorProto, values: NDArray[np.floating]) -> None:
    initializer.CopyFrom(numpy_helper.from_array(values.astype(np.float32), initializer.name))
