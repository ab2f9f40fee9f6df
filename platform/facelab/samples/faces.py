"""Seeded parametric faces, drawn by signed distances: everything runs and can be judged without a download.

A face is a function of (seed, identity, size); an identity looks the same at any size.
"""

import numpy as np
from scipy import ndimage

_SKIN = np.array([(255, 224, 196), (240, 200, 165), (224, 172, 130), (198, 134, 92), (150, 95, 62), (95, 58, 40)])
_HAIR = np.array(
    [(28, 22, 20), (60, 38, 24), (110, 70, 38), (168, 122, 66), (212, 176, 110), (140, 60, 32), (160, 160, 160)]
)
_IRIS = np.array([(70, 42, 24), (100, 66, 34), (58, 92, 60), (70, 110, 150), (96, 104, 110)])


def sample_face(seed: int, identity: int, size: int = 128) -> np.ndarray:
    """One face, (size, size, 3) uint8 RGB."""
    return _Painter(np.random.default_rng((seed, identity)), size).face()


def _muted(colour: np.ndarray) -> np.ndarray:
    """Rooms and clothes are seldom as saturated as three random numbers."""
    return 0.5 * colour + 0.5 * colour.mean(axis=-1, keepdims=True)


class _Painter:
    """A canvas in face coordinates: x to the right and y down, both -1..1, rotated by the head's roll."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng, self.size = rng, size
        self.pixel = 2.0 / size
        axis = (np.arange(size) + 0.5) * self.pixel - 1
        self.page_x, self.page_y = np.meshgrid(axis, axis)
        roll = rng.normal(0, 0.08)
        zoom = rng.uniform(0.92, 1.12)
        x, y = (self.page_x - rng.normal(0, 0.03)) / zoom, (self.page_y - rng.normal(0, 0.03)) / zoom
        self.x, self.y = x * np.cos(roll) + y * np.sin(roll), -x * np.sin(roll) + y * np.cos(roll)
        self.image = np.zeros((size, size, 3))

    # Shapes: signed distances, negative inside.

    def _ellipse(self, cx: float, cy: float, a: float, b: float, power: float = 2.0) -> np.ndarray:
        u, v = np.abs((self.x - cx) / a), np.abs((self.y - cy) / b)
        return ((u**power + v**power) ** (1 / power) - 1) * min(a, b)

    def _stroke(self, cx: float, cy: float, half_length: float, bend: float, tilt: float, width: float) -> np.ndarray:
        """A bent line: distance to the parabola y = bend·u² + tilt·u, thinner at its ends."""
        u = (self.x - cx) / half_length
        spine = cy + bend * u**2 + tilt * u
        taper = width * np.clip(1.15 - u**2, 0, 1)
        return np.maximum(np.abs(self.y - spine) - taper, (np.abs(u) - 1) * half_length)

    def _noise(self, cells_x: int, cells_y: int) -> np.ndarray:
        """Smooth noise of unit spread, from a coarse random grid: the same at any size."""
        grid = self.rng.normal(size=(cells_y + 3, cells_x + 3))
        rows = (np.arange(self.size) + 0.5) / self.size * cells_y + 1
        columns = (np.arange(self.size) + 0.5) / self.size * cells_x + 1
        return ndimage.map_coordinates(grid, np.meshgrid(rows, columns, indexing="ij"), order=3, mode="nearest")

    def _paint(
        self,
        distance: np.ndarray,
        colour: np.ndarray | tuple[int, int, int],
        opacity: float = 1.0,
        softness: float = 0.0,
    ) -> None:
        """Lay `colour`, (3,) or (size, size, 3), over the inside of a shape; edges are antialiased over one pixel."""
        mask = np.clip(0.5 - distance / (self.pixel + softness), 0, 1)[..., None] * opacity
        self.image = self.image * (1 - mask) + np.asarray(colour, float) * mask

    # Parts, from back to front.

    def face(self) -> np.ndarray:
        rng = self.rng
        tone = rng.uniform(0, len(_SKIN) - 1)
        low = int(tone)
        self.skin = _SKIN[low] + (tone - low) * (_SKIN[min(low + 1, len(_SKIN) - 1)] - _SKIN[low]) + rng.normal(0, 5, 3)
        self.hair = _HAIR[rng.choice(len(_HAIR), p=[0.26, 0.24, 0.18, 0.12, 0.08, 0.06, 0.06])] + rng.normal(0, 7, 3)
        self.yaw = rng.normal(0, 0.09)  # features move sideways with it
        self.width, self.height = rng.uniform(0.47, 0.58), rng.uniform(0.66, 0.76)
        self.long_hair, self.bald, self.beard = rng.random() < 0.42, rng.random() < 0.08, rng.random() < 0.18
        self._background()
        self._hair_behind()
        self._neck_and_clothes()
        self._head()
        if self.beard and not self.long_hair:
            self._beard()
        self._hair_in_front()
        for side in (-1, 1):
            self._eye(side)
        self._nose()
        self._mouth()
        if rng.random() < 0.25:
            self._glasses()
        self._light()
        return np.clip(np.rint(self.image), 0, 255).astype(np.uint8)

    def _background(self) -> None:
        rng = self.rng
        a, b = _muted(rng.uniform(25, 225, (2, 3)))
        angle = rng.uniform(0, 2 * np.pi)
        ramp = 0.5 + 0.4 * (self.page_x * np.cos(angle) + self.page_y * np.sin(angle))
        self.image = a + (b - a) * ramp[..., None] + 9 * self._noise(4, 4)[..., None]
        kind = rng.integers(4)
        if kind == 0:  # out-of-focus lights
            for _ in range(rng.integers(3, 9)):
                cx, cy, r = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.06, 0.24)
                disc = np.hypot(self.page_x - cx, self.page_y - cy) - r
                self._paint(disc, rng.uniform(60, 255, 3), rng.uniform(0.3, 0.8), softness=0.08)
        elif kind == 1:  # a striped wall
            period, tilt = rng.uniform(0.12, 0.4), rng.uniform(-0.5, 0.5)
            stripes = np.sin((self.page_x + tilt * self.page_y) * 2 * np.pi / period)
            self.image += rng.uniform(8, 26) * np.tanh(3 * stripes)[..., None]
        elif kind == 2:  # foliage
            self.image += rng.uniform(14, 30) * self._noise(22, 22)[..., None] * rng.uniform(0.6, 1.2, 3)

    def _strands(self) -> np.ndarray:
        """Hair colour with strands that run down the head and a soft shine."""
        strands = 0.7 * self._noise(46, 5) + 0.5 * self._noise(23, 3)
        shine = np.exp(-(((self.y + 0.62 + 0.25 * self.x**2) / 0.16) ** 2))
        return np.clip(self.hair * (1 + 0.17 * strands[..., None]) + 34 * shine[..., None], 0, 255)

    def _hair_behind(self) -> None:
        self.strands = self._strands()
        if self.bald:
            return
        if self.long_hair:
            length = self.rng.uniform(0.75, 1.1)
            self._paint(self._ellipse(0, 0.15, self.width + 0.17, length, 2.6), self.strands)
        else:
            self._paint(self._ellipse(0, -0.17, self.width + 0.09, self.height * 0.92, 2.2), self.strands)

    def _neck_and_clothes(self) -> None:
        rng = self.rng
        self._paint(self._ellipse(self.yaw * 0.2, 0.82, self.width * 0.56, 0.42, 3), self.skin * 0.8)
        cloth = _muted(rng.uniform(15, 235, 3)) + 7 * self._noise(30, 30)[..., None]
        self._paint(self._ellipse(0, 1.22, 1.0, 0.42, 2.4), cloth)
        if rng.random() < 0.5:
            self._paint(self._stroke(0, 0.98, 0.34, -0.16, 0, 0.035), rng.uniform(15, 245, 3))

    def _head(self) -> None:
        complexion = self.skin + 3.5 * self._noise(9, 9)[..., None] + 2.5 * self._noise(45, 45)[..., None]
        for side in (-1, 1):
            ear = self._ellipse(side * self.width * 0.98, 0.02, 0.085, 0.16)
            self._paint(ear, self.skin * 0.88)
        jaw = self.rng.uniform(0.0, 0.22)
        squeeze = 1 + jaw * np.clip(self.y, 0, 1)  # narrower towards the chin
        u, v = np.abs(self.x * squeeze / self.width), np.abs(self.y / self.height)
        self.head = (np.power(u**2.25 + v**2.25, 1 / 2.25) - 1) * self.width
        self._paint(self.head, complexion)
        for side in (-1, 1):  # cheeks
            blush = self._ellipse(side * self.width * 0.55 + self.yaw, 0.2, 0.16, 0.13)
            self._paint(blush, self.skin * np.array([1.0, 0.86, 0.84]), 0.45, softness=0.18)
        if self.rng.random() < 0.3:  # freckles
            spots = np.maximum(self._noise(50, 50) - 1.5, 0) * (np.abs(self.y - 0.12) < 0.22) * (self.head < -0.05)
            self.image -= 20 * spots[..., None]

    def _beard(self) -> None:
        chin = np.maximum(self.head, 0.2 - self.y)
        opening = self._ellipse(self.yaw * 1.2, 0.36, 0.2, 0.07)
        self._paint(np.maximum(chin, -opening), self.strands * 0.9, self.rng.uniform(0.45, 0.9), softness=0.07)

    def _hair_in_front(self) -> None:
        if self.bald:
            return
        parting = self.rng.uniform(-0.35, 0.35)
        height = self.rng.uniform(-0.5, -0.34)
        hairline = height - 0.12 * np.cos(3.2 * (self.x - parting)) + 0.35 * self.x**2 + 0.02 * self._noise(16, 3)
        cap = np.maximum(self._ellipse(0, -0.17, self.width + 0.09, self.height * 0.92, 2.2), self.y - hairline)
        self._paint(cap, self.strands)
        if self.rng.random() < 0.45:  # fringe
            fringe = np.maximum(self._ellipse(0, -0.42, self.width * 0.93, 0.3, 2.4), self.y - height - 0.2)
            comb = 0.03 * np.sin(self.x * self.rng.uniform(20, 44))
            self._paint(fringe + comb, self.strands * 0.95, 0.95)

    def _eye(self, side: int) -> None:
        if side == -1:  # both eyes share their looks
            rng = self.rng
            self.spacing, self.eye_y = rng.uniform(0.2, 0.25), rng.uniform(-0.1, -0.03)
            self.eye_a, self.eye_b = rng.uniform(0.085, 0.115), rng.uniform(0.036, 0.06)
            self.iris = _IRIS[rng.integers(len(_IRIS))] + rng.normal(0, 8, 3)
            self.gaze = rng.normal(0, 0.018, 2)
            self.brow = (
                rng.uniform(0.12, 0.19),
                rng.uniform(0.02, 0.075),
                rng.uniform(0.014, 0.034),
                rng.normal(0, 0.02),
            )
            self.made_up = rng.random() < 0.35
        cx, cy = side * self.spacing + self.yaw, self.eye_y
        self._paint(self._ellipse(cx, cy, self.eye_a * 1.5, self.eye_b * 2.1), self.skin * 0.72, 0.5, softness=0.1)
        almond = self._ellipse(cx, cy, self.eye_a, self.eye_b, 1.8)
        self._paint(almond, (238, 236, 232))
        gx, gy = cx + self.gaze[0], cy + self.gaze[1]
        iris = self._ellipse(gx, gy, 0.052, 0.052)
        self._paint(np.maximum(iris, almond), self.iris)
        self._paint(
            np.maximum(self._ellipse(gx, gy, 0.052, 0.052) * -1 - 0.012, np.maximum(iris, almond)), self.iris * 0.5
        )
        self._paint(np.maximum(self._ellipse(gx, gy, 0.024, 0.024), almond), (12, 10, 10))
        self._paint(self._ellipse(gx + 0.017, gy - 0.018, 0.011, 0.011), (250, 250, 250))
        lid = self._stroke(
            cx, cy - self.eye_b * 1.05, self.eye_a * 1.08, self.eye_b, 0, 0.02 if self.made_up else 0.012
        )
        self._paint(lid, self.skin * 0.2 if self.made_up else self.skin * 0.38)
        raise_, bend, thickness, tilt = self.brow
        brow = self._stroke(cx + side * 0.01, cy - raise_, self.eye_a * 1.35, bend, side * (0.02 + tilt), thickness)
        self._paint(brow, self.hair * 0.62 + self.skin * 0.1, 0.92)

    def _nose(self) -> None:
        width, tip = self.rng.uniform(0.055, 0.095), self.rng.uniform(0.14, 0.22)
        cx = self.yaw * 1.35
        lit, shade = np.minimum(self.skin * 1.1 + 8, 255), self.skin * 0.68
        self._paint(self._ellipse(cx - 0.045, (self.eye_y + tip) / 2, 0.02, 0.16), shade, 0.35, softness=0.05)
        self._paint(self._ellipse(cx + 0.008, (self.eye_y + tip) / 2, 0.022, 0.15), lit, 0.4, softness=0.05)
        self._paint(self._ellipse(cx, tip, width * 0.75, 0.05), lit, 0.4, softness=0.05)
        self._paint(self._stroke(cx, tip + 0.075, width * 1.25, -0.03, 0, 0.011), shade, 0.8)
        for side in (-1, 1):
            self._paint(self._ellipse(cx + side * width * 0.55, tip + 0.05, 0.019, 0.012), self.skin * 0.3, 0.9)

    def _mouth(self) -> None:
        rng = self.rng
        half, smile = rng.uniform(0.13, 0.2), rng.uniform(-0.075, 0.015)
        cx, cy = self.yaw * 1.2, rng.uniform(0.35, 0.41)
        lips = self.skin * np.array([0.86, 0.56, 0.56]) + rng.uniform(0, 22) * np.array([1, -0.4, -0.2])
        upper, lower = rng.uniform(0.018, 0.034), rng.uniform(0.026, 0.046)
        self._paint(self._stroke(cx, cy + 0.02 - smile * 0.3, half * 0.93, smile, 0, lower), lips * 1.06)
        self._paint(self._stroke(cx, cy - 0.014 - smile * 0.3, half, smile, 0, upper), lips * 0.9)
        gap = rng.uniform(0.004, 0.034)
        if gap > 0.018:  # an open mouth: dark, with teeth
            self._paint(self._stroke(cx, cy - smile * 0.3, half * 0.85, smile, 0, gap), (70, 26, 28))
            self._paint(self._stroke(cx, cy - 0.006 - smile * 0.3, half * 0.74, smile, 0, gap * 0.62), (236, 230, 220))
        else:
            self._paint(self._stroke(cx, cy - smile * 0.3, half * 0.97, smile, 0, 0.007), lips * 0.42)
        self._paint(self._stroke(cx, cy + 0.105, half * 0.5, 0.02, 0, 0.013), self.skin * 0.75, 0.45, softness=0.03)

    def _glasses(self) -> None:
        rng = self.rng
        colour = rng.choice([18, 40, 120]) + rng.normal(0, 6, 3)
        a, b, power = rng.uniform(0.14, 0.17), rng.uniform(0.09, 0.13), rng.uniform(2, 4.5)
        thickness, dark = rng.uniform(0.009, 0.02), rng.random() < 0.25
        for side in (-1, 1):
            cx = side * self.spacing * 1.04 + self.yaw
            lens = self._ellipse(cx, self.eye_y + 0.01, a, b, power)
            self._paint(lens, (20, 20, 26) if dark else (225, 235, 245), 0.85 if dark else 0.12)
            self._paint(np.abs(lens) - thickness, colour)
            arm_x = side * (self.width + self.spacing + a) / 2 + self.yaw * 0.5
            self._paint(
                self._stroke(arm_x, self.eye_y - 0.02, (self.width - self.spacing - a) / 2 + 0.03, 0, 0, thickness),
                colour,
            )
        self._paint(
            self._stroke(self.yaw, self.eye_y - 0.005, max(self.spacing * 1.04 - a, 0.02) + 0.01, -0.015, 0, thickness),
            colour,
        )

    def _light(self) -> None:
        """A round head under one light, then exposure and white balance."""
        rng = self.rng
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3)
        slope = self.x * np.cos(angle) / self.width + self.y * np.sin(angle) / self.height
        inside = np.clip(0.5 - self.head / 0.25, 0, 1)
        edge = 1 - 0.3 * np.clip(1 + self.head / 0.2, 0, 1) * inside  # darker towards the outline
        self.image *= ((1 + strength * slope * inside) * edge)[..., None]
        self.image = self.image * rng.uniform(0.78, 1.1) * (1 + rng.normal(0, 0.03, 3)) + rng.normal(0, 4)
