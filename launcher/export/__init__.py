"""A finished model for other programs: transformers and its hub, onnxruntime, sherpa-onnx, torch.export."""
