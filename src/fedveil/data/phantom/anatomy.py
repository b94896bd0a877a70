"""Draws the attenuation of synthetic chests: formulas over a grid, many images at a time.

Coordinates are a patient's own: x from -1 at the right arm to 1 at the left (left of the page to right), y
from -1 at the chin to 1 at the belly. An attenuation of 0 is air, 1 about the spine behind the heart. Nothing
here was measured on anybody; proportions were chosen by eye.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Anatomy", "Lesions", "attenuation"]

Field = npt.NDArray[np.floating[Any]]
OPACITIES = 3
"""The most opacities in one image."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Anatomy:
    """One number per patient in every field, shaped ``(patients,)``, common to all images of a patient."""

    build: Field
    chest_width: Field
    lung_width: Field
    lung_top: Field
    dome: Field
    dome_right: Field
    heart_size: Field
    heart_tilt: Field
    rib_spacing: Field
    rib_phase: Field
    rib_slope: Field
    bone: Field
    hilum: Field
    vessels: Field
    vessel_phase: Field
    breast: Field
    stomach: Field

    @classmethod
    def draw(cls, generator: np.random.Generator, patients: int) -> "Anatomy":
        """Random patients."""

        def about(mean: float, deviation: float) -> Field:
            spread = np.clip(generator.standard_normal(patients), -2.5, 2.5)
            return (mean + deviation * spread).astype(np.float32)

        return cls(
            build=about(1.0, 0.10),
            chest_width=about(0.91, 0.04),
            lung_width=about(0.32, 0.02),
            lung_top=about(-0.66, 0.04),
            dome=about(0.50, 0.06),
            dome_right=about(0.05, 0.02),
            heart_size=about(0.30, 0.035),
            heart_tilt=about(0.5, 0.15),
            rib_spacing=about(0.155, 0.010),
            rib_phase=generator.uniform(0, 1, patients).astype(np.float32),
            rib_slope=about(0.30, 0.07),
            bone=about(0.105, 0.02),
            hilum=about(0.15, 0.05),
            vessels=about(0.10, 0.035),
            vessel_phase=generator.uniform(0, 2 * np.pi, patients).astype(np.float32),
            breast=np.maximum(about(0.02, 0.07), 0),
            stomach=np.maximum(about(0.08, 0.08), 0),
        )

    def of(self, patients: npt.NDArray[np.int64]) -> "Anatomy":
        """The same, for each of these patients, shaped ``(n, 1, 1)`` to stand before a grid."""
        return Anatomy(
            **{field.name: getattr(self, field.name)[patients, None, None] for field in fields(self)}
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Lesions:
    """Opacities, each field ``(n, OPACITIES)``; one of strength 0 is absent."""

    x: Field
    y: Field
    width: Field
    height: Field
    strength: Field
    ragged: Field


def attenuation(x: Field, y: Field, anatomy: Anatomy, lesions: Lesions) -> Field:
    """The attenuation at ``(n, height, width)`` points, for n images."""
    side = np.abs(x)
    lungs = _lungs(x, y, side, anatomy)
    body = _body(y, side, anatomy)
    cage = _smooth((0.78 - side) / 0.05) * _smooth((y + 0.78) / 0.06)
    chest = 0.52 * anatomy.build * body
    chest += _middle(x, y, side, anatomy)
    chest += anatomy.breast * np.exp(-(((side - 0.42) / 0.22) ** 2) - ((y - 0.28) / 0.2) ** 2)
    chest += 0.20 * _below_dome(x, y, anatomy) * body
    air = 0.44 * lungs
    chest += lungs * (_vessels(x, y, side, anatomy) + _opacities(x, y, lesions))
    chest += anatomy.bone * cage * _ribs(y, side, anatomy) + 0.13 * _clavicles(y, side, anatomy)
    dense: Field = np.maximum(chest - air, 0) * np.minimum(1, body * 1.5)
    return dense


def _smooth(values: Field) -> Field:
    """0 below, 1 above, about 0.5 at 0: the edge of something that has one."""
    return 0.5 + 0.5 * np.tanh(values)


def _body(y: Field, side: Field, anatomy: Anatomy) -> Field:
    """Trunk with arms raised to the sides, shoulders, neck; thinner towards the skin."""
    arms = 0.30 * _smooth((-0.36 - y) / 0.16)
    trunk = _smooth((anatomy.chest_width + arms - side) / 0.03)
    shoulders = _smooth((y + 1.02 - 0.28 * side**2) / 0.04)
    neck = _smooth((0.27 - side) / 0.04)
    thickness = np.sqrt(np.clip(1.15 - (side / (anatomy.chest_width + arms)) ** 2 * 0.8, 0.1, None))
    return trunk * np.maximum(shoulders, neck) * thickness


def _dome(x: Field, anatomy: Anatomy) -> Field:
    """Height of the diaphragm: two domes, the right one (left of the page) higher."""
    right = x < 0
    top = anatomy.dome - np.where(right, anatomy.dome_right, 0)
    return top + 1.5 * (np.abs(x) - 0.36) ** 2


def _below_dome(x: Field, y: Field, anatomy: Anatomy) -> Field:
    bubble = anatomy.stomach * np.exp(-(((x - 0.42) / 0.13) ** 2) - ((y - anatomy.dome - 0.13) / 0.07) ** 2)
    return _smooth((y - _dome(x, anatomy)) / 0.025) - 4 * bubble


def _lungs(x: Field, y: Field, side: Field, anatomy: Anatomy) -> Field:
    """Depth of air, 0 to about 1: narrow at the apex, cut off by the diaphragm."""
    low = (y - anatomy.lung_top) / (anatomy.dome + 0.25 - anatomy.lung_top)
    width = anatomy.lung_width * (0.55 + 0.62 * np.clip(low, 0, 1) ** 0.6)
    centre = 0.33 + 0.09 * np.clip(low, 0, 1)
    across = ((side - centre) / width) ** 2
    along = np.clip((0.42 - low) / 0.42, 0, None) ** 2
    inside = np.clip(1.02 - across - along, 0, None)
    return np.sqrt(inside) * _smooth((_dome(x, anatomy) - y) / 0.025)


def _middle(x: Field, y: Field, side: Field, anatomy: Anatomy) -> Field:
    """Mediastinum with the aortic knuckle, heart, trachea and spine."""
    size, tilt = anatomy.heart_size, anatomy.heart_tilt
    dx, dy = x - 0.14, y - anatomy.dome + 0.20
    along, across = dx * np.cos(tilt) + dy * np.sin(tilt), dy * np.cos(tilt) - dx * np.sin(tilt)
    ellipse = 1 - (along / (size * 1.25)) ** 2 - (across / (size * 0.86)) ** 2
    heart = 0.34 * np.sqrt(np.clip(ellipse, 0, None))
    column = 0.26 * _smooth((0.13 - side + 0.05 * (y + 0.3)) / 0.04)
    knuckle = 0.16 * np.exp(-(((x - 0.13) / 0.075) ** 2) - ((y + 0.30) / 0.085) ** 2)
    trachea = -0.14 * np.exp(-((x / 0.045) ** 2)) * _smooth((-0.25 - y) / 0.08)
    discs = 1 + 0.35 * np.cos(2 * np.pi * y / (anatomy.rib_spacing * 0.9))
    spine = 0.09 * np.exp(-((side / 0.085) ** 4)) * discs
    middle: Field = heart + column + knuckle + trachea + spine
    return middle


def _ribs(y: Field, side: Field, anatomy: Anatomy) -> Field:
    """Ribs from behind, falling outwards; fainter ones from the front, rising outwards; with dense rims."""
    behind = (
        y - anatomy.rib_slope * side + 0.75 * (side - 0.35) ** 2
    ) / anatomy.rib_spacing + anatomy.rib_phase
    front = (y + 0.75 * side - 0.5 * side**2) / (1.25 * anatomy.rib_spacing) + anatomy.rib_phase
    faint = 0.55 * _smooth((side - 0.30) / 0.06) * _smooth((0.45 - y) / 0.1)
    return _stripe(behind) * _smooth((side - 0.10) / 0.03) + faint * _stripe(front)


def _stripe(phase: Field) -> Field:
    """A band about every whole number, 0.36 wide, with bright rims."""
    off = np.abs(phase - np.rint(phase))
    return _smooth((0.18 - off) / 0.05) * (0.6 + 0.4 * np.exp(-(((off - 0.15) / 0.05) ** 2)))


def _clavicles(y: Field, side: Field, anatomy: Anatomy) -> Field:
    line = anatomy.lung_top + 0.10 - 0.20 * (side - 0.1) + 0.10 * np.sin(5 * side)
    return (
        np.exp(-(((y - line) / 0.035) ** 2)) * _smooth((side - 0.09) / 0.02) * _smooth((0.75 - side) / 0.05)
    )


def _vessels(x: Field, y: Field, side: Field, anatomy: Anatomy) -> Field:
    """Hila, and vessels that fan out of them and thin away."""
    dx, dy = side - 0.17, y + 0.02
    reach = np.sqrt(dx**2 + dy**2) + 1e-3
    angle = np.arctan2(dy, dx) + np.where(x < 0, anatomy.vessel_phase, 0)
    fan = np.cos(7 * angle + 3 * np.sin(9 * reach + anatomy.vessel_phase))
    fan += np.cos(13 * angle - 4 * np.sin(7 * reach - anatomy.vessel_phase))
    hilum = anatomy.hilum * np.exp(-((dx / 0.08) ** 2) - (dy / 0.16) ** 2)
    shadow: Field = hilum + anatomy.vessels * np.clip(fan, 0, None) * np.exp(-reach / 0.28)
    return shadow


def _opacities(x: Field, y: Field, lesions: Lesions) -> Field:
    """Soft bell-shaped shadows with ragged borders."""
    total = np.zeros_like(x)
    for number in range(OPACITIES):
        drawn = np.flatnonzero(lesions.strength[:, number])
        if not len(drawn):
            continue
        cx, cy, width, height, strength, ragged = (
            getattr(lesions, name)[drawn, number, None, None]
            for name in ("x", "y", "width", "height", "strength", "ragged")
        )
        dx, dy = (x[drawn] - cx) / width, (y[drawn] - cy) / height
        rough = ragged * np.sin(2.3 * dx + 5 * cx) * np.sin(2.9 * dy + 7 * cy)
        total[drawn] += strength * np.exp(-((dx**2 + dy**2) ** 1.3) * (1 + rough))
    # A lung without air is as dense as the tissue around it, and no denser.
    shadow: Field = 0.45 * np.tanh(total / 0.45)
    return shadow
