"""Draw the parts of a synthetic bin: walls, tape, boxes, books, bottles and bags."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Colour = tuple[int, int, int]

FABRICS: tuple[Colour, ...] = ((226, 196, 112), (214, 186, 120), (205, 170, 92))
METALS: tuple[Colour, ...] = ((150, 150, 152), (172, 170, 166))
LABELS: tuple[Colour, ...] = ((196, 60, 52), (74, 110, 160), (60, 50, 70), (216, 120, 60))
CARDBOARD: Colour = (186, 148, 106)


def shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_bin(image: Image.Image, random: Generator) -> Box:
    """Draw an empty bin of fabric or metal, with its label; returns the space for items."""
    draw = ImageDraw.Draw(image)
    wide, high = image.size
    walls = FABRICS if random.random() < 0.75 else METALS
    colour = shade(walls[random.integers(len(walls))], random.uniform(0.9, 1.05))
    left, right = wide * random.uniform(0, 0.05), wide * random.uniform(0.95, 1)
    top, bottom = high * random.uniform(0.02, 0.09), high * random.uniform(0.87, 0.93)
    back = (
        left + wide * random.uniform(0.02, 0.06),
        top + high * 0.03,
        right - wide * random.uniform(0.02, 0.06),
        bottom - high * random.uniform(0.12, 0.2),
    )
    draw.rectangle((0, 0, wide, high), fill=colour)
    draw.rectangle((left, top, right, bottom), fill=shade(colour, 0.68))  # the side walls
    draw.rectangle(back, fill=shade(colour, 0.58))
    floor = [(back[0], back[3]), (back[2], back[3]), (right, bottom), (left, bottom)]
    draw.polygon(floor, fill=shade(colour, 0.78))
    for corner in ((back[0], back[3], left, bottom), (back[2], back[3], right, bottom)):
        draw.line(corner, fill=shade(colour, 0.45), width=2)
    for _ in range(6):  # folds or dents
        x = random.uniform(*back[::2])
        draw.line(
            (x, back[1], x + random.normal(0, wide * 0.04), back[3]),
            fill=shade(colour, random.uniform(0.5, 0.64)),
            width=int(random.integers(1, 5)),
        )
    _draw_label(draw, image.size, bottom, random)
    return left + wide * 0.01, top, right - wide * 0.01, bottom - high * 0.015


def _draw_label(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], bottom: float, random: Generator
) -> None:
    """Draw the bin's name and a square code on the rim below."""
    wide, high = size
    x, label_width = wide * random.uniform(0.3, 0.55), wide * 0.24
    y, label_height = bottom + (high - bottom) * 0.25, (high - bottom) * 0.75
    colour = LABELS[random.integers(len(LABELS))]
    draw.rectangle((x, y, x + label_width, high), fill=(236, 232, 222))
    draw.rectangle((x, y, x + label_width * 0.5, high), fill=colour)
    name = f"{random.integers(1, 5)}{'ABCDEFGHIJ'[random.integers(10)]}"
    draw.text(
        (x + label_width * 0.1, y), name, fill="white", font=font(max(8, int(label_height * 0.8)))
    )
    dot = label_height / 9
    for row, column in np.argwhere(random.random((8, 8)) < 0.5):
        corner = x + label_width * 0.62 + column * dot, y + row * dot
        draw.rectangle((*corner, corner[0] + dot, corner[1] + dot), fill=(30, 30, 30))


def draw_tape(image: Image.Image, inside: Box, random: Generator) -> None:
    """Draw elastic bands across the opening: fine bright threads that hide part of the items."""
    _, top, _, bottom = inside
    wide = image.width
    for centre in sorted(random.uniform(0.15, 0.95, size=random.integers(1, 4))):
        middle, half = top + (bottom - top) * centre, image.height * random.uniform(0.05, 0.11)
        slope, sag = random.normal(0, 0.03), image.height * random.uniform(0, 0.02)
        band = Image.new("L", (wide, image.height))
        draw = ImageDraw.Draw(band)
        x = np.linspace(0, wide, 9)
        curve = middle + slope * (x - wide / 2) + sag * np.sin(math.pi * x / wide)
        upper, lower = curve - half, (curve + half)[::-1]
        outline = [*zip(x, upper, strict=True), *zip(x[::-1], lower, strict=True)]
        draw.polygon([(float(a), float(b)) for a, b in outline], fill=int(random.integers(60, 120)))
        threads, strength = int(random.integers(7, 13)), int(random.integers(150, 225))
        for thread in np.linspace(-half, half, threads):
            points = [(float(a), float(b)) for a, b in zip(x, curve + thread, strict=True)]
            draw.line(points, fill=strength, width=max(1, round(image.height / 300)))
        image.paste(shade((222, 216, 204), random.uniform(0.85, 1.1)), mask=band)


def draw_item(image: Image.Image, kind: str, box: Box, seed: int) -> None:
    """Draw an item into its box, with its shadow; its looks depend on `seed` alone."""
    left, _, right, bottom = box
    depth = max(2.0, (right - left) * 0.05)
    shadow = Image.new("L", image.size)
    ImageDraw.Draw(shadow).ellipse(
        (left - depth, bottom - depth, right + 2 * depth, bottom + depth), fill=110
    )
    image.paste((20, 14, 6), mask=shadow)
    KINDS[kind](image, box, default_rng(seed))


def _colour(random: Generator) -> Colour:
    """Choose a colour for a package: mostly muted, sometimes bright."""
    base = random.integers(30, 226, size=3)
    if random.random() < 0.75:
        base = 0.4 * base + 0.6 * base.mean()
    return int(base[0]), int(base[1]), int(base[2])


def _draw_print(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, random: Generator) -> None:
    """Draw a title, a picture and small print on a surface."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    ink = shade(colour, 0.35) if sum(colour) > 380 else (235, 230, 220)
    accent = _colour(random)
    if random.random() < 0.6:
        y = top + high * random.uniform(0.3, 0.55)
        draw.rectangle((left, y, right, y + high * random.uniform(0.1, 0.4)), fill=accent)
    if random.random() < 0.6:
        x, y = left + wide * random.uniform(0.15, 0.6), top + high * random.uniform(0.4, 0.6)
        draw.ellipse((x, y, x + wide * 0.3, y + wide * 0.3), fill=shade(accent, 0.7))
    title = "".join(chr(65 + letter) for letter in random.integers(26, size=random.integers(3, 7)))
    text_size = int(min(wide / len(title) * 1.3, high * 0.3))
    if text_size >= 6:
        draw.text((left + wide * 0.08, top + high * 0.06), title, fill=ink, font=font(text_size))
    for y in np.arange(bottom - high * 0.16, bottom - high * 0.03, max(3.0, high * 0.05)):
        draw.line((left + wide * 0.1, y, left + wide * random.uniform(0.4, 0.9), y), fill=ink)


def _draw_carton(image: Image.Image, box: Box, random: Generator) -> None:
    """Draw a box seen slightly from above: its front, its lid and one side."""
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = box
    plain = random.random() < 0.4
    colour = shade(CARDBOARD, random.uniform(0.8, 1.15)) if plain else _colour(random)
    lid = (bottom - top) * random.uniform(0.06, 0.2)
    side = (right - left) * random.uniform(0.06, 0.16)
    front = (left, top + lid, right - side, bottom)
    lid_corners = [(left, top + lid), (left + side, top), (right, top), (right - side, top + lid)]
    side_corners = [(right - side, top + lid), (right, top), (right, bottom - lid)]
    draw.polygon(lid_corners, fill=shade(colour, 1.2))
    draw.polygon([*side_corners, (right - side, bottom)], fill=shade(colour, 0.6))
    draw.rectangle(front, fill=colour, outline=shade(colour, 0.5))
    if plain:
        middle = (front[0] + front[2]) / 2
        half = (front[2] - front[0]) * 0.06
        draw.rectangle((middle - half, front[1], middle + half, bottom), fill=shade(colour, 1.15))
    else:
        _draw_print(draw, front, colour, random)


def _draw_book(image: Image.Image, box: Box, random: Generator) -> None:
    """Draw a leaning book: its cover, its spine and the edge of its pages."""
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = box
    wide, lean = right - left, (right - left) * random.uniform(0, 0.25)
    colour = _colour(random)
    spine = wide * random.uniform(0.08, 0.16)
    cover = [(left + lean, top), (right, top), (right - lean, bottom), (left, bottom)]
    draw.polygon(cover, fill=colour, outline=shade(colour, 0.4))
    edge = [(right - spine, top), (right, top), (right - lean, bottom)]
    draw.polygon([*edge, (right - lean - spine, bottom)], fill=(232, 226, 208))
    for share in (0.3, 0.6, 0.9):
        x = right - spine * share
        draw.line((x, top, x - lean, bottom), fill=(180, 172, 150))
    back = [(left + lean, top), (left + lean + spine, top), (left + spine, bottom)]
    draw.polygon([*back, (left, bottom)], fill=shade(colour, 0.65))
    inner = (left + lean + spine, top, right - spine - lean * 0.5, bottom)
    if inner[2] - inner[0] > 8:
        _draw_print(draw, inner, colour, random)


def _draw_bottle(image: Image.Image, box: Box, random: Generator) -> None:
    """Draw a bottle: a rounded body, neck, cap, label and a streak of light."""
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    colour, cap = _colour(random), _colour(random)
    shoulder = top + high * random.uniform(0.2, 0.3)
    neck = wide * random.uniform(0.2, 0.32)
    draw.rectangle((left + neck, top + high * 0.08, right - neck, shoulder + 4), fill=colour)
    draw.rounded_rectangle((left, shoulder, right, bottom), radius=wide * 0.22, fill=colour)
    draw.rectangle((left + neck * 0.9, top, right - neck * 0.9, top + high * 0.12), fill=cap)
    edge = (left, shoulder + wide * 0.2, left + wide * 0.1, bottom - wide * 0.2)
    draw.rectangle(edge, fill=shade(colour, 0.6))
    paper = (left, shoulder + high * 0.15, right, bottom - high * 0.12)
    draw.rectangle(paper, fill=(228, 224, 210))
    _draw_print(draw, paper, (228, 224, 210), random)
    x = right - wide * 0.25
    draw.line((x, shoulder + wide * 0.2, x, bottom - wide * 0.2), fill=shade(colour, 1.6), width=2)


def _draw_bag(image: Image.Image, box: Box, random: Generator) -> None:
    """Draw a crumpled, translucent bag."""
    left, top, right, bottom = box
    centre, radius = (
        ((left + right) / 2, (top + bottom) / 2),
        ((right - left) / 2, (bottom - top) / 2),
    )
    angles = np.linspace(0, 2 * math.pi, 18, endpoint=False)
    bumps = random.uniform(0.78, 1.0, size=18)
    # A superellipse looks like a pillow rather than a ball.
    points = [
        (
            centre[0] + radius[0] * bump * math.copysign(abs(math.cos(a)) ** 0.6, math.cos(a)),
            centre[1] + radius[1] * bump * math.copysign(abs(math.sin(a)) ** 0.6, math.sin(a)),
        )
        for a, bump in zip(angles, bumps, strict=True)
    ]
    colour = (212, 212, 206) if random.random() < 0.5 else _colour(random)
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).polygon(points, fill=int(random.integers(150, 236)))
    image.paste(colour, mask=mask)
    draw = ImageDraw.Draw(image)
    for _ in range(12):  # creases
        start, end = random.choice(18, size=2, replace=False)
        stop = random.uniform(0.3, 0.7)
        (x0, y0), (x1, y1) = points[start], points[end]
        line = (x0, y0, x0 + (x1 - x0) * stop, y0 + (y1 - y0) * stop)
        draw.line(line, fill=shade(colour, random.choice([0.7, 0.8, 1.25])), width=2)
    draw.line([*points, points[0]], fill=shade(colour, 0.6))
    tag = (
        centre[0] - radius[0] * 0.4,
        centre[1],
        centre[0] + radius[0] * 0.4,
        centre[1] + radius[1] * 0.45,
    )
    draw.rectangle(tag, fill=(236, 234, 228))
    for x in np.arange(tag[0] + 2, tag[2] - 1, 3.0):  # a bar code
        draw.line(
            (x, tag[1] + 2, x, tag[3] - 2), fill=(40, 40, 40), width=int(random.integers(1, 3))
        )


KINDS: dict[str, Callable[[Image.Image, Box, Generator], None]] = {
    "box": _draw_carton,
    "book": _draw_book,
    "bottle": _draw_bottle,
    "bag": _draw_bag,
}
