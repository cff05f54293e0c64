"""A page of rows to look at: each with its pictures and video frames, question and options, the right one marked."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from megatron_moe_grpo.data.schema import Row
from megatron_moe_grpo.data.visuals import VIDEO_FRAMES, VisualFiles, read_visual

CARD_WIDTH = 220
PICTURE_HEIGHT = 160
MARGIN = 14
LINE_HEIGHT = 20
FONT_SIZE = 14
PAPER, CARD, INK, FAINT, RIGHT = "#e9ebee", "#ffffff", "#1b1f24", "#6a737d", "#12793b"


def draw_contact_sheet(rows: Sequence[Row], columns: int = 5) -> Image.Image:
    """All `rows` on one RGB page, `columns` cards across; pictures are scaled by whole numbers where they are small."""
    cards = [_draw_card(row) for row in rows]
    columns = min(columns, len(cards))
    bands = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height for card in band) for band in bands]
    size = (MARGIN + columns * (CARD_WIDTH + MARGIN), MARGIN + sum(heights) + MARGIN * len(bands))
    page = Image.new("RGB", size, PAPER)
    top = MARGIN
    for band, height in zip(bands, heights, strict=True):
        for column, card in enumerate(band):
            left = MARGIN + column * (CARD_WIDTH + MARGIN)
            page.paste(CARD, (left, top, left + CARD_WIDTH, top + height))
            page.paste(card, (left, top))
        top += height + MARGIN
    return page


def _draw_card(row: Row) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    width = CARD_WIDTH - 2 * MARGIN
    lines = [(line, INK) for line in _wrap(row.problem, font, width)]
    for option in row.options:
        is_right = option[0] == row.solution
        text = f"{option}  (solution)" if is_right else option
        lines += [(line, RIGHT if is_right else INK) for line in _wrap(text, font, width)]
    if not row.options:
        lines += [(line, RIGHT) for line in _wrap(f"{row.solution}  (solution)", font, width)]
    footer = [(line, FAINT) for line in _wrap(f"{row.id}  {row.problem_type}", font, width)]
    picture_height = PICTURE_HEIGHT + MARGIN if row.visuals else 0
    card = Image.new("RGB", (CARD_WIDTH, 2 * MARGIN + picture_height + LINE_HEIGHT * (len(lines) + len(footer))), CARD)
    _paste_pictures(card, row.visuals, width)
    draw = ImageDraw.Draw(card)
    top = MARGIN + picture_height
    for text, colour in lines + footer:
        draw.text((MARGIN, top), text, fill=colour, font=font)
        top += LINE_HEIGHT
    return card


def _paste_pictures(card: Image.Image, visuals: Sequence[VisualFiles], width: int) -> None:
    """In equal cells of a grid that is as broad as high, each centred; a video gives its frames."""
    pictures = [frame for files in visuals for frame in read_visual(files, VIDEO_FRAMES).frames]
    if not pictures:
        return
    columns = math.ceil(math.sqrt(len(pictures)))
    cell_width, cell_height = width // columns, PICTURE_HEIGHT // math.ceil(len(pictures) / columns)
    gap = 4 if len(pictures) > 1 else 0
    for index, picture in enumerate(pictures):
        fitted = _fit(picture, cell_width - gap, cell_height - gap)
        left = MARGIN + index % columns * cell_width + (cell_width - fitted.width) // 2
        top = MARGIN + index // columns * cell_height + (cell_height - fitted.height) // 2
        card.paste(fitted, (left, top))


def _fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Whole-number nearest upscaling keeps small pixels square; larger pictures shrink smoothly."""
    scale = min(width / picture.width, height / picture.height)
    if scale >= 1:
        return picture.resize((picture.width * int(scale), picture.height * int(scale)), Image.Resampling.NEAREST)
    size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces; a longer word keeps a line of its own."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
