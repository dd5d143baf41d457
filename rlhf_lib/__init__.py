"""PPO-RLHF without the pipeline: data, models, rewards, PPO and evaluation, usable from a notebook as they are."""

__version__ = "0.1.0"
