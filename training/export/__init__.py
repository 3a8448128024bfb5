"""The model folder that is served: ONNX, int8, handlers. Knows no AWS."""
