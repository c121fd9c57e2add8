"""English written forms as words: dates, times, money, ranges, units, powers, fractions and the numbers in them.

`numbers_en` runs the rules in order; each rewrites one kind of form into words or into a simpler form for a later one. All
patterns are bounded and start where a number starts, so time grows with length only. The number words are those of
`spoken_numbers.py`; abbreviations, initials and roman numerals are read by `spoken_names.py`.
"""

import re

from omnilib.spoken_names import abbreviations, romans, sentence_end, sub
from omnilib.spoken_numbers import decimal, fraction, spell, unit_name, words

N = r"\d{1,15}(?:\.\d{1,15})?"
START = r"(?<![\w.])"  # a number begins here, and not inside a name such as B2B
END = r"(?![\d]|\.\d)"

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
MONTH = "(?P<month>" + "|".join(f"{m[:3]}(?:{m[3:]})?" if m != "May" else m for m in MONTHS) + r"|Sept)\.?"
DECADES = (
    "hundreds",
    "tens",
    "twenties",
    "thirties",
    "forties",
    "fifties",
    "sixties",
    "seventies",
    "eighties",
    "nineties",
)
YEAR = r"(?:1[1-9]\d\d|20\d\d)"
CURRENCIES = {  # one, many, one hundredth
    "$": ("dollar", "dollars", "cent"), "US$": ("US dollar", "US dollars", "cent"), "£": ("pound", "pounds", "pence"),
    "A$": ("Australian dollar", "Australian dollars", "cent"), "C$": ("Canadian dollar", "Canadian dollars", "cent"),
    "HK$": ("Hong Kong dollar", "Hong Kong dollars", "cent"), "CHF": ("Swiss franc", "Swiss francs", ""),
    "€": ("euro", "euros", "cent"), "¥": ("yuan", "yuan", ""), "₹": ("rupee", "rupees", "paise"), "₩": ("won", "won", ""),
    "₽": ("ruble", "rubles", "kopek"), "USD": ("US dollar", "US dollars", "cent"), "EUR": ("euro", "euros", "cent"),
    "GBP": ("pound", "pounds", "pence"), "CNY": ("yuan", "yuan", ""), "RMB": ("yuan", "yuan", ""), "JPY": ("yen", "yen", ""),
}  # fmt: skip
SCALES = {"k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "bn": "billion", "b": "billion"} | {
    "B": "billion", "tn": "trillion"
}  # fmt: skip
SCALE = "thousand|million|billion|trillion|hundred"
# Units that wetext lacks or misreads (it takes m for minutes): one, many.
UNITS = {
    "m": ("meter", "meters"), "m/s": ("meter per second", "meters per second"), "V": ("volt", "volts"), "W": ("watt", "watts"),
    "kV": ("kilovolt", "kilovolts"), "kWh": ("kilowatt hour", "kilowatt hours"), "Wh": ("watt hour", "watt hours"),
    "MW": ("megawatt", "megawatts"), "GW": ("gigawatt", "gigawatts"), "kHz": ("kilohertz", "kilohertz"), "L": ("liter", "liters"),
    "l": ("liter", "liters"), "mL": ("milliliter", "milliliters"), "cl": ("centiliter", "centiliters"),
    "dl": ("deciliter", "deciliters"), "μm": ("micrometer", "micrometers"), "μg": ("microgram", "micrograms"),
    "μs": ("microsecond", "microseconds"), "Ω": ("ohm", "ohms"), "dB": ("decibel", "decibels"), "kPa": ("kilopascal", "kilopascals"),
    "hPa": ("hectopascal", "hectopascals"), "kJ": ("kilojoule", "kilojoules"), "J": ("joule", "joules"), "kcal": ("kilocalorie", "kilocalories"),
    "cal": ("calorie", "calories"), "Nm": ("newton meter", "newton meters"), "mAh": ("milliampere hour", "milliampere hours"),
    "Ah": ("ampere hour", "ampere hours"), "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "sec": ("second", "seconds"),
    "secs": ("second", "seconds"), "mins": ("minute", "minutes"), "kph": ("kilometer per hour", "kilometers per hour"),
    "km/s": ("kilometer per second", "kilometers per second"), "kB": ("kilobyte", "kilobytes"), "PB": ("petabyte", "petabytes"),
    "Gbps": ("gigabit per second", "gigabits per second"), "kbps": ("kilobit per second", "kilobits per second"),
    "GB/s": ("gigabyte per second", "gigabytes per second"), "g/L": ("gram per liter", "grams per liter"),
    "g/l": ("gram per liter", "grams per liter"), "mg/L": ("milligram per liter", "milligrams per liter"),
    "mg/dL": ("milligram per deciliter", "milligrams per deciliter"), "kg/m^3": ("kilogram per cubic meter", "kilograms per cubic meter"),
    "m/s^2": ("meter per second squared", "meters per second squared"), "ppm": ("part per million", "parts per million"),
    "tsp": ("teaspoon", "teaspoons"), "tbsp": ("tablespoon", "tablespoons"),
    "fps": ("frame per second", "frames per second"), "px": ("pixel", "pixels"), "sq ft": ("square foot", "square feet"),
    "ft^2": ("square foot", "square feet"), "ft^3": ("cubic foot", "cubic feet"), "in^2": ("square inch", "square inches"),
    "mi^2": ("square mile", "square miles"), "mm^3": ("cubic millimeter", "cubic millimeters"), "km^3": ("cubic kilometer", "cubic kilometers"),
}  # fmt: skip
KNOWN = [
    "mm",
    "cm",
    "dm",
    "km",
    "ft",
    "yd",
    "mi",
    "mm^2",
    "cm^2",
    "m^2",
    "km^2",
    "m^3",
    "cm^3",
    "mg",
    "g",
    "kg",
    "lb",
    "lbs",
    "oz",
    "ml",
    "s",
    "ms",
    "min",
    "h",
    "Hz",
    "MHz",
    "GHz",
    "kW",
    "mV",
    "mA",
    "Pa",
    "bar",
    "KB",
    "MB",
    "GB",
    "TB",
    "Mbps",
    "MB/s",
    "km/h",
    "mph",
    "rpm",
    "°C",
    "°F",
    "nm",
    "ha",
]
SYMBOLS_OF_UNITS = "|".join(re.escape(u) for u in sorted([*UNITS, *KNOWN], key=len, reverse=True))
UNIT = rf"(?:{SYMBOLS_OF_UNITS})(?![\w^/°])"
RELATIONS = {
    "&&": "and",
    "<=": "less than or equal to", ">=": "greater than or equal to", "≤": "less than or equal to", "≥": "greater than or equal to",
    "≦": "less than or equal to", "≧": "greater than or equal to", "!=": "not equal to", "≠": "not equal to", "==": "equals",
    "≈": "approximately", "≅": "approximately equal to", "±": "plus or minus", "√": "square root of", "∞": "infinity",
    "∈": "in", "°C": "degrees Celsius", "°F": "degrees Fahrenheit", "∑": "sum of", "∝": "proportional to",
}  # fmt: skip
# A letter after these numbers is a letter: Room 204B is no billion. So is K before what is sold by it: a 4K screen.
LETTERED = (
    "room|apartment|apt\\.?|flat|suite|unit|gate|seat|row|bus|line|route|highway|building|block|terminal|platform|section|exit|"
    "figure|table|class|size|type|model|level|question|page|number|locker|bay|stall|pier|hangar|lot|track|grade|form|house"
)
SOLD_BY_K = "TVs?|televisions?|videos?|resolution|screens?|displays?|monitors?|cameras?|films?|movies?|footage|projectors?|runs?|races?|streams?"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DIGIT_WORD = "(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"


def numbers_en(text: str) -> str:
    """Digits, abbreviations, units and symbols as English words."""
    if not re.search(
        r"[^\w\s,?!;:'\"()-]|\d|[IVXLC]{2}|[A-Z][a-z]{1,30} [IVX]\b", text
    ):  # words and plain marks only
        return text
    text = abbreviations(text)
    text = romans(text)
    text = spans(text)
    if re.search(r"[\d^]", text):
        for rule in (
            plain_numbers,
            telephones,
            dates,
            times,
            powers,
            money,
            signs,
            ranges,
            measures,
            fractions,
            years,
        ):
            text = re.sub(" {2,}", " ", rule(text))
    text = relations(text)
    code = r"(?<=[A-Za-z])(?!(?:19|20)\d\d(?!\d))\d{4,8}(?!\d)|(?<=[a-z])\d{3}(?!\d)"  # BA2490, abc123
    text = sub(code, lambda m: f" {spell(m[0])} ", text)
    return sub(r"\d+", lambda m: f" {words(m[0])} ", text)


def spans(text: str) -> str:
    """Mon-Fri and Jan–Mar; Sat., Sept. 3."""

    def full(name: str) -> str:
        return next(whole for whole in (*DAYS, *MONTHS) if whole.startswith(name[:3]))

    for names in (DAYS, MONTHS):
        name = rf"({'|'.join(f'{n[:3]}(?:{n[3:]})?' for n in names)})"
        text = sub(rf"\b{name}\.? ?[-–] ?{name}\b", lambda m: f"{full(m[1])} to {full(m[2])}", text)
    day = rf"\b({'|'.join(d[:3] for d in DAYS)})(?:s|r|rs)?\b"
    return sub(rf"{day}(?:\.,?|,) ?(?=(?:{MONTH}|\d))", lambda m: f"{full(m[1])}, ", text)


# ---- numbers: one way to write them ----------------------------------------------------------------------------------


def plain_numbers(text: str) -> str:
    """Very long numbers spelt, thousands' commas away (and the cardinal said at once: 1,905 is no year), .5 as 0.5."""
    text = sub(
        r"(?<![\w.,])\d{1,3}(?:\.\d{3}){1,4},\d\d(?!\d)",
        lambda m: m[0].replace(".", "").replace(",", "."),
        text,
    )  # 1.234,56
    text = sub(
        r"(?<![\w.,])\d{1,3}(?:\.\d{3}){2,4}(?![\d.])", lambda m: m[0].replace(".", "") + "\ue000", text
    )
    text = sub(r"(?<![\w.,])\d{1,3}(?: 000){1,4}(?!\d)", lambda m: m[0].replace(" ", "") + "\ue000", text)
    text = sub(r"\b0x([\dA-Fa-f]{1,16})\b", lambda m: "zero x " + " ".join(spell(c) or c for c in m[1]), text)
    text = sub(r"\d{16,}", lambda m: f" {spell(m[0])} ", text)
    text = sub(r"(?<![\d.,])(\d{1,12}),(\d\d)(?= ?(?:€|EUR\b|euros?\b))", r"\1.\2", text)  # 12,50 €
    text = sub(rf"(?<![\d.,])(\d{{1,3}}),(\d{{1,2}})(?= ?(?:{UNIT}|%))", r"\1.\2", text)  # 2,5 kg
    text = sub(r"(?<![\w.])(\d{3})\.(\d{3})\.(\d{4})(?![\w.]\d)", r"\1-\2-\3", text)  # a telephone number
    text = sub(
        r"(?<![\d.,])\d{1,3}(?:,\d{3}){1,4}(?!\d|,\d)", lambda m: m[0].replace(",", "") + "\ue000", text
    )
    text = sub("(\\d)\ue000(?=\\.\\d)", r"\1", text)
    text = sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    text = sub(r"\bv(?:er)?\.? ?(?=\d{1,15}\.\d)", "version ", text, re.I)
    return sub(
        rf"{START}(\d{{1,15}})((?:\.\d{{1,15}}){{2,9}}){END}",
        lambda m: " point ".join(words(n) for n in m[0].split(".")),
        text,
    )


def telephones(text: str) -> str:
    """Numbers with separators, and long codes such as 978-3-16-148410-0, are spelt."""
    text = sub(
        r"(?<![\d.])\b1-(800|888|877|900)-(\d{3})-(\d{4})\b",
        lambda m: f"one {words(m[1])}, {spell(m[2])}, {spell(m[3])}",
        text,
    )
    groups = r"\d{1,8}(?:[ -]\d{2,8}){1,6}"
    number = rf"\+\d{{1,4}}[ -]?(?:\(\d{{1,5}}\)[ -]?)?{groups}|\(\d{{2,5}}\) ?{groups}|\d{{2,5}}(?:-\d{{1,8}}){{2,6}}|\d{{3}}-\d{{4}}|\d{{5}}-\d{{4}}|\+\d{{8,15}}|0\d{{2,5}}(?: \d{{2,8}}){{1,4}}"

    def say(match: re.Match) -> str:
        if re.fullmatch(r"\d{4}-\d\d?-\d\d?|\d\d?-\d\d?-(?:19|20)\d\d", match[0]):  # a date
            return match[0]
        runs = re.findall(r"\d+", match[0])
        return (" plus " if match[0][0] == "+" else " ") + ", ".join(map(spell, runs)) + " "

    text = sub(rf"(?<![\w.+-])(?:{number})(?![\w-]|\.\d)", say, text)
    return sub(r"\b([Cc]all|[Dd]ial) (911|999|112|110|119)\b", lambda m: f"{m[1]} {spell(m[2])}", text)


# ---- dates and times -------------------------------------------------------------------------------------------------


def dates(text: str) -> str:
    """2024-05-01, 3/5/2024 (month first), Mar 5, 2024 and 5 March 2024."""

    def say(year: str, month: str, day: str, written: str) -> str:
        month, day = int(month), int(day)
        if month > 12 >= day:
            month, day = day, month
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return written
        return f" {MONTHS[month - 1]} {words(str(day), 'ordinal')} {words(year, 'year')} "

    def full(match: re.Match) -> str:
        return next(m for m in MONTHS if m[:3] == match["month"][:3])

    clean = r"(?<![\w./-])"
    text = sub(
        rf"{clean}(\d{{4}})([-/.])(\d{{1,2}})\2(\d{{1,2}})(?=T\d\d:)",
        lambda m: say(m[1], m[3], m[4], m[0]) + "at ",
        text,
    )
    text = sub(r"(?<=at )T(?=\d\d:\d\d)", "", text)
    text = sub(
        rf"{clean}(\d{{4}})([-/.])(\d{{1,2}})\2(\d{{1,2}})(?![\w/-]|\.\d)",
        lambda m: say(m[1], m[3], m[4], m[0]),
        text,
    )
    text = sub(
        rf"{clean}(\d{{1,2}})([-/.])(\d{{1,2}})\2(\d{{4}})(?![\w/-]|\.\d)",
        lambda m: say(m[4], m[1], m[3], m[0]),
        text,
    )
    day = r"(?P<day>[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?"
    following = rf"(?:(?P<comma>,?) (?P<year>{YEAR})(?![\d,.]\d|\w))?"

    def month_first(match: re.Match) -> str:
        year = f"{match['comma']} {words(match['year'], 'year')}" if match["year"] else ""
        return f"{full(match)} {words(match['day'].lstrip('0'), 'ordinal')}{year}"

    def day_first(match: re.Match) -> str:
        year = f"{match['comma']} {words(match['year'], 'year')}" if match["year"] else ""
        the = "" if match["the"] else "the "
        return f"{match['the'] or ''}{the}{words(match['day'].lstrip('0'), 'ordinal')} of {full(match)}{year}"

    text = sub(rf"\b{MONTH} {day}(?![\d:/%]|[.,]\d|-\d){following}", month_first, text)
    text = sub(
        rf"(?<![\d.,:/$£€-])(?P<the>\b[Tt]he )?\b{day} (?:of )?{MONTH}(?![\w]){following}", day_first, text
    )
    text = sub(
        rf"\b{MONTH} (?P<year>{YEAR})(?!\d|[.,]\d)", lambda m: f"{full(m)} {words(m['year'], 'year')}", text
    )

    def decade(match: re.Match) -> str:
        century, ten = match[1], int(match[2])
        if ten == 0:
            return f" {words(century)} hundreds " if century != "20" else " two thousands "
        return f" {words(century)} {DECADES[ten]} "

    text = sub(r"(?<![\w.])(1[1-9]|20)(\d)0'?s\b", decade, text)
    return sub(r"(?<![\w.])'?([2-9])0'?s\b", lambda m: f" {DECADES[int(m[1])]} ", text)


def times(text: str) -> str:
    """14:30, 2:05 pm, 9am and spans of h:mm:ss."""

    def minute(digits: str) -> str:
        return f"oh {words(digits[1])}" if digits[0] == "0" else words(digits)

    def half(match: re.Match, index: int) -> str:
        if not match[index]:
            return ""
        return f" {match[index].strip()[0].lower()} m{sentence_end(match)}"

    def clock(match: re.Match) -> str:
        hour, minutes = words(str(int(match[1]))), match[2]
        if int(match[1]) > 24:
            return match[0]
        if minutes == "00":
            return hour + (half(match, 3) or " o'clock")
        return f"{hour} {minute(minutes)}{half(match, 3)}"

    def span(match: re.Match) -> str:
        names = zip(match.groups(), ("hour", "minute", "second"), strict=True)
        return " ".join(f"{words(str(int(n)))} {name}{'' if int(n) == 1 else 's'}" for n, name in names)

    meridiem = r"( ?[ap]\.?m\b\.?)"
    text = sub(rf"{START}(\d{{1,2}}):([0-5]\d):([0-5]\d){END}", span, text)
    text = sub(rf"(?<![\d.:])(\d{{1,2}}):([0-5]\d)(?![\d:]|\.\d){meridiem}?", clock, text, re.I)
    text = sub(
        rf"{START}(\d{{1,2}}){meridiem}(?!\w)", lambda m: words(str(int(m[1]))) + half(m, 2), text, re.I
    )
    return sub(rf"(?<=m) ?[-–] ?(?={DIGIT_WORD}\b)|(?<=o'clock) ?[-–] ?(?={DIGIT_WORD}\b)", " to ", text)


# ---- signs, powers, money, ranges ------------------------------------------------------------------------------------


def powers(text: str) -> str:
    """6.02e23, 1.5×10^8, 10^-3, x^2; the ^ comes from superscripts too."""

    def power(match: re.Match) -> str:
        sign, exponent = ("minus " if match[2] == "-" else ""), match[3]
        if not sign and exponent in ("2", "3") and match[1] != "10":
            return f"{match[1]} {'squared' if exponent == '2' else 'cubed'} "
        return f"{match[1]} to the power of {sign}{exponent} "  # in digits: a unit may follow

    text = sub(
        rf"(?<![\w.])({N})[eE]([+-]?)(\d{{1,3}})(?![\w.])",
        lambda m: f"{m[1]} times 10^{m[2].strip('+')}{m[3]}",
        text,
    )
    text = sub(r"(?<=\d) ?[×x*·] ?(?=10\^[-+]?\d)", " times ", text)
    unit = rf"(?<=[\d ])(?:{'|'.join(re.escape(u) for u in (*UNITS, *KNOWN) if '^' in u)})(?!\w)"
    held = {}

    def hold(match: re.Match) -> str:  # 20 m^2 is a unit, not a power
        held[match[0]] = match[0].replace("^", "\ue001")
        return held[match[0]]

    text = sub(unit, hold, text)
    text = sub(r"(?<![^\W_])(\d{1,15}|[^\W\d_]{1,2})\^\(?([+-]?)(\d{1,15})\)?", power, text)
    text = sub(r"(?<![^\W_])(\d{1,15}|[^\W\d_])\^([^\W\d_])(?!\w)", r"\1 to the power of \2 ", text)
    text = sub(r"(?<=\d)\*\*(?=-?\d)", " to the power of ", text)
    return text.replace("\ue001", "^")


def money(text: str) -> str:
    """$3.50, 5€, £1.2m, $5-10, -$20."""
    symbols = "|".join(
        map(re.escape, sorted((c for c in CURRENCIES if not c.isalpha()), key=len, reverse=True))
    )
    codes = "|".join(c for c in CURRENCIES if c.isalpha())
    short = "|".join(SCALES)
    scale = rf"(?: ?({SCALE})\b|({short})\b)?"

    def amount(number: str, unit: str, scale: str, short: str, upper: str = "") -> str:
        one, many, cent = CURRENCIES[unit]
        whole, _, cents = number.partition(".")
        if scale or short or upper:
            top = f" to {decimal(upper)}" if upper else ""
            return f"{decimal(number)}{top} {scale or SCALES.get(short, '')} {many}".replace("  ", " ")
        if len(cents) not in (0, 2) or (cents and not cent):
            return f"{decimal(number)} {many}"
        coins = (
            ""
            if not cents.strip("0")
            else words(str(int(cents)))
            + " "
            + cent
            + ("s" if cent in ("cent", "kopek") and int(cents) != 1 else "")
        )
        if coins and whole == "0":
            return coins
        return f"{words(whole)} {one if whole == '1' else many}" + (f" and {coins}" if coins else "")

    number = "(\\d{1,15}(?:\\.\\d{1,15})?)\ue000?"
    paid = "bill|note|fee|fine|ticket|prize|tip|voucher|coupon|budget|loan|deposit|gift|reward|bet|coin|menu|discount|meal"
    single = rf"({symbols})(\d{{1,9}})\ue000?(?= (?:{paid})\b)"
    text = sub(single, lambda m: f"{words(m[2])} {CURRENCIES[m[1]][0]}", text)  # a $20 bill
    text = sub(rf"(?<![^\s(\"'])[-–] ?(?=(?:{symbols})\d)", "minus ", text)
    text = sub(rf"(?<![\d–-])({symbols})[-–](?=\d)", r"minus \1", text)
    text = sub(
        rf"({symbols}) ?{number}(?:(?:{short})? ?[-–] ?(?:{symbols})?{number}(?![-\d]))?{scale}",
        lambda m: amount(m[2], m[1], m[4] or "", m[5] or "", m[3] or "") + " ",
        text,
    )
    text = sub(rf"\b({codes}) {number}", lambda m: amount(m[2], m[1], "", "") + " ", text)
    text = sub(
        rf"{START}{number}{scale} ?({symbols}|(?:{codes})\b)",
        lambda m: amount(m[1], m[4], m[2] or "", m[3] or "") + " ",
        text,
    )
    text = sub(rf"{START}{number} ?¢", lambda m: f"{decimal(m[1])} cent{'' if m[1] == '1' else 's'} ", text)
    return text


def signs(text: str) -> str:
    """A sign at the beginning of a number; 7 - 2 = 5; number signs; about 5."""
    text = sub(rf"(?<=\d) ?[-–] ?(?={N}\ue000? ?=)", " minus ", text)
    if "=" in text:  # x = 10 - y
        letter = r"[A-Za-z]\b"
        text = sub(rf"(?<=[\w)]) [-–] (?={letter})|(?<=\b[A-Za-z]) [-–] (?=\d)", " minus ", text)
    text = sub(r"(?<![^\s(=<>≤≥≠≈×÷*+\"'/^:,;—])[-–] ?(?=\d)(?<!\d [-–] )(?<!\d [-–])", " minus ", text)
    text = sub(r"(?<![^\s(=\"'])\+(?=\d)", " plus ", text)
    text = sub(r"(?<!\w)#(?=\d)", " number ", text)
    text = (
        sub(r"\b[Nn]o\.? ?(?=\d)|№ ?(?=\d)", " number ", text)
        if re.search(r"\bNo ?\d|[Nn]o\. ?\d|№", text)
        else text
    )
    text = sub(r"(?<![\w~])~ ?(?=\d)", " about ", text)
    return sub(r"(?<=\d) ?\* ?(?=\d)|(?<=\d) ?[xX] ?(?=\d)", " times ", text)


def ranges(text: str) -> str:
    """10-15, 3–5, 20–30 °C, 3:1 and 2-1."""
    text = sub(r"(?<=\d)(st|nd|rd|th) ?[-–] ?(?=\d)", r"\1 to ", text)
    text = sub(r"(?<![\w.-])50[-–/]50(?![\w-])", "fifty fifty", text)
    text = sub(r"\b([A-Za-z]\w{0,12}\d)[-–](?=\d{1,5}[A-Za-z])", r"\1 ", text)  # a code: Xk9-2pL
    text = sub(rf"(?<=\d) ?({UNIT}|%)? ?[-–~] ?(?=\d)", lambda m: f" {m[1]} to " if m[1] else " to ", text)
    text = sub("(?<=\ue000) ?[-–~] ?(?=\\d)", " to ", text)
    return sub(r"(?<=\d) ?: ?(?=\d)", " to ", text)


# ---- measures, fractions, numbers ------------------------------------------------------------------------------------


def measures(text: str) -> str:
    """Numbers with a unit, a percent sign or a short scale (10K)."""

    def measure(match: re.Match) -> str:
        number, unit = match[1], match[2]
        one = number == "1"
        name = (
            UNITS[unit][not one]
            if unit in UNITS
            else unit_name(unit.replace("^", "").replace("m2", "m²").replace("m3", "m³"), one)
        )
        return f"{decimal(number)} {name} " if name else match[0]

    def height(match: re.Match) -> str:
        return f"{words(match[1])} feet " + (f"{words(match[2])} " if match[2] else "")

    text = sub(rf"{START}(\d)'(?:(\d{{1,2}})(?:\"|''|(?![\w'\"]))|(?= tall))", height, text)
    text = sub(
        rf"{START}(\d{{1,2}}) ?ft\.? ?(\d{{1,2}}) ?in\b\.?",
        lambda m: f"{words(m[1])} feet {words(m[2])} inches",
        text,
    )
    text = sub(rf"(?<![\w./])({N})\ue000?[ -]?({UNIT})(?:\.(?= [a-z]))?", measure, text)
    text = sub(rf"{START}({N})\ue000? ?%", lambda m: f"{decimal(m[1])} percent ", text)
    text = sub(rf"{START}({N})\ue000? ?‰", lambda m: f"{decimal(m[1])} per thousand ", text)
    text = sub(
        rf"{START}({N})\ue000? ?°", lambda m: f"{decimal(m[1])} degree{'' if m[1] == '1' else 's'} ", text
    )
    text = sub(rf"\b((?:{LETTERED}) \d{{1,5}})([KMB])(?!\w)", r"\1 \2", text, re.I)
    text = sub(
        rf"{START}(\d{{1,5}})(?:B(?= [A-Z][a-z])|K(?= (?:{SOLD_BY_K})\b))",
        lambda m: f"{m[1]} {m[0][-1]}",
        text,
    )
    text = sub(rf"{START}({N})(k|K|M|bn|B)(?!\w)", lambda m: f"{decimal(m[1])} {SCALES[m[2]]} ", text)
    text = sub(rf"{START}({N})[x×](?= [a-z]|[,.!?;:]|\s*$)", lambda m: f"{decimal(m[1])} times", text)
    return sub(
        "\\b(\\d{1,15})\ue000?(?:st|nd|rd|th)\\b",
        lambda m: f" {words(m[1].lstrip('0') or '0', 'ordinal')} ",
        text,
        re.I,
    )


def fractions(text: str) -> str:
    """1/2, 1 1/2 and 2/3."""

    def say(match: re.Match) -> str:
        said = "" if match[0] == "9/11" else fraction(match[2], match[3])
        if match[0] == "9/11":
            return "nine eleven"
        if not said:
            silent = match[0] in ("24/7", "20/20") or len(match[2]) == 4  # 2023/24
            return match[0].replace("/", " " if silent else " out of " if match[2] == match[3] else " over ")
        if match[1]:
            said = f"{words(match[1].strip())} and {said.replace('one ', 'a ', 1) if said.startswith('one ') else said}"
        unit = match[4]
        if unit:
            symbol = unit.replace("^", "").replace("m2", "m²").replace("m3", "m³")
            one = not match[1]
            said += " " + (UNITS[unit][not one] if unit in UNITS else unit_name(symbol, one) or unit)
        return f" {said} "

    number = r"(?<![\d/.,])(\d{1,4} )?(\d{1,6})/(\d{1,6})(?![\d/]|\.\d)"
    return sub(rf"{number}(?: ?({UNIT})(?:\.(?= [a-z]))?)?", say, text)


def years(text: str) -> str:
    """Years, then decimals; a number that counts people or things is no year."""
    text = sub("(\\d{1,15})\ue000", lambda m: f" {words(m[1])} ", text)
    text = sub(r"\b(\d{1,4}) ?(BCE?|CE|AD)\b", lambda m: f"{words(m[1])} {' '.join(m[2])}", text)
    text = sub(r"\bAD (\d{1,4})\b", lambda m: f"A D {words(m[1])}", text)
    early = r"(?<=\b[Ii]n )(1[0-9]\d\d)(?![\d.%]|\.\d| [a-z]{2,20}s\b)"
    text = sub(early, lambda m: words(m[1], "year"), text)
    counted = r"(?! (?:people|men|women|children|[a-z]{2,20}[^sui\W]s) )"
    dated = r"(?<=\b[Ii]n )|(?<=\b[Bb]y )|(?<=\bsince )|(?<=\bfrom )|(?<=\bof )|(?<=\bthe )|(?<=\buntil )"
    year = lambda m: f" {words(m[1], 'year')} "  # noqa: E731
    text = sub(rf"(?:{dated})\b({YEAR})(?!\d|\.\d|%)", year, text)
    text = sub(rf"(?<![\d.])({YEAR})(?!\d|\.\d|%){counted}", year, text)
    return sub(r"(?<!\d)(\d{1,15}\.\d{1,15})(?!\d)", lambda m: f" {decimal(m[1])} ", text)


def relations(text: str) -> str:
    """Comparison and arithmetic signs between things compared; # of notes and tags."""
    if not re.search(r"[^\w\s,.?!;:'()-]", text):
        return text
    text = sub(r"<?(?:-|=){1,3}>|<-{1,3}(?!\d)", ", ", text)  # arrows
    text = sub(
        r"(?<=\w) ?/ ?(?=(?:second|minute|min|hour|day|night|week|month|year|person)s?\b)", " per ", text
    )
    text = sub(
        r"(?<![\w/])(?:km/h|km/s|m/s|[MGk]B/s)(?!\w)",
        lambda m: UNITS[m[0]][1] if m[0] in UNITS else unit_name(m[0], False) or m[0],
        text,
    )
    for symbol, word in RELATIONS.items():
        text = text.replace(symbol, f" {word} ")
    text = sub(r"(?<=[\w)]) ?< ?(?=[\w(.-])|<(?=[\d.])", " less than ", text)
    text = sub(r"(?<=[\w)]) ?> ?(?=[\w(.-])|>(?= ?\d)", " greater than ", text)
    text = sub(r"\b([A-G])#(?!\w)", r"\1 sharp", text)
    return sub(r"(?<![\w#])#(?=\w)", " hashtag ", text)
