"""What the flows need from Prefect."""
