from rlhf_lib.conversation import *  # noqa: F403
