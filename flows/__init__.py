"""Which steps run, in which order, on what schedule. No tensors here, and nothing heavy at import."""
