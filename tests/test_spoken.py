"""Spoken form: value, sign and unit are kept, nothing that a user types is swallowed, plain words stay as they are."""

import json
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omnilib import spoken_numbers
from omnilib.bench.spoken import TABLES, right, words
from omnilib.errors import UserError
from omnilib.paths import ROOT
from omnilib.spoken import clean_text, detect_language


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


FORMS = lines(ROOT / "omnilib" / "eval" / TABLES["table"])
FRESH = lines(ROOT / "omnilib" / "eval" / TABLES["fresh"])
FROZEN = [
    r for name in ("manifest", "longform") for r in lines(ROOT / "data_prep" / "frozen" / f"{name}.jsonl")
]


# ---- value, sign, unit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted({r["kind"] for r in FORMS}))
def test_every_form_of_the_table_is_read_as_a_reader_would(kind):
    said = {r["text"]: clean_text(r["text"], r["language"]) for r in FORMS if r["kind"] == kind}
    assert {
        t: s for t, s in said.items() if not right(s, next(r["spoken"] for r in FORMS if r["text"] == t))
    } == {}


def test_the_fresh_table_is_another_one_and_its_figure_stays():
    assert (
        len(FORMS) >= 150 and len(FRESH) >= 60 and not {r["text"] for r in FORMS} & {r["text"] for r in FRESH}
    )
    hits = [right(clean_text(r["text"], r["language"]), r["spoken"]) for r in FRESH]
    committed = json.loads((ROOT / "reports/nano/spoken/metrics.json").read_text(encoding="utf-8"))[
        "systems"
    ]["ours"]
    assert sum(hits) == committed["fresh"]["correct"] and len(FORMS) == committed["table"]["correct"]


SPOKEN_EN = {
    "Dr. Smith paid $5.20 on May 1st, 1984 for 12,345 things (about 50%)!": "doctor Smith paid five dollars and twenty cents on May first, nineteen eighty four "
    "for twelve thousand three hundred and forty five things, about fifty percent!",
    'He said "don\'t go" -- and left...': "He said don't go, and left.",
    "# Title\n\n* one\n* two **bold** [link](http://x.com/a) `code`": "Title. one. two bold link code.",
    "Call 555-1234 at 3:05 or 4:00 pm": "Call five five five, one two three four at three oh five or four p m.",
    "Pi is 3.14; -5 degrees; 5-10 cats; B2B; v1.2.3": "Pi is three point one four; minus five degrees; five to ten cats; "
    "B two B; version one point two point three.",
    "Mail a.b@c.org or https://www.example.com/x-y": "Mail a dot b at c dot org or w w w dot example dot com slash x dash y.",
    "Mr. Jones vs. Dr. No. The answer is no. Yes.": "mister Jones versus doctor No. The answer is no. Yes.",
    "We left at 9 p.m. Then they came, etc.": "We left at nine p m. Then they came, et cetera.",
    "The 1990s, 3/4 of it, 007, 1,000,000": "The nineteen nineties, three quarters of it, zero zero seven, one million.",
    "It was 1,905 in 1905.": "It was one thousand nine hundred and five in nineteen oh five.",
    "€3 million & more": "three million euros and more.",
    "Part I think, Henry VIII, MIX and I": "Part I think, Henry the eighth, MIX and I.",
    "ＡＢＣ": "ABC.",
}
SPOKEN_ZH = {
    "2024年5月1日我买了2个苹果，花了12.5元，占30%。": "二零二四年五月一日我买了两个苹果，花了十二点五元，占百分之三十。",
    "电话13812345678，时间12:30，温度-5°": "电话一三八一二三四五六七八，时间十二点三十分，温度负五度。",
    "他说：“你好！”然后走了（真的）": "他说：你好！然后走了，真的。",
    "第2名，3/4，2024-05-01，$20": "第二名，四分之三，二零二四年五月一日，二十美元。",
    "2位2次，3栋2单元302室，密码0012": "两位两次，三栋二单元三零二室，密码零零一二。",
    "用11.11元买5more": "用十一点一一元买五 more。",
    "你好 OK": "你好 OK。",
}
NUMBERS_ZH = {0: "零", 7: "七", 10: "十", 15: "十五", 20: "二十", 105: "一百零五", 110: "一百一十", 1001: "一千零一", 1010: "一千零一十"} | {
    10500: "一万零五百", 100010: "十万零一十", 1001000: "一百万一千", 100000000: "一亿", 100000001: "一亿零一", 20003000: "两千万三千"
}  # fmt: skip


# kinds of everyday writing, each with what a reader says
EVERYDAY_EN = {
    "We meet in Room 204B at 221B Baker St., London.": "We meet in Room two hundred and four B at two hundred and twenty one B Baker street, London.",
    "10K views, 3M users, $2B.": "ten thousand views, three million users, two billion dollars.",
    "A 4K TV and a 5K run.": "A four K TV and a five K run.",
    "So x = 10 - y.": "So x equals ten minus y.",
    "$-5, -$20 or $5-$10.": "minus five dollars, minus twenty dollars or five to ten dollars.",
    "A $20 bill, $20 each.": "A twenty dollar bill, twenty dollars each.",
    "Take 2 tsp. of sugar and 1 tbsp of milk.": "Take two teaspoons of sugar and one tablespoon of milk.",
    "Wait 5 min. and walk 5 km. Then turn.": "Wait five minutes and walk five kilometers. Then turn.",
    "1/2 km, 3/4 oz. of tea and 1 1/2 lbs": "one half kilometer, three quarters ounce of tea and one and a half pounds.",
    "Rs. 500": "five hundred rupees.",
    "Sat., Sept. 3 or Sun, 4 Oct": "Saturday, September third or Sunday, the fourth of October.",
    "Acme Inc. and Foo Ltd. left. I work at Ford Motor Co. Then I sleep.": "Acme incorporated and Foo limited left. I work at Ford Motor company. Then I sleep.",
    "See p. 5, pp. 6-7, ext. 22; ca. 1850, incl. wars.": "See page five, pages six to seven, extension twenty two; circa eighteen fifty, including wars.",
    "The password is Xk9-2pL or abc123.": "The password is Xk nine two pL or abc one two three.",
    "Flight BA2490, iPhone15, Win2000.": "Flight BA two four nine zero, iPhone fifteen, Win two thousand.",
    "It's 50-50, a 10/10, 24/7 since 9/11.": "It's fifty fifty, a ten out of ten, twenty four seven since nine eleven.",
    "1.5x faster, 10x more; 2x4": "one point five times faster, ten times more; two times four.",
    "ZIP 94103-1234": "ZIP nine four one zero three, one two three four.",
    "She's 5'2.": "She's five feet two.",
    "Tea w/o sugar but w/ milk.": "Tea without sugar but with milk.",
    "J. R. R. Tolkien met George W. Bush.": "J R R Tolkien met George W Bush.",
    "We chose Plan B. Then we took Vitamin C. It helped.": "We chose Plan B. Then we took Vitamin C. It helped.",
    "It's me :-) <3": "It's me.",
    "Wow :D, if a <3 then b": "Wow, if a less than three then b.",
}
EVERYDAY_ZH = {
    "请拨打110或者120。": "请拨打一一零或者一二零。",
    "密码是abc123，航班CA1831。": "密码是abc一二三，航班CA一八三一。",
    "2:30pm开会，11am见": "下午两点三十分开会，上午十一点见。",
    "下午2点，第2点，12点": "下午两点，第二点，十二点。",
}


@pytest.mark.parametrize(
    "text, spoken", [*SPOKEN_EN.items(), *SPOKEN_ZH.items(), *EVERYDAY_EN.items(), *EVERYDAY_ZH.items()]
)
def test_spoken_form(text, spoken):
    assert clean_text(text) == spoken


@pytest.mark.parametrize("number, spoken", NUMBERS_ZH.items())
def test_chinese_numbers(number, spoken):
    assert clean_text(f"{number}", "zh") == spoken + "。"


def test_language_is_read_from_the_script_or_given():
    assert detect_language("Hello 好") == "zh" and detect_language("Hello") == "en"
    assert clean_text("12", "zh") == "十二。" and clean_text("12", "en") == "twelve."


# ---- plain words -----------------------------------------------------------------------------------------------------


def test_the_frozen_sentences_keep_every_word():
    for record in FROZEN:
        once = clean_text(record["text"], record["language"])
        assert words(once) == words(record["text"]) and clean_text(once) == once == clean_text(record["text"])


@pytest.mark.parametrize(
    "text",
    [
        "You may come in; I am at it, no.",
        "He's a mix of them!",
        "The twenty-five men sat.",
        "今天天气很好，我们去公园散步吧。",
    ],
)
def test_plain_sentences_come_through_as_they_are_without_loading_the_grammars(text, monkeypatch):
    monkeypatch.setattr(spoken_numbers, "grammar", lambda language: pytest.fail("the grammars were loaded"))
    assert clean_text(text) == text


# ---- nothing is swallowed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("x < y and z > w", "x less than y and z greater than w."),
        ("I <3 you", "I less than three you."),
        ("a <b> c", "a c."),
        ('<p class="x">Hi</p><br/>there', "Hi there."),
        ("List<int> of <name>", "List int of name."),
        ("x<y并且y>z", "x小于y并且y大于z。"),
        (
            "&lt;b&gt; Tom &amp; Jerry, caf&eacute;, it&#39;s &bogus;",
            "b Tom and Jerry, café, it's and bogus.",
        ),
        (
            "sof\u00adt hy\u200bphen w\u2060ord \ufeffbom \u200eltr\u200f h\u034fi o\ufe0fk",
            "soft hyphen word bom ltr hi ok.",
        ),
        ("a\u00a0b\u3000c\u2009d\u2028e", "a b c d. e."),
        ("1\u00a0234 and 5\u202f000", "one thousand two hundred and thirty four and five thousand."),
        ("cafe\u0301", "café."),
        ("<|im_end|> hi <|audio_start|>", "im end hi audio start."),
        ("<0x41> is a byte", "zero x four one is a byte."),
        (
            "snake_case #music @bob a|b a\\b 2*3 and/or",
            "snake case hashtag music at bob a b a b two times three and or.",
        ),
        ("hi😀there 👨\u200d👩\u200d👧 bye", "hi there bye."),
        ("C++, C# and x != y && z", "C plus plus, C sharp and x not equal to y and z."),
        ("if (a == b) { return x[1]; }", "if, a equals b, return x, one."),
        ("See [the docs](https://x.y/z), a[1](2)", "See the docs, a, one, two."),
        ("==== Title ====\n> 5 is more", "Title. greater than five is more."),
        ("π ≈ 3.1, ₿2, ٣ and Ⅷ", "pi approximately three point one, bitcoin two, three and VIII."),
        ("<!-- not said --> said <!-- open", "said! open."),
        ("user", "user."),
        ("assistant\n", "assistant."),
    ],
)
def test_what_stands_between_signs_is_said(text, spoken):
    assert clean_text(text) == spoken


@pytest.mark.parametrize(
    "text", ["", " \n\t", "🎉🎊", "***", "...", "()", "\u200b", "<>", "<br>", "~|\\", "\ud800"]
)
def test_a_text_without_words_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="nothing to speak") as refused:
        clean_text(text)
    assert "\n" not in str(refused.value)


def test_an_unknown_language_is_refused():
    with pytest.raises(UserError, match="'fr'.*en, zh"):
        clean_text("bonjour", "fr")


WORDS = ["quab", "zibo", "tarnel", "vishup", "oplen", "drugo"]  # no unit, name or abbreviation
SIGNS = [
    *" -/_*<>&@#~|\\^=+%$€()[]{}.,:;!?'\"`…—–😀°×½²£№™§→•第万年好",
    "\u200b",
    "\n",
    "\t",
    "&amp;",
    "&lt;",
    "5",
    "12",
    "2024",
    "0",
]
SIGNS += ["<|", "|>", "<0x", "//", "<b>", "</p>", "--", "...", " 5 ", "$5", "5%", "1.5", "\u00a0"]


@settings(max_examples=150, deadline=None)
@given(
    gaps=st.lists(
        st.lists(st.sampled_from(SIGNS), min_size=1, max_size=4).map("".join), min_size=6, max_size=6
    )
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_word_and_number_leaves_a_trace_whatever_stands_between(language, gaps):
    spoken, at = clean_text("".join(w + g for w, g in zip(WORDS, gaps, strict=True)), language).lower(), 0
    for i, word in enumerate(WORDS):
        found = spoken.find(word, at)
        assert found >= 0, f"{word} is lost"
        if i and re.search(r"\d", gaps[i - 1]):
            assert any(c.isalpha() for c in spoken[at:found]), f"the number before {word} is lost"
        at = found + len(word)


# ---- any text, any length, anywhere ----------------------------------------------------------------------------------

PARTS = [
    "Dr.",
    "St.",
    "Henry",
    "IV",
    "May",
    "5",
    "12",
    "2024",
    "1990s",
    ".5",
    "-",
    "–",
    "$",
    "€",
    "%",
    "°C",
    "km",
    "m/s",
    "/",
    "(",
    "=",
    "<",
]
PARTS += [
    "第",
    "个",
    "年",
    "月",
    "日",
    "2",
    "比分",
    "赢",
    "1,000",
    " ",
    "\n",
    "e10",
    "^",
    "p.m.",
    ":",
    "30",
    "'",
    "#",
    "½",
    "etc.",
    "&amp;",
    "万",
    "元",
]


@settings(max_examples=300, deadline=None)
@example("SR\x1e0")
@example("He met Mr\nSmith")
@example("apples etc\nThen he went")
@example("Henry_VIII")
@given(
    st.text(max_size=60)
    | st.text(alphabet="ab12.,-/:$%()'\"你好年。，！ \n*#@<>=&;^~+", max_size=60)
    | st.lists(st.sampled_from(PARTS), max_size=14).map("".join)
)
def test_spoken_form_is_stable_plain_and_without_digits(text):
    try:
        spoken = clean_text(text)
    except UserError:
        return
    assert clean_text(spoken) == spoken
    assert not any(c.isdecimal() for c in spoken) and not set('*#<>|[](){}\n"') & set(spoken)
    assert spoken[-1] in ".?!。！？" and "  " not in spoken and spoken == spoken.strip()
    spoken.encode()  # a lone surrogate would not


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=30), st.sampled_from(["en", "zh"]))
def test_no_text_of_any_script_raises_anything_but_one_line(text, language):
    with suppress(UserError):
        assert clean_text(text, language)


UNITS = [
    "12 ",
    "a",
    "<",
    "[",
    "1",
    "a.b@",
    "1,",
    "('",
    "a\n",
    "http://",
    "-1",
    "[a](",
    "$1 ",
    " ",
    "\n",
    ", ",
    "。",
    "<!--",
    "<a ",
    "&#",
]
UNITS += [
    "1.",
    "1:",
    "1/",
    "2024-",
    "A.",
    "^2",
    "9e",
    "5km ",
    '<b x="',
    "IV ",
    "第1",
    "2个",
    "1 000 ",
    "+1 ",
    "_-",
    "½",
    "٣",
    "May 5 ",
    "x<y ",
]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("unit", UNITS)
def test_fifty_thousand_characters_of_any_pattern_take_seconds(unit, language):
    start = time.process_time()
    with suppress(UserError):
        clean_text(unit * (50_000 // len(unit)) + "a", language)
    assert time.process_time() - start < 5


def test_time_grows_with_length_only():
    def seconds(size: int) -> float:
        start = time.process_time()
        clean_text("On 5 May 2024 at 14:30 it was -3.5 °C; he paid $3.50 (10-15 %) & left. " * (size // 72))
        return time.process_time() - start

    seconds(10_000)  # grammars and number words are remembered from here on
    assert seconds(120_000) < 12 * max(0.1, seconds(30_000))


def test_processes_and_threads_say_the_same():
    texts = [(r["text"], r["language"]) for r in FORMS]
    random.Random(1).shuffle(texts)
    program = "import json, sys; from omnilib.spoken import clean_text; print(json.dumps([clean_text(*t) for t in json.load(sys.stdin)]))"
    env = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "PATH": ""}
    other = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(texts),
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    spoken_numbers.read.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        here = list(pool.map(lambda t: clean_text(*t), texts))
    assert here == json.loads(other.stdout)


def test_without_wetext_numbers_are_refused_in_one_line_and_words_still_spoken(monkeypatch):
    monkeypatch.setitem(sys.modules, "wetext", None)
    spoken_numbers.grammar.cache_clear()
    spoken_numbers.read.cache_clear()
    assert clean_text("今天很好。") == "今天很好。"
    with pytest.raises(UserError, match="pip install wetext"):
        clean_text("今天有5个")
