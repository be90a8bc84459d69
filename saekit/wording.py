"""How numbers are written, everywhere: terminal, SVG, report page and viewer."""

REFUSED = "n/a"


def percent(share: float | None) -> str:
    """A share: `percent(0.798) == "80%"`, `percent(0.004) == "0.4%"`; a refused one is "n/a".

    Whole percents between 10% and 99%, one decimal outside, where it matters; what is not 0 is
    never written as 0: `percent(0.0001) == "<0.1%"`.
    """
    if share is None:
        return REFUSED
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1%"
    if value == round(value) or 10 <= abs(value) <= 99:
        return f"{value:.0f}%"
    return f"{value:.1f}%"


def number(value: float | None) -> str:
    """Three significant digits: `number(3.14159) == "3.14"`, `number(0.00002) == "2e-05"`."""
    if value is None:
        return REFUSED
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"
