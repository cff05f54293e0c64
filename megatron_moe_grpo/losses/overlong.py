"""DAPO's soft overlong punishment: the reward falls before the length limit, not at it.  DAPO Eq. 13.

            0                            |y| <= L_max - L_cache
penalty =   (L_max - L_cache - |y|) / L_cache    in between
            -1                           |y| >= L_max
"""

import torch
from torch import Tensor


def overlong_penalty(length_B: Tensor, max_tokens: int, overlong_tokens: int) -> Tensor:
    """What is added to a response's reward for its length.  DAPO Eq. 13.

    Args:
        length_B: |y|, tokens of each response, end-of-turn token included.
        max_tokens: L_max, `rollout.max_new_tokens`.
        overlong_tokens: L_cache, `rollout.overlong_tokens`; 0: no penalty.
    Returns:
        penalty_B: float32, from -1 to 0.
    """
    if overlong_tokens == 0:
        return torch.zeros(length_B.shape, dtype=torch.float32, device=length_B.device)
    first_punished = max_tokens - overlong_tokens
    return ((first_punished - length_B) / overlong_tokens).clamp(min=-1.0, max=0.0).float()
