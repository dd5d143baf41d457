"""A process of a PPO run under FSDP2 on the CPU, which Accelerate keeps for GPUs: the same code of its, told so."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from rlhf_lib.ppo.run import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["FSDP_VERSION"] = "2"
    accelerator = Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
    )
    accelerator.state.distributed_type = DistributedType.FSDP
    main(accelerator)
