"""Everyday sentences with open word lists: names, numbers, times, dates, prices, questions, dialogue; English and Mandarin.

A template names its slots in braces; a slot draws from an open list (Faker's names, towns and jobs; WordNet's foods, animals and
things; numbers of any size). The written form is what a user types ("at 7:45", "$12.50"); `omnilib.spoken` reads it out.
The same seed gives the same sentences.
"""

import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from omnilib.errors import MissingTool

WORDNET = Path("/usr/share/wordnet")
KINDS = {
    "05": "animal",
    "06": "thing",
    "13": "food",
    "18": "person",
    "20": "plant",
}  # WordNet's lexicographer files

ENGLISH = """
number|The meeting starts at {time} and ends at {time}.
number|My phone number is {phone}.
number|It costs {price}, but you can have it for {price}.
number|She was born on {date}, {year}.
number|The train to {town} leaves at {time} from platform {small}.
number|There are {big} people in {town}, and {percent} of them are under {age}.
number|Turn left after {big} metres, then take the {ordinal} street on the right.
number|He is {age} years old and {small} feet {small} inches tall.
number|I need {small} {food}s, {small} eggs and {decimal} kilos of {food}.
number|Flight {flight} to {town} has been delayed by {age} minutes.
number|The temperature will fall to {minus} degrees on {day}.
number|In {year}, the company had {big} employees; today it has {big}.
number|Please call me back before {time}, extension {age}.
number|The answer is {decimal}, not {decimal}.
number|Page {big}, chapter {small}, line {age}.
number|We sold {big} tickets on {day} and {big} on {day}.
number|{first} finished {ordinal} in the race, only {decimal} seconds behind.
number|Room {room} is on the {ordinal} floor.
number|Add {big} to {big} and you get {big}.
number|About {percent} of the {animal}s were gone by {year}.
question|What time does the {shop} open on {day}?
question|Could you tell me the way to the {shop}, please?
question|Have you ever been to {town}?
question|Do you want {food} or {food} with your {food}?
question|Who left the {thing} on the {thing}?
question|Why didn't {first} come to work on {day}?
question|How much is {a_thing} like this one?
question|Would you like to meet at {time} in front of the {shop}?
question|Isn't that {first}'s {thing}?
question|How long have you been working as {a_job}?
question|Where did you put my {thing}?
question|When is your birthday, {first}?
question|Can I pay by card, or do you only take cash?
question|Are you sure that {animal}s eat {food}?
question|Which {plant} is this, {first}?
exclamation|What a beautiful {animal}!
exclamation|Watch out for the {thing}!
exclamation|Happy birthday, {first}!
exclamation|I can't believe you bought {a_thing}!
exclamation|Stop it, {first}, that's not funny!
exclamation|Congratulations on your new job as {a_job}!
exclamation|Oh no, I forgot my {thing} at the {shop}!
exclamation|Hurry up, the bus leaves at {time}!
everyday|Hello, my name is {first} {last} and I work at the {shop}.
everyday|I'm {first}, nice to meet you.
everyday|This is {first}, my {relative}; she lives in {town}.
everyday|My {relative} is {a_job} in {town}.
everyday|I have to take my {animal} to the {shop} on {day}.
everyday|Let's have {food} for dinner, I'm tired of {food}.
everyday|The {thing} is broken again, so I called {first} {last}.
everyday|We moved from {town} to {town} in {month}.
everyday|Please put the {thing} back next to the {thing}.
everyday|If it rains on {day}, we'll stay at home and watch a film.
everyday|{first} and {first} are getting married in {month}.
everyday|Sorry I'm late, there was a lot of traffic near {town}.
everyday|I'd like a cup of tea and some {food}, please.
everyday|Don't forget to buy {food}, {food} and a new {thing}.
everyday|The doctor told me to rest until {day}.
everyday|My neighbour's {animal} kept me awake all night.
everyday|Nobody in the office knew how to fix the {thing}.
everyday|She studied in {town} before she became {a_job}.
everyday|They planted {a_plant} behind the {shop}.
everyday|Thank you for the {thing}, it's exactly what I needed.
everyday|Mr. {last} from {town} called while you were out.
everyday|Dear Mrs. {last}, your order has been sent to {town}.
everyday|I usually get up at {time} and go to bed at {time}.
everyday|There's {a_animal} in the garden, come and look.
everyday|Our {relative} taught us how to cook {food} with {food}.
everyday|Every {person} in {town} has heard of {first} {last}.
dialogue|"Where are you going?" asked {first}. "To the {shop}," said {first}.
dialogue|"I don't like {food}," {first} said, "but I'll try it."
dialogue|Hi {first}, how are you? I'm fine, thanks, and you?
dialogue|Is this seat taken? No, please sit down.
dialogue|Could I speak to Dr. {last}? I'm afraid she's out until {time}.
dialogue|"Is it far?" "About {small} kilometres," answered the {person}.
dialogue|What do you do? I'm {a_job}. Really? So is my {relative}!
dialogue|Can I help you? Yes, I'm looking for {a_thing}.
dialogue|"You've lost the {thing}, haven't you?" he asked. "No," I lied.
dialogue|Do you have any {food}? Sorry, we only have {food}.
dialogue|"Wait!" shouted {first}. "You forgot your {thing}!"
dialogue|How was {town}? It was great, but it rained every day.
dialogue|Whose {animal} is that? It belongs to Mr. {last}.
dialogue|When does it start? At {time}, I think, or maybe {time}.
"""

CHINESE = """
number|现在是{time}。
number|这个{thing}多少钱？{price}。
number|我的电话号码是{phone}。
number|他的生日是{date}。
number|{year}年，{name}去了{town}。
number|我们班有{age}个学生，其中{small}个是{town}人。
number|请打开书第{age}页。
number|今天气温是{small}度，明天零下{small}度。
number|从{town}到{town}坐高铁要{small}个小时{age}分钟。
number|百分之{age}的人喜欢吃{food}。
number|房间号是{room}，在{small}楼。
number|这件衣服打{small}折，只要{price}。
number|{name}今年{age}岁，他弟弟{small}岁。
number|我要{small}斤{food}和{small}瓶{drink}。
number|这座城市有{big}人口。
question|请问，{place}怎么走？
question|你想喝{drink}还是{drink}？
question|你去过{town}吗？
question|{name}为什么没来上班？
question|你知道{place}几点关门吗？
question|你喜欢吃{food}吗？
question|我们{day}在{place}见面，好不好？
question|谁把我的{thing}拿走了？
question|你觉得{town}的天气怎么样？
question|能不能帮我买一个{thing}？
exclamation|{name}，生日快乐！
exclamation|这家店的{food}太好吃了！
exclamation|哎呀，我的{thing}丢了！
exclamation|快点儿，要迟到了！
exclamation|{town}真漂亮啊！
everyday|你好，我叫{name}，我在{place}工作。
everyday|我{relative}是{job}，住在{town}。
everyday|我想要一份{food}，谢谢。
everyday|{day}如果下雨，我们就在家看电影。
everyday|{name}和{name}下个月结婚。
everyday|对不起，我来晚了，{place}附近堵车。
everyday|请把{thing}放在桌子上。
everyday|别忘了买{food}和{drink}。
everyday|医生让我多休息，少吃{food}。
everyday|我每天{time}起床，{time}睡觉。
everyday|他以前是{job}，现在是{job}。
everyday|我的{thing}坏了，得去{place}修一下。
everyday|晚上我们一起去{place}吧。
dialogue|你要去哪儿？我去{place}买{thing}。
dialogue|你是做什么工作的？我是{job}。
dialogue|{name}在吗？他刚去{place}了。
dialogue|喂，是{name}吗？我是{name}。
dialogue|这是谁的{thing}？是我{relative}的。
dialogue|你吃饭了吗？吃了，吃的{food}。
"""

SHOPS = (
    "bank, bakery, library, hospital, airport, museum, pharmacy, school, station, supermarket, market, post office, hotel, theatre, "
    "bookshop, cinema, restaurant, garage, gym, university, dentist's, church, café, zoo, stadium, town hall, police station, swimming pool"
)
RELATIVES = "sister brother mother father aunt uncle cousin grandmother grandfather daughter son nephew niece neighbour friend"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
HAN = {
    "town": "北京 上海 广州 深圳 成都 西安 南京 杭州 武汉 重庆 天津 苏州 青岛 大连 厦门 昆明 哈尔滨 拉萨 桂林 长沙 香港 台北 兰州 沈阳",
    "food": "米饭 面条 饺子 包子 牛肉 羊肉 鸡肉 鱼 豆腐 苹果 香蕉 西瓜 葡萄 白菜 土豆 西红柿 鸡蛋 面包 蛋糕 火锅 烤鸭 春卷 月饼 辣椒",
    "drink": "茶 绿茶 红茶 咖啡 牛奶 果汁 啤酒 可乐 矿泉水 豆浆 酸奶 热水",
    "place": "医院 学校 银行 机场 车站 超市 图书馆 博物馆 公园 饭店 电影院 邮局 书店 药店 体育馆 动物园 办公室 警察局 咖啡馆 火车站 大使馆",
    "thing": "手机 电脑 钱包 雨伞 自行车 眼镜 书包 手表 护照 钥匙 照相机 帽子 空调 冰箱 词典 椅子 毛衣 杯子 行李箱 耳机 充电器",
    "job": "医生 护士 老师 司机 律师 厨师 警察 记者 工程师 会计 演员 歌手 画家 翻译 农民 服务员 科学家 导游 设计师 程序员 售货员",
    "relative": "爸爸 妈妈 哥哥 姐姐 弟弟 妹妹 爷爷 奶奶 叔叔 阿姨 朋友 同学 邻居 女儿 儿子",
    "day": "星期一 星期二 星期三 星期四 星期五 星期六 星期天 周末 明天 后天 今天晚上",
}  # fmt: skip
SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文"  # fmt: skip
GIVEN = "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀英霞平刚桂文辉玲华建国红梅玉兰春燕云飞雪琳佳怡子涵浩宇轩思远晓东海波志鹏婷欣然梦瑶嘉诚雨晨"


@lru_cache(maxsize=1)
def wordnet_words() -> dict[str, list[str]]:
    """Foods, animals, things, persons and plants of WordNet: one word each, those first that its tagged texts use.

    Raises:
        MissingTool: WordNet is not installed.
    """
    if not (WORDNET / "data.noun").is_file():
        raise MissingTool("WordNet is missing: apt-get install wordnet-base")
    found: dict[str, list[str]] = {kind: [] for kind in KINDS.values()}
    for line in (WORDNET / "data.noun").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if not line.startswith("  ") and fields[1] in KINDS and re.fullmatch(r"[a-z]{3,12}", fields[4]):
            found[KINDS[fields[1]]].append(fields[4])
    return {kind: list(dict.fromkeys(words)) for kind, words in found.items()}


@lru_cache(maxsize=1)
def faker_words() -> dict[str, list[str]]:
    """First names, last names, towns and jobs of Faker's English lists, sorted.

    Raises:
        MissingTool: Faker is not installed.
    """
    try:
        from faker.providers.address.en_GB import Provider as British
        from faker.providers.job.en_US import Provider as Jobs
        from faker.providers.person.en_US import Provider as People
    except ImportError:
        raise MissingTool("the lists of names are missing: pip install Faker") from None
    plain = re.compile(r"[A-Z][a-z]+")
    towns = set(TOWNS.split(", ")) | {
        f"{a}{b}"
        for a in People.last_names
        for b in British.city_suffixes
        if plain.fullmatch(a) and len(a) < 7
    }
    jobs = {job.split(",")[0].split("(")[0].strip().lower() for job in Jobs.jobs}
    return {
        "first": sorted({n for n in People.first_names if plain.fullmatch(n)}),
        "last": sorted({n for n in People.last_names if plain.fullmatch(n)}),
        "town": sorted(towns),
        "job": sorted(job for job in jobs if re.fullmatch(r"[a-z ]{4,30}", job)),
    }


TOWNS = (
    "London, Paris, Berlin, Madrid, Rome, Vienna, Prague, Warsaw, Dublin, Edinburgh, Manchester, Liverpool, Bristol, New York, Chicago, "
    "Boston, Seattle, Denver, Dallas, Miami, Toronto, Montreal, Vancouver, Sydney, Melbourne, Auckland, Tokyo, Kyoto, Seoul, Beijing, "
    "Shanghai, Singapore, Bangkok, Mumbai, Delhi, Cairo, Nairobi, Cape Town, Lagos, Istanbul, Athens, Lisbon, Oslo, Stockholm, Helsinki, "
    "Copenhagen, Amsterdam, Brussels, Zurich, Geneva, Milan, Naples, Barcelona, Buenos Aires, Lima, Bogota, Mexico City, Havana, Honolulu"
)


def article(words: str) -> str:
    """ "an apple", "a pear"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def clock(rng: random.Random) -> str:
    hour, minute = (
        rng.randint(1, 12),
        rng.choice([0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, rng.randint(1, 59)]),
    )
    return f"{hour}:{minute:02d}" + rng.choice(
        ["", "", " in the morning" if 4 < hour < 12 else " in the evening"]
    )


def whole(rng: random.Random) -> str:
    """A number of any size, small ones as likely as large ones."""
    digits = rng.randint(2, 6)
    return f"{rng.randint(10 ** (digits - 1), 10**digits - 1):,}"


def english_slots() -> dict[str, Callable[[random.Random], str]]:
    lists = wordnet_words() | faker_words()
    lists |= {
        "shop": SHOPS.split(", "),
        "relative": RELATIVES.split(),
        "day": DAYS.split(),
        "month": MONTHS.split(),
    }

    def drawn(words: list[str]) -> Callable[[random.Random], str]:
        return lambda rng: rng.choice(words)

    slots: dict[str, Callable[[random.Random], str]] = {name: drawn(words) for name, words in lists.items()}
    slots |= {
        f"a_{name}": lambda rng, words=lists[name]: article(rng.choice(words))
        for name in ("thing", "job", "animal", "plant")
    }
    ordinals = ["first", "second", "third", *(f"{n}th" for n in range(4, 21)), "21st", "22nd", "33rd", "40th"]
    return slots | {
        "time": clock,
        "small": lambda rng: str(rng.randint(2, 12)),
        "age": lambda rng: str(rng.randint(13, 99)),
        "big": whole,
        "decimal": lambda rng: f"{rng.randint(0, 99)}.{rng.randint(1, 99)}",
        "percent": lambda rng: f"{rng.randint(1, 99)}%",
        "price": lambda rng: rng.choice(["$", "£", "€"]) + rng.choice([f"{rng.randint(2, 999)}", f"{rng.randint(1, 99)}.{rng.randint(10, 99)}"]),
        "year": lambda rng: str(rng.randint(1750, 2039)),
        "date": lambda rng: rng.choice([f"{rng.choice(MONTHS.split())} {rng.randint(1, 31)}", f"the {rng.choice(ordinals)} of {rng.choice(MONTHS.split())}"]),
        "phone": lambda rng: f"{rng.randint(200, 999)}-{rng.randint(200, 999)}-{rng.randint(1000, 9999)}",
        "ordinal": drawn(ordinals),
        "minus": lambda rng: f"{rng.choice(['', '-'])}{rng.randint(1, 25)}",
        "flight": lambda rng: f"{rng.choice(['BA', 'AF', 'LH', 'UA', 'KL'])} {rng.randint(100, 999)}",
        "room": lambda rng: str(rng.randint(101, 999)),
    }  # fmt: skip


def chinese_slots() -> dict[str, Callable[[random.Random], str]]:
    lists = {name: words.split() for name, words in HAN.items()}
    slots = {name: (lambda rng, words=words: rng.choice(words)) for name, words in lists.items()}
    return slots | {
        "name": lambda rng: rng.choice(SURNAMES) + "".join(rng.sample(GIVEN, rng.choice([1, 2, 2]))),
        "time": lambda rng: rng.choice(["上午", "下午", "晚上", "早上", ""]) + f"{rng.randint(1, 12)}点" + rng.choice(["", "半", "一刻", f"{rng.randint(2, 59)}分"]),
        "small": lambda rng: str(rng.randint(3, 9)),
        "age": lambda rng: str(rng.randint(11, 99)),
        "big": lambda rng: f"{rng.randint(20, 2000)}万",
        "price": lambda rng: rng.choice([f"{rng.randint(3, 999)}块", f"{rng.randint(3, 99)}块{rng.randint(1, 9)}毛", f"{rng.randint(100, 9999)}元"]),
        "year": lambda rng: str(rng.randint(1900, 2039)),
        "date": lambda rng: f"{rng.randint(1, 12)}月{rng.randint(1, 30)}号",
        "phone": lambda rng: f"1{rng.randint(30, 99)}{rng.randint(10_000_000, 99_999_999)}",
        "room": lambda rng: str(rng.randint(101, 999)),
    }  # fmt: skip


def sentences(language: str, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(kind, written sentence) without end; every template in turn, in a fresh order each round."""
    rng = random.Random(f"{language}{seed}")
    templates = [line.split("|", 1) for line in {"en": ENGLISH, "zh": CHINESE}[language].strip().splitlines()]
    slots = {"en": english_slots, "zh": chinese_slots}[language]()
    while True:
        rng.shuffle(templates)
        for kind, template in templates:
            text = re.sub(r"\{(\w+)\}", lambda match: slots[match[1]](rng), template)
            yield kind, text[0].upper() + text[1:]
