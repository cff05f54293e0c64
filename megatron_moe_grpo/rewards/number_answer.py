"""An answer that is one number: how it is written, its unit, and when two of them are the same.

Everything is exact (fractions, no floats), and every text is bounded, so no answer can be costly.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

# Units are compared by these names; a unit that is not here makes the text an expression ("5x"), not a number.
UNITS = {
    name: canonical
    for canonical, names in {
        "degree": ("°", "^°", "^o", r"^\circ", r"^{\circ}", r"\circ", r"\degree", "degree", "degrees", "deg"),
        "percent": ("%", r"\%", "percent"),
        "radian": ("rad", "radian", "radians"),
        "mm": ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
        "cm": ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
        "m": ("m", "meter", "meters", "metre", "metres"),
        "km": ("km", "kilometer", "kilometers", "kilometre", "kilometres"),
        "inch": ("inch", "inches"),
        "foot": ("ft", "foot", "feet"),
        "unit": ("unit", "units"),
    }.items()
    for name in names
}
MINUS_SIGNS = str.maketrans(dict.fromkeys("−–﹣－", "-"))

MAX_CHARS = 60
DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\\,)[0-9]{3})+|[0-9]+)"
DECIMAL = rf"(?:{DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
TIMES_TEN = r"(?:[eE]|\s*(?:×|x|\*|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*)"
SCALED = rf"(?P<decimal>{DECIMAL})(?:{TIMES_TEN}\{{?(?P<exponent>[-+]?[0-9]{{1,3}})\}}?)?"
FRACTION = (
    rf"(?:(?P<whole>{DIGITS})(?:\s+|(?=\\)))?"
    rf"(?:(?P<over>{DIGITS})\s*/\s*(?P<under>{DIGITS})|"
    rf"\\[dt]?frac\s*(?:\{{(?P<top>{DIGITS})\}}|(?P<top1>[0-9]))\s*(?:\{{(?P<bottom>{DIGITS})\}}|(?P<bottom1>[0-9])))"
)
NUMBER = re.compile(rf"(?P<sign>[-+]?)\s?(?:{FRACTION}|{SCALED})(?P<unit>\D*|\D.*)", re.DOTALL)
CLAIM = re.compile(r"(?:the )?(?:final )?answer(?: is)?:?\s+", re.IGNORECASE)
NAME_BEFORE = re.compile(r"[A-Za-z∠△\\' ]{1,20}=")
WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"), ("**", "**"), ("`", "`"))
UNIT_TEXT = re.compile(r"\\(?:text|mathrm|rm)\s*\{([^{}]*)\}")
LATEX_SPACE = re.compile(r"~|\\[,;: ]")
POWER = re.compile(r"(?:\^\{?([23])\}?|([²³]))$")
POWER_WORDS = {"square ": "2", "sq ": "2", "sq. ": "2", "cubic ": "3"}


@dataclass(frozen=True)
class Number:
    """A number as it was written."""

    value: Fraction
    is_decimal: bool
    """Written with a decimal point or a power of ten, so perhaps rounded."""
    unit: str | None = None


def same_number(answer: Number, solution: Number, tolerance: float) -> bool:
    """Whether `answer` is right.

    A whole `solution` without a decimal point must be met exactly (5.0 meets 5).  Otherwise, if one of the two was
    written as a decimal, |answer - solution| <= tolerance * |solution|; two fractions must be equal.
    Units: one that is missing on either side is let pass; two different ones are wrong, nothing is converted (50 % is
    50 and not 0.5).
    """
    if answer.unit and solution.unit and answer.unit != solution.unit:
        return False
    is_whole = not solution.is_decimal and solution.value.denominator == 1
    if is_whole or not (answer.is_decimal or solution.is_decimal):
        return answer.value == solution.value
    # str: the setting 0.01 means one hundredth, not the float a little above it.
    return abs(answer.value - solution.value) <= Fraction(str(tolerance)) * abs(solution.value)


def read_number(text: str) -> Number | None:
    """The number that `text` is, or None if it is anything else.

    Read: `-3`, `1,234.5`, `.5`, `3/4`, `1 1/2`, `\\frac{3}{4}`, `1.5e-3`, `1.5 \\times 10^{3}`; with one unit of UNITS
    behind it (`50°`, `50^\\circ`, `12 \\text{ cm}^2`); inside what `unwrap` takes away; behind a name, `x =`.
    """
    text = unwrap(text).translate(MINUS_SIGNS)
    name = NAME_BEFORE.match(text)
    text = unwrap(text[name.end() :]) if name else text
    match = NUMBER.fullmatch(text) if len(text) <= MAX_CHARS else None
    if match is None:
        return None
    unit_text = match["unit"].strip()
    unit = _unit(unit_text)
    value = _value(match)
    if value is None or (unit_text and unit is None):
        return None
    decimal = match["decimal"]
    is_decimal = decimal is not None and ("." in decimal.rstrip(".") or match["exponent"] is not None)
    return Number(-value if match["sign"] == "-" else value, is_decimal, unit)


def unwrap(text: str) -> str:
    """`text` without white space, a full stop, `$..$`, `\\(..\\)`, `\\boxed{..}`, `**..**` and the like around it, and
    without `The answer is` before it."""
    for _ in range(6):
        before = text
        text = text.strip().removesuffix(".").rstrip()
        claim = CLAIM.match(text)
        text = text[claim.end() :] if claim else text
        for opening, closing in WRAPPERS:
            inside = text[len(opening) : len(text) - len(closing)]
            is_wrapped = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
            if is_wrapped and opening not in inside and _is_balanced(inside):
                text = inside
        if text == before:
            break
    return text


def _is_balanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0


def _value(match: re.Match[str]) -> Fraction | None:
    if match["decimal"] is not None:
        value = Fraction(_plain(match["decimal"]).rstrip("."))
        return value * Fraction(10) ** int(match["exponent"] or 0)
    over, under = match["over"] or match["top"] or match["top1"], match["under"] or match["bottom"] or match["bottom1"]
    if int(_plain(under)) == 0:
        return None
    return int(_plain(match["whole"] or "0")) + Fraction(int(_plain(over)), int(_plain(under)))


def _plain(digits: str) -> str:
    """Digits without thousands separators."""
    return digits.replace("{,}", "").replace("\\,", "").replace(",", "")


def _unit(text: str) -> str | None:
    """Canonical name of a unit, "cm^2" with its power; None for anything else."""
    text = " ".join(LATEX_SPACE.sub(" ", UNIT_TEXT.sub(r"\1", text)).split())
    power = ""
    match = POWER.search(text)
    if match:
        text, power = text[: match.start()].strip(), match[1] or {"²": "2", "³": "3"}[match[2]]
    for word, its_power in POWER_WORDS.items():
        if text.startswith(word) and not power:
            text, power = text.removeprefix(word), its_power
    unit = UNITS.get(text) or UNITS.get(text.lower())
    return unit and (f"{unit}^{power}" if power else unit)
