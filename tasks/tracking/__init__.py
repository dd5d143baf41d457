"""What is recorded of a run: in MLflow, and in the run folder."""
