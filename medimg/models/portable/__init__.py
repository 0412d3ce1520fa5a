"""Models that run elsewhere: as ONNX files, or as programs of torch.export."""
