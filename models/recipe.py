"""How a method is trained: the vocabulary in which each network's file states its authors' choices.

A recipe's fields are the options of the training jobs that bear the same names; schedules are fractions of the whole
run, so that they keep their shape when a budget is cut.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Optimiser and learning-rate schedule; of the generator and of the discriminator alike."""

    name: Literal["adam", "sgd"] = "adam"
    """Update rule."""
    beta1: float = 0.9
    """Adam's."""
    beta2: float = 0.999
    """Adam's."""
    momentum: float = 0.9
    """SGD's."""
    weight_decay: float = 0.0
    """L2 penalty on the weights, inside the gradient."""
    decay_at: tuple[float, ...] = ()
    """Fractions of the whole run after which the learning rate is multiplied by `decay`."""
    decay: float = 0.5
    """See decay_at."""
    clip: float = 0.0
    """θ: gradients are clipped to ±θ / learning rate, element by element (VDSR § 3.2); 0 does not clip."""

    def __post_init__(self):
        if any(not 0 < at < 1 for at in self.decay_at):
            raise ValueError(f"optimiser.decay_at must lie between 0 and 1, not {self.decay_at}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimiser.{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.decay <= 0 or self.weight_decay < 0 or self.clip < 0:
            raise ValueError("optimiser.decay must be above 0, weight_decay and clip not below it")

    def factor(self, progress: float) -> float:
        """What the learning rate is multiplied by after `progress`, a fraction of the run."""
        return self.decay ** sum(progress >= at for at in self.decay_at)


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """A discriminator beside the pixel loss, and the perceptual loss that comes with it in SRGAN."""

    weight: float = 0.0
    """Of the adversarial loss; 0 builds no discriminator."""
    loss: Literal["vanilla", "hinge"] = "vanilla"
    """vanilla: −log D(G(x)), the non-saturating form; hinge: as in spectrally normalised GANs."""
    pretrain: float = 0.0
    """Fraction of the run that trains on the pixel loss alone, before the discriminator begins."""
    perceptual_weight: float = 0.0
    """Of the squared distance of features, which replaces the pixel loss after `pretrain`; 0 keeps the pixel loss."""
    pixel_weight: float = 0.0
    """Of the pixel loss beside the perceptual one (η of ESRGAN, 1809.00219, Eq. 3); SRGAN has none."""
    network: Literal["vgg16", "vgg19", "mobilenet_v2"] = "vgg19"
    """Feature network of the perceptual loss."""
    layer: str = "relu5_4"
    """Its layer."""
    feature_scale: float = 12.75
    """Features are divided by this (SRGAN § 3.2, for VGG); 0: by their RMS on the sharp training faces."""

    def __post_init__(self):
        if not 0 <= self.pretrain < 1:
            raise ValueError(f"adversarial.pretrain must be at least 0 and below 1, not {self.pretrain}")
        if min(self.weight, self.perceptual_weight, self.pixel_weight, self.feature_scale) < 0:
            raise ValueError("adversarial: weights and feature_scale must not be below 0")
        if self.perceptual_weight and not self.weight:
            raise ValueError("adversarial.perceptual_weight needs adversarial.weight: the two begin together")
        if self.pixel_weight and not self.perceptual_weight:
            raise ValueError("adversarial.pixel_weight goes with perceptual_weight, without which the pixel loss stays")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way of training one network."""

    epochs: int | None = None
    """Passes over the training faces."""
    max_steps: int | None = None
    """Updates, where the authors count those."""
    batch_size: int = 16
    """Images per update."""
    learning_rate: float = 1e-4
    """At the start."""
    ema_decay: float | None = None
    """Moving average of the weights; None: the job's default; 0: none, as in the papers of the compared methods."""
    pixel_loss: Literal["l1", "l2", "sse"] | None = None
    """l1, l2: mean over pixels; sse: half the sum of squares of an image, averaged over the batch (Caffe's Euclidean
    loss, which the learning rates of SRCNN and VDSR presume)."""
    lr_patch_size: int | None = None
    """Side of the random crops of the LR face, px, and `scale` times as much of the sharp one; a face that is no larger
    is taken whole."""
    rotate: bool | None = None
    """Also turn by multiples of 90 degrees."""
    optimiser: Optimiser = Optimiser()
    """Update rule and schedule."""
    adversarial: Adversarial = Adversarial()
    """Discriminator and perceptual loss."""
