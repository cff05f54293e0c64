"""One strict typed tree of settings, importable without torch."""

from megatron_moe_grpo.config.load import dump_config, load_config, parse_config
from megatron_moe_grpo.config.schema import RunConfig

__all__ = ["RunConfig", "dump_config", "load_config", "parse_config"]
