"""Which steps run, in which order, on what schedule. No tensors here, and nothing heavy at import."""

import atexit
import gc

from flows.servers.environment import configure

configure()  # before anything imports prefect or mlflow, which read their settings at import

from flows.orchestration.patches import endure  # noqa: E402

endure()
# before it ends Python would look through millions of objects for cycles: three seconds that nobody gets anything for
atexit.register(gc.freeze)
