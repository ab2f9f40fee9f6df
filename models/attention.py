"""Global and local attention (§ 3.2, Eq. 7–11). In both, the query is at the output position and the softmax runs over
key positions, so the g of Eq. 7 is the query and its f the key."""

import torch
import torch.nn.functional as F
from torch import nn

from models.precision import at_least_float32


def global_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """o_j = Σ_i β_{j,i} · value_i with β_{j,i} = softmax_i(key_iᵀ query_j) over all positions i (Eq. 7–8, before v).

    No 1/√D: the paper has none.

    Args:
        query, key: (B, D, H, W).
        value: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    channels = value.shape[1]
    # torch's fused kernels, which never hold the N x N map, want one contiguous width for all three, in eights on GPUs;
    # zeros change neither the scores nor the channels that are kept.
    width = -(-max(query.shape[1], channels) // 8) * 8

    def tokens(x: torch.Tensor) -> torch.Tensor:  # (B, D or C, H, W) -> (B, 1, H·W, width)
        return F.pad(x.flatten(2).transpose(1, 2), (0, width - x.shape[1])).unsqueeze(1).contiguous()

    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (tokens(at_least_float32(x)) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :channels]  # (B, 1, H·W, C)
    return attended.squeeze(1).transpose(1, 2).reshape(value.shape).to(value.dtype)


def local_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int) -> torch.Tensor:
    """o_p' = Σ_p softmax_p(−(q_p' − k_p)²) · value_p over the window centred on p' (Eq. 10–11).

    Query and key are scalars per channel group; channel c of the value uses the weights of group c // (C // G).
    Positions outside the image are not visible: masked, not zero. Written as a loop over window offsets, which
    needs window² maps of G channels and never unfolds the C channels of the value.

    Args:
        query, key: (B, G, H, W).
        value: (B, C, H, W) with C a multiple of G.
        window: odd side of the window, px.

    Returns:
        (B, C, H, W).
    """
    batch, groups, height, width = query.shape
    channels = value.shape[1]
    if window % 2 == 0 or window < 1:
        raise ValueError(f"window must be odd and positive, not {window}")
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be shared by {groups} groups")
    radius = window // 2
    pad = (radius,) * 4
    offsets = [(dy, dx) for dy in range(window) for dx in range(window)]

    def shifted(padded: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
        return padded[..., dy : dy + height, dx : dx + width]

    query, key = at_least_float32(query), at_least_float32(key)
    padded_key = F.pad(key, pad)
    visible = F.pad(torch.ones(1, 1, height, width, dtype=torch.bool, device=key.device), pad)
    scores = torch.stack(
        [  # (K, B, G, H, W)
            torch.where(shifted(visible, dy, dx), -(query - shifted(padded_key, dy, dx)).square(), -torch.inf)
            for dy, dx in offsets
        ]
    )
    weights = scores.softmax(dim=0).to(value.dtype)

    padded_value = F.pad(value, pad).unflatten(1, (groups, channels // groups))  # (B, G, C/G, H+2r, W+2r)
    out = torch.zeros(batch, groups, channels // groups, height, width, dtype=value.dtype, device=value.device)
    for weight, (dy, dx) in zip(weights, offsets, strict=True):
        out = out + weight.unsqueeze(2) * shifted(padded_value, dy, dx)
    return out.flatten(1, 2)


class GlobalAttention(nn.Module):
    """The GA module: 1x1 projections f, g, h, v around global_attention, then y = γ·o + x (Eq. 7–9).

    γ is the λ of Eq. 9, renamed because λ1–λ3 weigh losses; 0 at the start (SAGAN), so the module begins as identity.
    """

    def __init__(self, channels: int, reduction: int = 8):
        super().__init__()
        inner = max(channels // reduction, 1)
        self.f = nn.Conv2d(channels, inner, 1, bias=False)  # key
        self.g = nn.Conv2d(channels, inner, 1, bias=False)  # query
        self.h = nn.Conv2d(channels, channels, 1, bias=False)  # value
        self.v = nn.Conv2d(channels, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        o = self.v(global_attention(self.g(x), self.f(x), self.h(x)))
        return self.gamma * o + x


class LocalAttention(nn.Module):
    """The LA module: 1x1 projections around local_attention (Hu et al., arXiv 1904.11491, without geometry prior)."""

    def __init__(self, channels: int, window: int = 7, channels_per_group: int = 8):
        super().__init__()
        if channels % channels_per_group:
            raise ValueError(f"channels_per_group {channels_per_group} does not divide {channels} channels")
        groups = channels // channels_per_group
        self.window = window
        self.query = nn.Conv2d(channels, groups, 1)
        self.key = nn.Conv2d(channels, groups, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(local_attention(self.query(x), self.key(x), self.value(x), self.window))
