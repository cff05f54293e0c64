"""The verbs of `python -m megatron_moe_grpo`: parse, call, print."""
