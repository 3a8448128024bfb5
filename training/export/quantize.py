"""Quantisation of the convolutions of an ONNX network to int8.

Static quantisation by ONNX Runtime: 8-bit activations with one scale per tensor, 8-bit weights with
one scale per channel. Everything outside the convolutions stays float32: normalisation, pooled
statistics, head. So does the first convolution of a network, which is faster in float32, as three
channels are too few to fill an int8 product.

The largest error of quantisation is that rounded weights shift the mean output of a convolution.
The bias corrects for it (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and
Bias Correction", section 4.2, with measured means). Activations range from their minimum to their
maximum on the calibration photos; clipping (entropy, percentiles) was no better on photos of bins.
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

QUANTIZED = ("Conv", "Clip", "Relu", "MaxPool")  # additions between them follow
LARGEST = 127  # of int8


def quantize_onnx(
    float_model: Path,
    int8_model: Path,
    calibration: Iterable[NDArray[np.uint8]],
) -> None:
    """Quantise `float_model` and write it to `int8_model`, which is complete or absent.

    `calibration` has batches of pixels [N, size, size, 3]. It is iterated twice, so it must not be
    a generator.
    """
    model = onnx.load(float_model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    of_pixels = {node.name for node in convolutions if _reads_pixels(model, node)}
    convolutions = [node for node in convolutions if node.name not in of_pixels]
    means = _input_means(model, convolutions, tqdm(calibration, "calibration, means", unit="batch"))
    _round_weights(model, convolutions, means)
    # Marks shape inference and BatchNorm folding as done: the exporter did both.
    add_pre_process_metadata(model)
    with replacing(int8_model) as partial:
        quantize_static(
            model,
            partial,
            _Reader(model, tqdm(calibration, "calibration, ranges", unit="batch")),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=sorted(of_pixels),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


def _reads_pixels(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a convolution is the first of a network: its weights are [out, 3 channels, h, w]."""
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name == node.input[1]]
    return bool(weights.dims[1] == 3)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the batches to ONNX Runtime."""

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
    """Return input tensor of a convolution → mean of each channel over photos and pixels."""
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
) -> None:
    """Round the weights to multiples of the scale of their channel, and correct each bias.

    The correction keeps the mean output of the convolution for the `means` of its inputs.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in convolutions:
        weights = numpy_helper.to_array(initializers[node.input[1]])  # [out, in / groups, h, w]
        scales = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / LARGEST
        scales[scales == 0] = 1  # a channel whose BatchNorm weight is 0
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
