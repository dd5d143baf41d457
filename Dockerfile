# For the Docker and Kubernetes work pools (docs/operate.md); a GPU build needs another torch than constraints.txt's.
FROM python:3.11.13-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/cache/huggingface RLHF_RUN_DIR=/runs
# git names the commit in MLflow's tags; the compiler is torch.compile's. Debian's mirrors keep no older versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt ./
RUN pip install "$(grep '^torch==' constraints.txt)"
COPY . .
RUN pip install --constraint constraints.txt --editable . \
    && useradd --create-home --uid 1000 rlhf \
    && mkdir -p /runs /cache \
    && chown rlhf /runs /cache
USER 1000
VOLUME ["/runs", "/cache"]
