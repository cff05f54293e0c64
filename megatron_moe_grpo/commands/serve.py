"""`serve FOLDER`: an OpenAI-compatible server for a Megatron checkpoint or a Hugging Face folder, on one process."""

import argparse
from pathlib import Path

from megatron_moe_grpo.errors import ConfigError

LOOPBACK = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("folder", type=Path, help="Megatron checkpoint, or exported Hugging Face folder")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--model-name", help="id of the model in requests (default: the folder's name)")
    parser.add_argument("--api-key-file", type=Path, help="file with the key that clients must send")
    parser.add_argument(
        "--allow-remote-images", action="store_true", help="fetch http(s) image addresses, public hosts only"
    )
    parser.add_argument("--max-positions", type=int, default=4096, help="longest prompt with its answer")
    parser.add_argument("--max-sequences", type=int, default=16, help="sequences decoded together")


def run(arguments: argparse.Namespace) -> None:
    """Loads, then answers until it is stopped."""
    api_key = _api_key(arguments)
    from megatron_moe_grpo.config.schema import ParallelConfig
    from megatron_moe_grpo.mcore.parallel import start_parallel
    from megatron_moe_grpo.serving.endpoints import Served
    from megatron_moe_grpo.serving.engine import Engine
    from megatron_moe_grpo.serving.limits import Limits
    from megatron_moe_grpo.serving.loading import load_to_serve
    from megatron_moe_grpo.serving.prompting import Prompting
    from megatron_moe_grpo.serving.remote_images import RemoteImages
    from megatron_moe_grpo.serving.server import serve

    start_parallel(ParallelConfig(), seed=0)
    loaded = load_to_serve(arguments.folder)
    max_positions = min(arguments.max_positions, loaded.max_positions)
    limits = Limits(max_positions=max_positions, max_sequences=arguments.max_sequences)
    remote = RemoteImages(limits) if arguments.allow_remote_images else None
    served = Served(
        name=arguments.model_name or arguments.folder.resolve().name,
        engine=Engine(loaded.model, loaded.processing, limits),
        processing=loaded.processing,
        prompting=Prompting(loaded.processing, limits, loaded.vocab_size, remote),
        limits=limits,
        api_key=api_key,
    )
    serve(served, arguments.host, arguments.port)


def _api_key(arguments: argparse.Namespace) -> str | None:
    if arguments.api_key_file is None:
        if arguments.host not in (LOOPBACK, "localhost", "::1"):
            raise ConfigError(
                "a server that others can reach needs an API key",
                got=f"--host {arguments.host} without --api-key-file",
                remedy="write a key into a file that only you can read, and pass --api-key-file FILE",
            )
        return None
    key = arguments.api_key_file.read_text(encoding="utf-8").strip()
    if not key:
        raise ConfigError("the API key file is empty", got=arguments.api_key_file)
    return key
