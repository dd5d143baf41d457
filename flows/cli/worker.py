"""What a Prefect worker loads (prefect.yaml's entrypoints): the flows, in a process that is configured first."""

from flows.cli.configure import configure

configure()

from flows.collect import collect  # noqa: E402
from flows.compare import compare  # noqa: E402
from flows.rlhf import rlhf  # noqa: E402

__all__ = ["collect", "compare", "rlhf"]
