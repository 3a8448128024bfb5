"""The model folder that is served: ONNX, int8 and handlers. Uses no AWS."""
