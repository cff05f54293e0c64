"""Reinforcement learning of expert routing in Mixture-of-Experts vision-language models, on Megatron-Core."""

__version__ = "0.1.0"
