"""English abbreviations, initials and roman numerals as words: Dr., Inc., J. R. R. Tolkien, Henry VIII.

A dot that belongs to a shortened word ends no sentence; where it may do both, the next word decides.
"""

import re
from collections.abc import Callable

from omnilib.spoken_numbers import words

ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor", "st": "saint", "vs": "versus",
    "e.g": "for example", "i.e": "that is", "jr": "junior", "sr": "senior", "no": "number",
    "approx": "approximately", "mt": "mount", "dept": "department", "gen": "general", "capt": "captain", "sgt": "sergeant",
    "lt": "lieutenant", "col": "colonel", "rev": "reverend", "gov": "governor", "sen": "senator", "vol": "volume", "fig": "figure",
    "incl": "including", "excl": "excluding", "p": "page", "pp": "pages", "ext": "extension", "apt": "apartment",
    "est": "established", "tel": "telephone", "ave": "avenue", "ca": "circa", "nos": "numbers",
}  # fmt: skip
FIRMS = {
    "Inc": "incorporated",
    "Ltd": "limited",
    "Corp": "corporation",
    "Co": "company",
}  # a sentence may end with them
MAY_END = ("jr", "sr")  # before a capital the dot of these also ends the sentence
BEFORE_NUMBER = ("no", "vol", "fig", "p", "pp", "ext", "apt", "est", "tel", "ca", "nos")  # words otherwise
ROADS = {"st": "street", "ave": "avenue", "rd": "road", "blvd": "boulevard"}  # after a name

FILES = (
    "(?:txt|py|md|pdf|jpe?g|png|gif|mp3|mp4|wav|flac|json|ya?ml|csv|html?|js|css|zip|exe|docx?|xlsx?|pptx?)"
)
# Roman numerals are read after these words and names only: "I", "X" and "MIX" are words too.
PARTS = "Chapter|Part|Act|Scene|Book|Volume|Section|Phase|Type|Class|Figure|Table|Appendix|Title|World War|Stage|Grade|Article|Psalm|Level|Super Bowl"
RULERS = (
    "Henry|Louis|Charles|George|Edward|Richard|William|James|Elizabeth|Mary|Philip|John Paul|Pius|Benedict|Leo|Gregory|Innocent|Clement|"
    "Alexander|Nicholas|Catherine|Frederick|Napoleon|Otto|Ferdinand|Francis|Alfonso|Rameses|Ramses|Thutmose|Ptolemy|Queen|King|Pope|Urban"
)
ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
BEFORE_LETTER = (  # a dot after the letter ends the sentence
    "Plan|Vitamin|Group|Type|Class|Grade|Part|Section|Option|Hepatitis|Appendix|Table|Team|Room|Gate|Figure|Exhibit|Zone|Wing|Block|"
    "Hall|Terminal|Level|Phase|Series|Model|Unit|Point|Side|Question|Answer|Chapter|Category|Schedule|Form|Influenza|Generation|Radio"
)
BEGINNINGS = (  # of sentences
    "The|Then|This|That|These|Those|They|There|Their|She|His|Her|Its|You|Your|Our|Who|What|When|Where|Why|How|But|And|For|Not|"
    "Now|After|Before|Because|While|With|Without|From|Here|Let|Please|Yes|Maybe|Also|Only|Once|One|Two|All|Some|Any|Every|Each|Both|"
    "Did|Does|Can|Could|Should|Would|Will|Are|Was|Were|Have|Has|Had|Just|Still|Even|Another|Later|However|Therefore|Finally|Next"
)


def sub(pattern: str, replacement: str | Callable[[re.Match], str], text: str, flags: int = 0) -> str:
    return re.sub(pattern, replacement, text, flags=flags)


def abbreviation(match: re.Match) -> str:
    name, following = match[1].lower(), match[2]
    if name in BEFORE_NUMBER and not following.isdecimal():  # "No. The answer is no."
        return match[0]
    if match[1] == "est":
        return "estimated "
    dot = "." if name in MAY_END and following.isupper() else ""
    return f"{ABBREVIATIONS[name]}{dot} "


def sentence_end(match: re.Match) -> str:
    """The dot of an abbreviation, where it also ends the sentence."""
    return (
        "."
        if match[0].endswith(".") and re.match(r"\s+[A-Z]|\s*$", match.string[match.end() : match.end() + 9])
        else ""
    )


def abbreviations(text: str) -> str:
    """Titles, streets and dotted capitals."""
    text = sub(
        rf"\b([A-Z][a-z]{{1,30}}) ({'|'.join(ROADS)})\.(?= [a-z]|\s*$|,)",
        lambda m: f"{m[1]} {ROADS[m[2].lower()]}",
        text,
        re.I,
    )
    names = "|".join(map(re.escape, ABBREVIATIONS))
    text = sub(rf"\b({names})\. ?(?=(\w|&))", abbreviation, text, re.I)
    text = sub(r"\b(e\.g|i\.e)\.?(?=,)", lambda m: ABBREVIATIONS[m[1].lower()], text, re.I)
    firms = "|".join(FIRMS)
    text = sub(rf"(?<=[\w&] )({firms})\.", lambda m: FIRMS[m[1]] + sentence_end(m), text)
    text = sub(r"\bRs\.? ?(?=\d)", "₹", text)
    text = sub(r"\bw/(o\b)?(?=o?\s| ?\w{2})", lambda m: "without" if m[1] else "with ", text)
    text = initials(text)
    text = sub(r"\betc\b\.?", lambda m: "et cetera" + sentence_end(m), text)
    text = sub(r"\bPh\.? ?D\b\.?", "P h D", text)
    text = sub(rf"(?<=\w)\.(?={FILES}\b)", " dot ", text)
    return sub(r"(?<![\w.])(?:[A-Z]\.){2,6}(?!\w)", lambda m: " ".join(m[0].replace(".", "")) + " ", text)


def initials(text: str) -> str:
    """J. R. R. Tolkien and George W. Bush: dots that end no sentence; "Plan B. Then ..." keeps its dot."""
    text = sub(r"\b(?:[A-Z]\. ){2,5}(?=[A-Z][a-z])", lambda m: m[0].replace(".", ""), text)
    name = rf"\b(?!(?:{BEFORE_LETTER})\b)([A-Z][a-z]{{2,20}} [A-HJ-Z])\.(?= (?!(?:{BEGINNINGS})\b)[A-Z][a-z]{{2}})"
    return sub(name, r"\1", text)


# ---- roman numerals --------------------------------------------------------------------------------------------------


def roman(numeral: str) -> int | None:
    """ "XIV" -> 14; None where it is not the way a Roman would write the number."""
    values = [ROMAN_VALUES[c] for c in numeral]
    total = sum(-v if v < max(values[i + 1 :], default=0) else v for i, v in enumerate(values))
    written, rest = "", total
    for value, letters in (
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ):
        written += letters * (rest // value)
        rest %= value
    return total if written == numeral else None


def romans(text: str) -> str:
    def part(match: re.Match) -> str:
        value = roman(match[2])
        return f"{match[1]} {words(str(value))}" if value else match[0]

    def ruler(match: re.Match) -> str:
        value = roman(match[2])
        return f"{match[1]} the {words(str(value), 'ordinal')}" if value else match[0]

    single = r"(?:[IVXLC]{2,9}|[VX]|I(?=[.,:;!?)]|\s*$))(?!\w)"
    text = sub(r"\bWW(I{1,3})\b", r"World War \1", text)
    text = sub(rf"\b({PARTS}) ({single})", part, text)
    text = sub(r"\b(World War) (I)\b(?!')", part, text)
    return sub(rf"\b((?:{RULERS})(?: [A-Z][a-z]{{1,20}})?) ({single})", ruler, text)
