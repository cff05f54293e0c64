"""The same surroundings for every test: no network, no account, few threads.  Set before torch is imported."""

import os

# Two test processes on a two-core machine fight over threads; a caller's own setting wins.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
