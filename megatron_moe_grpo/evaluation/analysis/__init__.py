"""How a model routes, as numbers and pictures: the figures of MoE-GRPO, and what sampling routes gains."""
