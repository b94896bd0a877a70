"""A finished run for other programs and readers: an ONNX graph, a MONAI bundle, a model card."""
