"""Which steps run, in which order, on what schedule. No tensors here, and nothing heavy at import."""

from flows.environment import configure

configure()  # before anything imports prefect or mlflow, which read their settings at import
