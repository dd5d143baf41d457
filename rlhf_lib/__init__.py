"""PPO-RLHF without the pipeline: data, models, rewards, training, PPO and evaluation, usable from a notebook."""

from rlhf_lib import moved

moved.install()


def __getattr__(name: str) -> str:
    """`__version__`: that of the installed package, which pyproject.toml says."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("ppo-rlhf")
