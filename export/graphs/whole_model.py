"""A graph of a bundle as one model of the onnx package, without PyTorch."""

from __future__ import annotations

import onnx
from onnx import TensorProto, external_data_helper

from percoedge.engines.contract import GraphSource


def whole_model(source: GraphSource) -> onnx.ModelProto:
    """The model of a graph with its external data inside."""
    model = onnx.load_from_string(source.model)
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            place = external_data_helper.ExternalDataInfo(tensor)
            data = source.data[place.location]
            tensor.raw_data = data[place.offset : place.offset + place.length]
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return model
