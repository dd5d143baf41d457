"""The Prefect flows: which stages run, in which order. No tensors here, and no heavy imports."""
