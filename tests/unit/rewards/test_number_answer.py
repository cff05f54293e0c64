from fractions import Fraction

import pytest

from megatron_moe_grpo.rewards.number_answer import read_number, same_number, unwrap


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("+5", 5),
        ("-5", -5),
        ("- 5", -5),
        ("\u22125", -5),
        ("5.", 5),
        ("05", 5),
        ("5.0", 5),
        (".5", Fraction(1, 2)),
        ("0.50", Fraction(1, 2)),
        ("-0.5", Fraction(-1, 2)),
        ("1,234", 1234),
        ("1,234.5", Fraction(2469, 2)),
        ("1{,}234", 1234),
        ("1\\,234", 1234),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\frac{3}{4}", Fraction(-3, 4)),
        ("\\dfrac34", Fraction(3, 4)),
        ("1\\frac{1}{2}", Fraction(3, 2)),
        ("1.5e3", 1500),
        ("2E-2", Fraction(1, 50)),
        ("1.5 \\times 10^{3}", 1500),
        ("1.5×10^-3", Fraction(3, 2000)),
        ("2*10**3", 2000),
        ("$5$", 5),
        ("\\(5\\)", 5),
        ("\\[ 5 \\]", 5),
        ("\\boxed{5}", 5),
        ("$\\boxed{\\frac{3}{4}}$.", Fraction(3, 4)),
        ("**5**", 5),
        ("x = 5", 5),
        ("x=$5$", 5),
        ("∠ABC = 50°", 50),
        ("\\angle A = 50^\\circ", 50),
        ("The answer is 5.", 5),
        ("Final answer: $5$", 5),
    ],
)
def test_read_number_reads(text: str, value: int | Fraction) -> None:
    number = read_number(text)
    assert number is not None and number.value == value


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("50°", "degree"),
        ("50 °", "degree"),
        ("50^\\circ", "degree"),
        ("50^{\\circ}", "degree"),
        ("$50^{\\circ}$", "degree"),
        ("50\\degree", "degree"),
        ("50 degrees", "degree"),
        ("50 Degrees", "degree"),
        ("50\\text{ degrees}", "degree"),
        ("50%", "percent"),
        ("50\\%", "percent"),
        ("50 percent", "percent"),
        ("50 cm", "cm"),
        ("50cm", "cm"),
        ("50\\text{ cm}", "cm"),
        ("50\\,\\mathrm{~cm}", "cm"),
        ("50 cm^2", "cm^2"),
        ("50 cm²", "cm^2"),
        ("50\\text{ cm}^{2}", "cm^2"),
        ("50 square centimeters", "cm^2"),
        ("50 m^3", "m^3"),
        ("50 units", "unit"),
        ("50", None),
    ],
)
def test_read_number_reads_units(text: str, unit: str | None) -> None:
    number = read_number(text)
    assert number is not None and (number.value, number.unit) == (50, unit)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "-", "x", "5x", "5 x", "x5", "5 or 7", "5, 7", "5 7", "5/0", "\\frac{1}{0}", "5/", "--5", "5-3",
        "5+3", "1,23", "1,2345", "1.2.3",
        "5 cm 3", "5 cm cm", "5 apples", "2\\sqrt{3}", "\\pi", "1e1234", "1e", "nan", "inf", "-infinity", "0x10",
        "1_000", "\u0665", "\uff15",
        "5²", "5!", "(5)", "{5}", "\\frac{x}{2}", "9**9**9", "9" * 100, "5" + " " * 100 + "cm", "x = y = 5", "not 5",
    ],
)  # fmt: skip
def test_read_number_refuses(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("answer", "solution", "expected"),
    [
        ("5", "5", True),
        ("5.0", "5", True),
        ("5.01", "5", False),  # whole numbers are exact
        ("5.0000001", "5", False),
        ("10/2", "5", True),
        ("-5", "5", False),
        ("2.51", "2.5", True),  # 0.4 % off
        ("2.525", "2.5", True),  # exactly 1 %
        ("2.5251", "2.5", False),
        ("2.475", "2.5", True),
        ("-2.5", "2.5", False),
        ("0", "0.0", True),
        ("0.001", "0.0", False),  # relative to nothing
        ("0.33", "1/3", True),
        ("0.3", "1/3", False),
        ("33/100", "1/3", False),  # two fractions
        ("2/6", "1/3", True),
        ("1.5e3", "1500.0", True),
        ("50°", "50", True),
        ("50", "50°", True),
        ("50 degrees", "50^\\circ", True),
        ("50 cm", "50 m", False),
        ("50 cm", "50 cm^2", False),
        ("50°", "50%", False),
        ("50%", "0.5", False),
        ("1,234", "1234", True),
    ],
)
def test_same_number(answer: str, solution: str, expected: bool) -> None:
    assert same_number(read_number(answer), read_number(solution), 0.01) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$a$ and $b$", "$a$ and $b$"),
        ("\\boxed{a}+\\boxed{b}", "\\boxed{a}+\\boxed{b}"),
        ("\\boxed{\\frac{a}{b}}", "\\frac{a}{b}"),
        ("\\boxed{1}{2}", "\\boxed{1}{2}"),
        ("$$a$$", "a"),
        ("**2**3**", "**2**3**"),
        ("$", "$"),
        ("answer", "answer"),
    ],
)
def test_unwrap_takes_only_what_stands_around_all(text: str, expected: str) -> None:
    assert unwrap(text) == expected
