"""The numbers that the paper prints, and what they are of (paper § 4.2 and 4.3; × 4)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """Of a printed table."""

    name: str
    metric: str
    """Ours for it: the name in a summary, or `fd` for the Fréchet distance, whichever network it looks through."""
    digits: str


PSNR = Column("PSNR", "psnr_rgb", ".2f")
SSIM = Column("SSIM", "ssim_rgb", ".4f")
FID = Column("FID", "fd", ".2f")

TABLE_1 = {
    "BICUBIC": (21.19, 0.5570, 288.47),
    "SRCNN": (19.57, 0.4030, 256.78),
    "SRGAN": (20.36, 0.5007, 179.70),
    "VDSR": (20.61, 0.5584, 144.29),
    "EDSR": (20.44, 0.5137, 129.93),
    "RDN": (18.18, 0.4063, 162.04),
    "Bulat": (22.76, 0.6296, 149.97),
    "Ours": (24.16, 0.7197, 98.61),
}
"""Method -> PSNR and SSIM on styleVAE LR of LFW, FID of super-resolved WIDER faces."""

TABLE_2 = {"SRCNN-B": 256.78, "EDSR-B": 129.93, "SRCNN-S": 198.75, "EDSR-S": 107.63}
"""Method, trained on bicubic (B) or styleVAE LR (S) -> FID of super-resolved WIDER faces."""

TABLE_3 = {"bicubic": 31.20, "neither": 26.6, "MI": 25.78, "AdaIN": 24.63, "AdaIN + MI": 18.77}
"""What the styleVAE has -> FID of its LR, of test faces, to real LR of WIDER."""

TABLE_4 = {"neither": 30.08, "LA": 30.18, "GA": 30.27, "GA + LA": 30.43}
"""What the SR network has -> PSNR on LFW; bicubic LR."""
