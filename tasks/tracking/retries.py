"""Which errors are worth another attempt: the network, the hub or the tracking server was away."""

from __future__ import annotations

from rlhf_lib.errors import DataError, ModelError, RLHFError

_STATUS = {408, 425, 429, 500, 502, 503, 504}


def is_retryable(error: BaseException | None) -> bool:
    """Whether the same call may succeed a little later.

    What the user has to fix is not retryable; a missing data set or model is judged by the error that it was raised
    from. Nor is what HF_HUB_OFFLINE forbids.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return False
    if any(isinstance(link, RLHFError) and not isinstance(link, (DataError, ModelError)) for link in chain):
        return False
    return any(_is_transient(link) for link in chain)


def _is_transient(error: BaseException) -> bool:
    import http.client

    import httpx
    import requests
    import urllib3
    from mlflow.exceptions import MlflowException

    status = None
    if isinstance(error, requests.RequestException | httpx.HTTPStatusError):
        status = getattr(error.response, "status_code", None)
    elif isinstance(error, MlflowException) and "API request to" in str(error):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
    if status is not None:
        return status in _STATUS
    return isinstance(
        error,
        ConnectionError
        | TimeoutError
        | http.client.IncompleteRead
        | httpx.TransportError
        | requests.ConnectionError
        | requests.Timeout
        | requests.exceptions.ChunkedEncodingError
        | urllib3.exceptions.ProtocolError
        | urllib3.exceptions.NewConnectionError
        | urllib3.exceptions.MaxRetryError,
    )
