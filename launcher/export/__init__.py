"""A finished model for other programs: transformers, onnxruntime, sherpa-onnx, torch.export and the Hugging Face hub."""
