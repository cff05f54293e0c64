"""The only door to Megatron-Core.  Importing it makes `megatron.core` usable on a machine without CUDA."""

from megatron_moe_grpo.mcore.cpu_platform import install_cpu_platform

# The one side effect at import in this package: the hook must be in place before the first `import megatron.core`.
install_cpu_platform()
