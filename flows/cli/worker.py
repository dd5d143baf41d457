"""The worker's entry: prefect.yaml's entrypoints load the flows from here, after `configure()`."""

from flows.cli.configure import configure

configure()

from flows.collect import collect  # noqa: E402
from flows.compare import compare  # noqa: E402
from flows.retention import retention  # noqa: E402
from flows.rlhf import rlhf  # noqa: E402

__all__ = ["collect", "compare", "retention", "rlhf"]
