"""What a recipe will do, worked out before anything is trained: `rlhf check`, and the start of every run."""
