"""Chinese written forms as words: what wetext reads wrong is rewritten first, then it reads the clauses that hold numbers.

All patterns are bounded and start where a number starts, so time grows with length only.
"""

import re

from omnilib.spoken_numbers import digits_zh, integer_zh, number_zh, read

N = r"\d{1,15}(?:\.\d{1,15})?"
START = r"(?<!\d)(?<!\d\.)"
CLAUSE = 80  # characters that wetext gets at a time
CURRENCIES = {
    "US$": "美元", "HK$": "港元", "$": "美元", "£": "英镑", "€": "欧元", "¥": "元", "₹": "卢比", "₩": "韩元", "₽": "卢布",
    "USD": "美元", "EUR": "欧元", "GBP": "英镑", "CNY": "元", "RMB": "元", "JPY": "日元", "HKD": "港元",
}  # fmt: skip
# Units that wetext reads in part or as letters (kWh becomes 千瓦h); the longest symbol wins.
UNITS = {
    "kWh": "千瓦时", "GHz": "吉赫兹", "MHz": "兆赫兹", "kHz": "千赫兹", "Hz": "赫兹", "kV": "千伏", "mV": "毫伏", "V": "伏",
    "MW": "兆瓦", "GW": "吉瓦", "W": "瓦", "mAh": "毫安时", "mA": "毫安", "mL": "毫升", "kPa": "千帕", "hPa": "百帕", "Pa": "帕",
    "kJ": "千焦", "J": "焦耳", "dB": "分贝", "μm": "微米", "μg": "微克", "Ω": "欧姆", "g": "克", "t": "吨", "l": "升", "hrs": "小时",
    "hr": "小时", "mins": "分钟", "sec": "秒", "m^2": "平方米", "km^2": "平方公里", "cm^2": "平方厘米", "m^3": "立方米",
    "cm^3": "立方厘米", "mm^2": "平方毫米", "kg/m^3": "千克每立方米", "m/s^2": "米每二次方秒", "KB": "KB", "MB": "MB", "GB": "GB",
    "TB": "TB", "m/s": "米每秒",
}  # fmt: skip
UNIT = "|".join(re.escape(u) for u in sorted(UNITS, key=len, reverse=True))
KNOWN = (  # by wetext, which also finds them at the beginning of other words: 5more became 5米ore
    "mm|cm|dm|m|km|nm|ft|yd|mi|mg|kg|lbs?|oz|ml|L|kL|ms|s|min|h|kW|kcal|bar|km/h|m/s|mph|rpm|ha"
)
RELATIONS = {
    "<=": "小于等于", ">=": "大于等于", "≤": "小于等于", "≥": "大于等于", "≦": "小于等于", "≧": "大于等于", "!=": "不等于",
    "≠": "不等于", "==": "等于", "±": "正负", "√": "根号", "∞": "无穷大", "→": "，", "∈": "属于", "°C": "摄氏度", "÷": "除以", "×": "乘",
}  # fmt: skip
WON = "获胜|取胜|赢|胜|负|输|战胜|击败|领先|落后|战平|打平|大胜"


# 2 before these is 两, beyond those that wetext knows; before the others it numbers something and is 二, where wetext says 两.
COUNTED = "位|次|种|名|座|间|辆|台|部|条|张|本|件|倍|遍|趟|份|人|周|星期|套|篇|首|句|步|颗|棵|把|双|碗|杯|瓶|盒|年(?!级|\\d)"
NUMBERED = "单元|年级|班|室|级|队|组|区"
CODES = "邮编|密码|号码|账号|验证码|QQ号?|代码|学号|工号|编号|卡号|房间|航班|车牌"  # what follows is spelt


def sub(pattern: str, replacement, text: str) -> str:
    return re.sub(pattern, replacement, text)


def numbers_zh(text: str) -> str:
    """Digits, units and symbols as Chinese words."""
    text = text.replace("〇", "零")
    if re.search(r"\d", text):
        for rule in (plain_numbers, telephones, dates, powers, ranges, money, signs, measures):
            text = rule(text)
    text = relations(text)
    if re.search(r"\d", text):
        text = re.sub(rf"[^，。！？；、,!?;\n]{{1,{CLAUSE}}}", clause, text)
    return re.sub(r"\d+", lambda m: integer_zh(m[0]), text)


def clause(match: re.Match) -> str:
    """A clause as wetext reads it, spaces at its ends kept."""
    text = match[0]
    if not re.search(r"\d", text):
        return text
    said = read(text.strip(), "zh")
    if said is None:
        return text
    return text[: len(text) - len(text.lstrip())] + said + text[len(text.rstrip()) :]


def plain_numbers(text: str) -> str:
    """Very long numbers spelt, thousands' commas away, .5 as 0.5, a colon of Chinese width between digits as a colon."""
    text = sub(r"\d{16,}", lambda m: digits_zh(m[0]), text)
    text = sub(r"(?<![\d.,])\d{1,3}(?:,\d{3}){1,4}(?!\d|,\d)", lambda m: m[0].replace(",", ""), text)
    text = sub(r"(?<=\d)：(?=\d)", ":", text)
    text = sub(r"(?<![\w.])\.(?=\d)|(?<=[\u4e00-\u9fff])\.(?=\d)", "0.", text)
    text = sub(
        rf"{START}\d{{1,15}}(?:\.\d{{1,15}}){{3,9}}(?!\d)",
        lambda m: "点".join(map(digits_zh, m[0].split("."))),
        text,
    )
    version = rf"{START}(?:(?<=[vV])|(?!(?:19|20)\d\d\.))\d{{1,4}}(?:\.\d{{1,4}}){{2}}(?![\d.])"
    text = sub(version, lambda m: "点".join(map(integer_zh, m[0].split("."))), text)
    return sub(r"#(?=\d)|\b[Nn][Oo]\.? ?(?=\d)", "第", text)


def telephones(text: str) -> str:
    """Numbers with separators are spelt."""
    number = r"\+\d{1,4}[ -]?\d{2,12}(?:[ -]\d{2,8}){0,5}|0\d{2,3}-\d{7,8}|[48]00-\d{3,4}-\d{3,4}|1\d{2}[ -]\d{4}[ -]\d{4}|1\d{10}"

    def say(match: re.Match) -> str:
        return ("加" if match[0][0] == "+" else "") + digits_zh(match[0])

    text = sub(rf"(?<![\w.+-])(?:{number})(?![\d-])|(?<=[\u4e00-\u9fff])(?:{number})(?![\d-])", say, text)
    text = sub(
        rf"({CODES})([:：是为]? ?)(\d{{3,15}})(?![\d.元个块])", lambda m: m[1] + m[2] + digits_zh(m[3]), text
    )
    text = sub(r"(?<![\d.])(\d{3,4})(?=室|房间)", lambda m: digits_zh(m[1]), text)
    together = (
        r"(?<=[拨打叫电话])\d{3,6}(?:(?:或者|或|和|、|以及)\d{3,6}){1,4}(?![\d.年月日个元块人次分通天年])"
    )
    text = sub(together, lambda m: sub(r"\d{3,6}", lambda n: digits_zh(n[0]), m[0]), text)
    text = sub(r"(?<=[A-Za-z])\d{3,8}(?![\d.A-Za-z])", lambda m: digits_zh(m[0]), text)  # abc123, CA1831
    called = r"(?<=[拨打叫电话])(\d{3,6})(?![\d.年月日个元块人次分通天年])"
    return sub(called, lambda m: digits_zh(m[1]), text)


def dates(text: str) -> str:
    """Years digit by digit, months and days as numbers (wetext reads 2月2日 as 二月两日)."""

    def say(match: re.Match) -> str:
        year, month, day = match[1], int(match[3]), int(match[4])
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return match[0]
        return f"{digits_zh(year)}年{integer_zh(str(month))}月{integer_zh(str(day))}日"

    text = sub(r"(?<![\d.-])(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?![\d/-]|\.\d)T?", say, text)
    text = sub(
        r"(?<!\d)(\d{4})[-–~—至到](\d{4})(?=年)", lambda m: f"{digits_zh(m[1])}到{digits_zh(m[2])}", text
    )
    text = sub(
        r"(?<![\d.])([12]\d{3})(?=年)(?!年[前后内来多]?(?:时间|之久))", lambda m: digits_zh(m[1]), text
    )
    text = sub(
        r"(?<![\d.第])([5-9]\d)(?=年(?:出生|生|毕业|春|夏|秋|冬|的|\d{1,2}月))(?<!公元\d\d)",
        lambda m: digits_zh(m[1]),
        text,
    )
    text = sub(
        r"(?<!\d)(0?[1-9]|1[0-2])月(0?[1-9]|[12]\d|3[01])(?=[日号])",
        lambda m: f"{integer_zh(m[1].lstrip('0'))}月{integer_zh(m[2].lstrip('0'))}",
        text,
    )
    half = r"(?<![\d.:])(\d{1,2})(?::([0-5]\d))? ?([AaPp])\.?[Mm](?![A-Za-z])\.?"  # 2:30pm
    text = sub(
        half,
        lambda m: f"{'上午' if m[3] in 'Aa' else '下午'}{m[1]}点" + (f"{integer_zh(m[2])}分" if m[2] else ""),
        text,
    )
    text = sub(r"(?<![\d.:第])2(?=点(?!\d))", "两", text)
    return sub(r"(?<![\d.])(0?[1-9]|1[0-2])(?=月(?!亮))", lambda m: integer_zh(m[1].lstrip("0")), text)


def powers(text: str) -> str:
    """6.02e23, 1.5×10^8, 10^-3, x^2; the ^ comes from superscripts too."""

    def power(match: re.Match) -> str:
        base, sign, exponent = match[1], "负" if match[2] == "-" else "", match[3]
        if not base.isdecimal() and not sign and exponent in "23":
            return f"{base}的{'平方' if exponent == '2' else '立方'}"
        return f"{base}的{sign}{integer_zh(exponent)}次方"

    text = sub(rf"(?<![A-Za-z\d.])({N})[eE]([+-]?)(\d{{1,3}})(?![A-Za-z\d.])", r"\1乘10^\2\3", text)
    text = sub(r"(?<=\d) ?[×xX*·] ?(?=10\^[-+]?\d)", "乘", text)
    squares = r"(?<=\d) ?((?:kg/)?[ckm]?m\^[23]|m/s\^2)(?![A-Za-z\d])"  # 20 m^2 is a unit, not a power
    text = sub(squares, lambda m: UNITS.get(m[1], m[1]), text)
    return sub(r"(\d{1,15}|[A-Za-z])\^\(?([+-]?)(\d{1,15})\)?", power, text)


def ranges(text: str) -> str:
    """10-15 is a range (wetext takes it for October 15th), 2-1 before a victory a score, 7-2=5 a difference."""
    text = sub(rf"(?<=\d)[-–](?={N} ?=)", "减", text)
    text = sub(
        rf"{START}(\d{{1,3}}) ?[-–:] ?(\d{{1,3}})(?= ?(?:{WON}))",
        lambda m: f"{integer_zh(m[1])}比{integer_zh(m[2])}",
        text,
    )
    text = sub(
        r"(?<=比分)(.{0,2}?)(\d{1,3}) ?[-–:] ?(\d{1,3})(?!\d)",
        lambda m: f"{m[1]}{integer_zh(m[2])}比{integer_zh(m[3])}",
        text,
    )
    text = sub(
        rf"{START}({N}) ?[-–~—] ?({N}) ?%", lambda m: f"百分之{number_zh(m[1])}到{number_zh(m[2])}", text
    )
    return sub(
        r"(?<=\d)( ?(?:%|°C|℃|[A-Za-z]{1,3}|[个天元米人年月日号点岁次]))? ?[-–~—] ?(?=[$£€¥]?\d)",
        r"\1到",
        text,
    )


def money(text: str) -> str:
    """The currency stands before or after the number, ranges and scales between them."""
    symbols = "|".join(map(re.escape, (c for c in CURRENCIES if not c.isalpha())))
    codes = "|".join(c for c in CURRENCIES if c.isalpha())
    number = rf"{N}(?:到(?:{symbols})?{N})?"

    def say(amount: str, unit: str) -> str:
        return re.sub(symbols, "", amount) + CURRENCIES[unit]

    text = sub(
        rf"({symbols}|(?<![A-Za-z])(?:{codes})) ?({number} ?[百千万亿]{{0,2}})(?:元(?=\D|$))?",
        lambda m: say(m[2], m[1]),
        text,
    )
    return sub(
        rf"{START}({N} ?[百千万亿]{{0,2}}) ?({symbols}|(?:{codes})(?![A-Za-z]))",
        lambda m: say(m[1], m[2]),
        text,
    )


def signs(text: str) -> str:
    """A sign at the beginning of a number, before its percent too: -3.5% is 负百分之三点五."""
    text = sub(r"(?<![\w.)\]%°])[-–−] ?(?=\d)|(?<=[\u4e00-\u9fff])[-–−](?=\d)", "负", text)
    text = sub(r"(?<=[A-Za-z])-(?=\d)", " ", text)  # COVID-19
    text = sub(r"(?<![\w.)\]%°])\+(?=\d)|(?<=[\u4e00-\u9fff])\+(?=\d)", "加", text)
    text = sub(r"(?<![\w~])~ ?(?=\d)|(?<=[\u4e00-\u9fff])~(?=\d)", "约", text)
    return sub(r"(?<=\d) ?\* ?(?=\d)|(?<=\d) ?[xX] ?(?=\d)", "乘", text)


def measures(text: str) -> str:
    """Percent, fractions, units and ordinals."""
    text = sub(rf"{START}({N}) ?%", lambda m: f"百分之{number_zh(m[1])}", text)
    text = sub(rf"{START}({N}) ?‰", lambda m: f"千分之{number_zh(m[1])}", text)
    text = sub(rf"{START}({N}) ?°F", lambda m: f"{number_zh(m[1])}华氏度", text)
    text = sub(r"公里/小?时|km/h|KM/H", "公里每小时", text)
    text = sub(
        r"(?<=[\u4e00-\u9fff])/(?=(?:秒|分钟|小时|天|日|周|月|年|人|次|个|斤|公斤|米|升)(?![\u4e00-\u9fff]))",
        "每",
        text,
    )
    mixed = r"(?<![\d/.])(?:(\d{1,4})(?: |又))?(\d{1,6})/(\d{1,6})(?![\d/]|\.\d)"

    def parts(match: re.Match) -> str:
        whole = integer_zh(match[1]) + "又" if match[1] else ""
        return f"{whole}{integer_zh(match[3])}分之{integer_zh(match[2])}"

    text = sub(mixed, parts, text)
    text = sub(rf"(?<=[\d方]) ?({UNIT})(?![A-Za-z^/\d])", lambda m: UNITS[m[1]], text)
    text = sub(r"第 ?(\d{1,15})(?!\.\d)", lambda m: "第" + integer_zh(m[1]), text)
    text = sub(rf"(?<![\w.:/-])2 ?(?={COUNTED})|(?<=[\u4e00-\u9fff])(?<!第)2 ?(?={COUNTED})", "两", text)
    text = sub(rf"(?<!\d)2 ?(?={NUMBERED})", "二", text)
    text = sub(
        r"(?<![\d.])(11[0249]|12[02]|911)(?![\d.:/])", lambda m: integer_zh(m[0]), text
    )  # spelt by wetext wherever they stand
    text = sub(
        r"(?<=[A-Za-z])\d{1,15}(?=[A-Za-z])", lambda m: f" {integer_zh(m[0])} ", text
    )  # B2B; wetext says "to"
    text = sub(
        r"(?<!\d)0:([0-5]\d)(?![\d:])", lambda m: f"零点{integer_zh(m[1])}分", text
    )  # a ratio to wetext
    text = sub(
        r"(?<![\d.:/-])0\d{1,14}(?![\d.:/-])", lambda m: digits_zh(m[0]), text
    )  # 0012 is 零零十二 to wetext
    text = sub(
        rf"{START}({N}) ?(?=[A-Za-z])(?!(?:{KNOWN})(?![A-Za-z]))", lambda m: f"{number_zh(m[1])} ", text
    )
    decimals = (
        rf"{START}(?:\d{{1,15}})\.\d{{1,15}}(?![\d.:/A-Za-z°]| ?[A-Za-z°])"  # 11.11 is a date to wetext
    )
    return sub(decimals, lambda m: number_zh(m[0]), text)


def relations(text: str) -> str:
    """Comparison and arithmetic signs."""
    text = sub(r"<?(?:-|=){1,3}>|<-{1,3}(?!\d)", "，", text)
    for symbol, word in RELATIONS.items():
        text = text.replace(symbol, word)
    text = sub(r"(?<!约)≈(?=.)", "约", text).replace("≈", "")
    text = sub(r"(?<=[\w)]) ?< ?(?=[\w(.负])|<(?=[\d.])", "小于", text)
    text = sub(r"(?<=[\w)]) ?> ?(?=[\w(.负])|>(?= ?\d)", "大于", text)
    return sub(r"(?<=\d)-(?=\d)", "减", text)
