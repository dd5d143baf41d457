"""PPO-RLHF without the pipeline: data, models, rewards, training, PPO and evaluation, usable from a notebook."""

from rlhf_lib import moved

__version__ = "0.1.0"

moved.install()
