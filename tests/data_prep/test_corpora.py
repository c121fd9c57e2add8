"""Every corpus is read from a small folder of exactly its published layout, audio included; damage is one clear line."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import soundfile

from data_prep.corpora import CORPORA, __main__, load, save
from omnilib.data import read_manifest
from omnilib.errors import DataError, UserError
from omnilib.paths import ROOT

FROZEN = ROOT / "data_prep" / "frozen"
CLIP = next(
    FROZEN / r["path"]
    for r in read_manifest(FROZEN / "manifest.jsonl")
    if (r["role"], r["language"]) == ("train", "en") and r["duration"] > 1.5
)


def sound(path: Path, seconds: float | None = 1.0) -> Path:
    """A second of real speech in the format the suffix names."""
    wave, rate = soundfile.read(CLIP, dtype="float32")
    wave = wave if seconds is None else wave[: int(seconds * rate)]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        path, wave, rate, format={".opus": "OGG"}.get(path.suffix), subtype={".opus": "OPUS"}.get(path.suffix)
    )
    return path


def write(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


# ---- the published layouts ---------------------------------------------------------------------------------------------


def librispeech(root: Path) -> None:
    for part, ids in (
        ("train-clean-100", ("19-198-0000", "19-198-0001")),
        ("dev-clean", ("84-121123-0000",)),
    ):
        for key in ids:
            speaker, chapter, _ = key.split("-")
            sound(root / part / speaker / chapter / f"{key}.flac")
        folder = root / part / speaker / chapter
        write(folder / f"{speaker}-{chapter}.trans.txt", *(f"{k} NORTHANGER ABBEY" for k in ids))


def aishell1(root: Path) -> None:
    base = root / "data_aishell"
    for split, speaker, number in (
        ("train", "S0002", "W0122"),
        ("train", "S0002", "W0123"),
        ("dev", "S0724", "W0121"),
    ):
        sound(base / "wav" / split / speaker / f"BAC009{speaker}{number}.wav")
    write(
        base / "transcript" / "aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市 成交 抑制 作用 最 大 的 限 购",
        "BAC009S0724W0121 广州市 ｂ 座",
        "BAC009S0916W0495 别 的 部分 没有 下载",
    )


def aishell2(root: Path) -> None:
    for part, key, speaker in (("data", "IC0001W0001", "C0001"), ("dev", "ID0012W0030", "D0012")):
        sound(root / "iOS" / part / "wav" / speaker / f"{key}.wav")
        write(root / "iOS" / part / "wav.scp", f"{key}\twav/{speaker}/{key}.wav")
        write(
            root / "iOS" / part / "trans.txt",
            f"{key}\t{'厨房用具' if part == 'data' else chr(39) + '小成' + chr(39)}",
        )
        write(root / "iOS" / part / "spk_info.txt", f"{speaker}\tmale\t25\tnorth")


def aishell3(root: Path) -> None:
    write(
        root / "spk-info.txt",
        "# AISHELL-3",
        "# speaker\tage\tgender\taccent",
        "",
        "SSB0005\tB\tfemale\tnorth",
    )
    for part, key in (("train", "SSB00050001"), ("test", "SSB00050002")):
        sound(root / part / "wav" / "SSB0005" / f"{key}.wav")
        write(root / part / "content.txt", f"{key}.wav\t广 guang3 州 zhou1 女 nv3")
    write(root / "train" / "label_train-set.txt", "# notes", "SSB00050001|guang3 zhou1 % nv3 $|广州%女$")


def common_voice(root: Path, release: str = "cv-corpus-24.0-2025-12-05", splits: bool = True) -> None:
    columns = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
    head = columns.replace(" ", "\t")

    def row(name: str, sentence: str, locale: str) -> str:
        return f"ab{name}\t{name}\t1f\t{sentence}\t\t2\t0\ttwenties\tfemale_feminine\t\t\t{locale}\t"

    for locale, sentences in (
        ("en", ['"He said ""no"" twice."', 'A lone " mark.']),
        ("zh-CN", ["你好世界。"]),
    ):
        folder = root / release / locale
        rows = [row(f"common_voice_{locale}_{i}.mp3", s, locale) for i, s in enumerate(sentences)]
        for i in range(len(rows)):
            sound(folder / "clips" / f"common_voice_{locale}_{i}.mp3")
        write(folder / "validated.tsv", head, *rows)
        write(folder / "invalidated.tsv", head)
        write(folder / "other.tsv", head)
        write(folder / "clip_durations.tsv", "clip\tduration[ms]", f"common_voice_{locale}_0.mp3\t1000")
        if splits:
            write(folder / "train.tsv", head, rows[0])
            write(folder / "dev.tsv", head)
            write(folder / "test.tsv", head, *rows[1:])


def emilia(root: Path) -> None:
    clips = {
        "Emilia/EN/EN-B000000.tar": ("EN_B00000_S00000_W000000", {"id": "EN_B00000_S00000_W000000"}),
        "Emilia/ZH/ZH-B000000.tar": ("ZH_B00000_S06226_W000000", {"id": "ZH_B00000_S06226_W000000"}),
        "Emilia-YODAS/EN/EN-B000000.tar": (
            "EN_-tKvmUvxYZXI_W000001",
            {"_id": "EN_-tKvmUvxYZXI_W000001", "phone_count": 14},
        ),
    }
    for name, (key, about) in clips.items():
        mp3 = sound(root / "tmp.mp3").read_bytes()
        meta = {
            "wav": f"x/{key}.mp3",
            "text": " Like I said.",
            "duration": 1.0,
            "speaker": key[:-8],
            "language": key[:2].lower(),
            "dnsmos": 3.3,
        }
        archive(root / name, {f"{key}.json": json.dumps(meta | about).encode(), f"{key}.mp3": mp3})
    (root / "tmp.mp3").unlink()


def archive(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def emilia_batches(root: Path) -> None:
    wav = "EN_B00000/EN_B00000_S00000/mp3/EN_B00000_S00000_W000000.mp3"
    sound(root / "EN" / wav)
    meta = {
        "id": "EN_B00000_S00000_W000000",
        "wav": wav,
        "text": " You can help.",
        "duration": 1.0,
        "speaker": "EN_B00000_S00000",
    }
    write(root / "EN" / "EN_B00000.jsonl", json.dumps(meta | {"language": "en", "dnsmos": 3.29}))


def cut(number: int, start: float, duration: float) -> dict:
    book = "small/100/sea_fairies_0812_librivox_64kb_mp3/01_baum_sea_fairies_64kb"
    custom = {
        "texts": ["But why do folks dive?", "BUT WHY DO FOLKS DIVE"],
        "pre_texts": ["...us", "US"],
        "begin_byte": 1,
    }
    said = {
        "id": f"{book}_{number}",
        "recording_id": book,
        "start": 0,
        "duration": duration,
        "channel": 0,
        "language": "English",
    }
    source = {"type": "file", "channels": [0], "source": f"download/librilight/{book}.flac"}
    return {
        "id": f"{book}_{number}",
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": [said | {"speaker": "100", "custom": custom}],
        "recording": {
            "id": book,
            "sources": [source],
            "sampling_rate": 24000,
            "num_samples": 48000,
            "duration": 2.0,
        },
        "custom": {"text_path": "download/librilight_text/output_text_small_cleaned/Sea Fairies/text.txt"},
        "type": "MonoCut",
    }


def libriheavy(root: Path, cuts=((0, 0.0, 0.8), (1, 0.9, 0.6))) -> None:
    sound(root / "download" / "librilight" / (cut(0, 0, 1)["recording"]["id"] + ".flac"), 2.0)
    with gzip.open(root / "libriheavy_cuts_small.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(cut(*c)) + "\n" for c in cuts)


def folder(root: Path) -> None:
    for name in ("ann/one.wav", "ann/two.flac", "bob/three.mp3", "four.ogg", "five.opus"):
        sound(root / name)
    write(root / "ann" / "one.txt", "One sentence.")
    write(root / "ann" / "two.lab", "two words")


BUILD = {
    "emilia": emilia,
    "libriheavy": libriheavy,
    "common_voice": common_voice,
    "aishell1": aishell1,
    "aishell2": aishell2,
    "aishell3": aishell3,
    "librispeech": librispeech,
    "folder": folder,
}
# (number of records, one of them)
EXPECTED = {
    "emilia": (
        3,
        {
            "id": "EN_B00000_S00000_W000000",
            "text": "Like I said.",
            "language": "en",
            "dnsmos": 3.3,
            "split": None,
        },
    ),
    "libriheavy": (
        2,
        {"text": "But why do folks dive?", "speaker": "libriheavy-100", "start": 0.9, "duration": 0.6},
    ),
    "common_voice": (
        3,
        {"text": 'He said "no" twice.', "language": "en", "split": "train", "age": "twenties"},
    ),
    "aishell1": (
        3,
        {"text": "而对楼市成交抑制作用最大的限购", "speaker": "aishell1-S0002", "split": "train"},
    ),
    "aishell2": (2, {"text": "厨房用具", "speaker": "aishell2-C0001", "split": "train"}),
    "aishell3": (2, {"text": "广州女", "pinyin": "guang3 zhou1 nv3", "gender": "female", "split": "test"}),
    "librispeech": (
        3,
        {"id": "84-121123-0000", "text": "NORTHANGER ABBEY", "speaker": "librispeech-84", "split": "dev"},
    ),
    "folder": (5, {"id": "ann-one", "text": "One sentence.", "speaker": "folder-ann", "language": "en"}),
}


def prepared(name: str, root: Path, out: Path | None = None, **options) -> list[dict]:
    return list(load(name).prepare(root, out or root, **options))


def reasons(records: list[dict]) -> list[str]:
    return [r["dropped"]["reason"] for r in records if "dropped" in r]


@pytest.mark.parametrize("name", CORPORA)
def test_published_layout_gives_a_manifest_whose_audio_is_there(name, tmp_path):
    BUILD[name](tmp_path)
    save(load(name).prepare(tmp_path, tmp_path, "en" if name == "folder" else None), tmp_path, name)
    records = read_manifest(tmp_path / "manifest.jsonl")
    count, wanted = EXPECTED[name]
    assert len(records) == count
    assert any(wanted.items() <= r.items() for r in records), records
    for record in records:
        info = soundfile.info(tmp_path / record["path"])
        assert record["rate"] == info.samplerate
        assert (
            record["duration"] > 0
            and record["start"] + record["duration"] <= info.frames / info.samplerate + 0.01
        )
        assert record["source"] == load(name).SOURCE and record["licence"]
    assert (tmp_path / "dropped.jsonl").read_text() == ""


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_states_what_a_reader_must_know(name):
    corpus = load(name)
    assert name == corpus.SOURCE and corpus.LICENCE and corpus.CITATION and "<root>" in corpus.LAYOUT
    assert corpus.HUB or corpus.WHY
    assert (corpus.HUB is not None) == hasattr(corpus, "stream")
    assert all(hours > 0 for hours in corpus.HOURS.values())


@pytest.mark.parametrize("name", CORPORA)
def test_missing_folder_and_wrong_layout_say_what_was_expected(name, tmp_path):
    write(tmp_path / "here" / "notes.pdf", "nothing to hear")
    for root in (tmp_path / "nowhere", tmp_path / "here"):
        with pytest.raises(DataError, match="<root>") as error:
            prepared(name, root, tmp_path)
        assert "\n" not in str(error.value)


AUDIO_OF = {
    "libriheavy": "download/**/*.flac",
    "common_voice": "*/en/clips/*_1.mp3",
    "aishell2": "iOS/dev/wav/*/*.wav",
    "aishell3": "test/wav/*/*.wav",
    "librispeech": "dev-clean/*/*/*.flac",
}


@pytest.mark.parametrize("name", AUDIO_OF)
def test_listed_audio_that_is_missing_is_a_dropped_record(name, tmp_path):
    BUILD[name](tmp_path)
    next(tmp_path.glob(AUDIO_OF[name])).unlink()
    records = prepared(name, tmp_path)
    assert len(records) == EXPECTED[name][0]
    drops = [r["dropped"] for r in records if "dropped" in r]
    assert {d["reason"] for d in drops} == {"missing_audio"} and "no audio file" in drops[0]["detail"]


def test_much_missing_audio_stops_unless_it_is_allowed(tmp_path, capsys):
    rows = [f"ID{i:04d}\twav/S/{i}.wav" for i in range(12)]
    for i in range(5):
        sound(tmp_path / "iOS/data/wav/S" / f"{i}.wav")
    write(tmp_path / "iOS/data/wav.scp", *rows)
    write(tmp_path / "iOS/data/trans.txt", *(f"ID{i:04d}\t厨房" for i in range(12)))
    arguments = ["aishell2", "--root", str(tmp_path)]
    with pytest.raises(
        SystemExit,
        match=r"7 of 12 rows are bad \(missing_audio 7\), more than 20%; first: .*--allow-missing.*--max-bad",
    ):
        __main__.main(arguments)
    assert not list(tmp_path.glob("*.jsonl*"))
    for more in (["--allow-missing"], ["--max-bad", "0.6"]):
        __main__.main(arguments + more)
        assert "5 records, 0.00 h; 7 dropped" in capsys.readouterr().out


TEXT_OF = {
    "emilia": None,
    "common_voice": "*/en/validated.tsv",
    "aishell1": "data_aishell/transcript/*.txt",
    "aishell2": "iOS/data/trans.txt",
    "aishell3": "train/content.txt",
    "librispeech": "dev-clean/*/*/*.trans.txt",
    "folder": "ann/one.txt",
    "libriheavy": None,
}


@pytest.mark.parametrize("name", [n for n, glob in TEXT_OF.items() if glob])
def test_a_line_in_another_encoding_is_dropped_and_named(name, tmp_path):
    BUILD[name](tmp_path)
    good = len(prepared(name, tmp_path))
    path = next(tmp_path.glob(TEXT_OF[name]))
    path.write_bytes(path.read_bytes() + "广州 广州\n".encode("gb18030"))
    records = prepared(name, tmp_path)
    assert reasons(records) == ["not_utf8"] and len(records) == good + (name != "folder")
    assert next(path.name in r["dropped"]["detail"] for r in records if "dropped" in r)


@pytest.mark.parametrize("name", ["common_voice", "aishell1", "aishell2", "aishell3", "librispeech"])
def test_of_an_id_that_stands_twice_the_first_is_kept(name, tmp_path):
    BUILD[name](tmp_path)
    before = prepared(name, tmp_path)
    path = next(tmp_path.glob(TEXT_OF[name]))
    last = path.read_text(encoding="utf-8").splitlines()[-1]
    with path.open("a", encoding="utf-8") as file:
        file.write(last + "\n")
    records = prepared(name, tmp_path)
    assert reasons(records) == ["repeated_id"] and [r for r in records if "dropped" not in r] == before


@pytest.mark.parametrize(
    "files",
    [("a.flac", "a.wav", "a.mp3"), ("s1/001.wav", "s1-001.wav", "s1 001.wav"), ("a.wav", "a-2.wav", "a.mp3")],
)
def test_files_of_one_id_are_all_kept_under_different_ids(files, tmp_path, capsys):
    for name in files:
        sound(tmp_path / name)
    __main__.main(["folder", "--root", str(tmp_path), "--language", "en"])
    records = read_manifest(tmp_path / "manifest.jsonl")
    assert len({r["id"] for r in records}) == len({r["path"] for r in records}) == 3
    renamed = sum("renamed" in r for r in records)
    assert renamed and f"{renamed} renamed" in capsys.readouterr().out


def test_repeated_ids_across_archives_and_cuts_are_dropped(tmp_path):
    emilia(tmp_path / "e")
    first = tmp_path / "e" / "Emilia" / "EN" / "EN-B000000.tar"
    first.with_name("EN-B000001.tar").write_bytes(first.read_bytes())
    assert reasons(prepared("emilia", tmp_path / "e")) == ["repeated_id"]
    libriheavy(tmp_path / "l", cuts=((0, 0.0, 0.8), (0, 0.9, 0.6)))
    assert reasons(prepared("libriheavy", tmp_path / "l")) == ["repeated_id"]


@pytest.mark.parametrize("name", CORPORA)
def test_unreadable_audio_is_a_dropped_record_not_an_end(name, tmp_path):
    BUILD[name](tmp_path)
    if name == "emilia":
        key = "EN_B00000_S00000_W000009"
        meta = {"id": key, "text": "x", "speaker": "s", "language": "en"}
        archive(
            tmp_path / "Emilia/EN/EN-B000001.tar",
            {f"{key}.mp3": b"not audio", f"{key}.json": json.dumps(meta).encode()},
        )
    else:
        files = sorted(p for p in tmp_path.rglob("*") if p.suffix in (".wav", ".flac", ".mp3"))
        files[0].write_bytes(b"not audio")
    broken = [r for r in prepared(name, tmp_path) if "dropped" in r]
    assert broken and {r["dropped"]["reason"] for r in broken} == {"unreadable_audio"}


def test_paths_that_leave_the_corpus_are_dropped_and_not_read(tmp_path):
    sound(tmp_path / "secret.wav")
    root = tmp_path / "corpus"
    aishell2(root)
    write(root / "iOS" / "data" / "wav.scp", "IC0001W0001\t../../../secret.wav")
    folder(root / "plain")
    write(root / "plain" / "metadata.csv", "file_name,text", "../../secret.wav,hello")
    for name, place in (("aishell2", root), ("folder", root / "plain")):
        records = prepared(name, place)
        assert reasons(records) == ["outside_the_folder"] and not any("secret" in r["path"] for r in records)


def test_members_of_an_archive_cannot_choose_where_they_are_written(tmp_path):
    key = "EN_B00000_S00000_W000000"
    meta = {"id": key, "text": "x", "speaker": "s", "language": "en"}
    mp3 = sound(tmp_path / "x.mp3").read_bytes()
    archive(
        tmp_path / "in" / "EN" / "a.tar",
        {f"../../{key}.mp3": mp3, f"../../{key}.json": json.dumps(meta).encode()},
    )
    record = prepared("emilia", tmp_path / "in", tmp_path / "out")[0]
    assert record["path"] == f"emilia/EN/a/{key}.mp3"
    assert (tmp_path / "out" / record["path"]).read_bytes() == mp3


def test_audio_outside_the_manifests_folder_is_linked_not_copied(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    librispeech(raw)
    for _ in range(2):  # a second run finds the links of the first
        save(load("librispeech").prepare(raw, out), out, "librispeech")
    record = read_manifest(out / "manifest.jsonl")[0]
    assert (out / record["path"]).samefile(raw / "dev-clean/84/121123/84-121123-0000.flac") or record[
        "split"
    ] == "train"
    assert all((out / r["path"]).stat().st_nlink == 2 for r in read_manifest(out / "manifest.jsonl"))
    above = load("librispeech").prepare(raw, tmp_path)
    assert next(above)["path"].startswith("raw/train-clean-100/")


def test_emilias_first_release_and_language_choice(tmp_path):
    emilia_batches(tmp_path / "first")
    record = prepared("emilia", tmp_path / "first")[0]
    assert record["text"] == "You can help." and record["licence"] == "CC BY-NC 4.0"
    emilia(tmp_path / "hub")
    assert [r["language"] for r in prepared("emilia", tmp_path / "hub", tmp_path / "o", language="zh")] == [
        "zh"
    ]
    licences = {r["id"]: r["licence"] for r in prepared("emilia", tmp_path / "hub", tmp_path / "o2")}
    assert licences["EN_-tKvmUvxYZXI_W000001"] == "CC BY 4.0"
    with pytest.raises(DataError, match="no archives and no batches of ja"):
        prepared("emilia", tmp_path / "hub", language="ja")


def test_damaged_archives_and_lists_name_themselves(tmp_path):
    emilia(tmp_path / "e")
    tar = tmp_path / "e" / "Emilia" / "EN" / "EN-B000000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"EN-B000000.tar is damaged"):
        prepared("emilia", tmp_path / "e")
    libriheavy(tmp_path / "l")
    cuts = tmp_path / "l" / "libriheavy_cuts_small.jsonl.gz"
    cuts.write_bytes(cuts.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged"):
        prepared("libriheavy", tmp_path / "l")
    archive(tmp_path / "h" / "EN" / "x.tar", {"lonely.mp3": b"..."})
    (lonely,) = prepared("emilia", tmp_path / "h")
    assert lonely["dropped"]["reason"] == "no_json" and "'lonely' has no .json" in lonely["dropped"]["detail"]


@pytest.mark.parametrize(
    ("start", "duration", "reason"),
    [
        (1.5, 9.0, "beyond_the_end"),
        (90.0, 1.0, "beyond_the_end"),
        (-0.5, 1.0, "bad_offset"),
        (0.0, 0.0, "bad_offset"),
        (0.5, -1.0, "bad_offset"),
        (float("nan"), 1.0, "bad_offset"),
        (0.0, float("inf"), "bad_offset"),
        ("soon", 1.0, "bad_offset"),
        (None, 1.0, "bad_offset"),
        ([1], 1.0, "bad_offset"),
        (0.0, None, "bad_offset"),
        ("0.5", "1.0", None),
    ],
)
def test_a_cut_with_an_impossible_place_is_dropped(tmp_path, start, duration, reason):
    libriheavy(tmp_path, cuts=((0, 0.0, 1.0), (1, start, duration), (2, 0.1, 0.5)))
    save(load("libriheavy").prepare(tmp_path, tmp_path), tmp_path, "libriheavy")
    drops = [
        json.loads(line)["dropped"]["reason"]
        for line in (tmp_path / "dropped.jsonl").read_text().splitlines()
    ]
    assert drops == ([reason] if reason else [])
    assert len(read_manifest(tmp_path / "manifest.jsonl")) == 3 - len(drops)


COMMON = "client_id\tpath\tsentence\tup_votes"


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (["c\tb.mp3\ta tab\there\t2"], ["wrong_columns"]),
        (["c\tb.mp3\tbroken", "line\t2"], ["wrong_columns"] * 2),
        (["c\tb.mp3"], ["wrong_columns"]),
        (["c\ta.mp3\tone\t2"], ["repeated_id"]),
        (["c\tnone.mp3\tone\t2"], ["missing_audio"]),
        (["c\t\tone\t2"], ["missing_audio"]),
        (["c\t../../../etc/passwd\tone\t2"], ["outside_the_folder"]),
    ],
)
def test_a_bad_row_of_common_voice_is_counted_and_the_corpus_goes_on(broken, found, tmp_path, capsys):
    for name in "abc":
        sound(tmp_path / "en/clips" / f"{name}.mp3")
    write(tmp_path / "en/validated.tsv", COMMON, "c\ta.mp3\tone\t2", *broken, "c\tc.mp3\tthree\t2")
    __main__.main(["common_voice", "--root", str(tmp_path)])
    assert {r["id"] for r in read_manifest(tmp_path / "manifest.jsonl")} == {"a", "c"}
    assert f"{len(found)} dropped ({found[0]} {len(found)})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("emilia", "{half", "not_json"),
        ("emilia", "[]", "not_json"),
        ("emilia", '{"id": "x", "wav": "x.mp3"}', "missing_field"),
        ("emilia", '{"wav": 3}', "wrong_type"),
        ("emilia", '{"id": 7, "wav": "x.mp3", "text": "a", "speaker": "s", "language": "en"}', "no_id"),
        (
            "emilia",
            '{"id": "x", "wav": "x.mp3", "text": ["a"], "speaker": "s", "language": "en"}',
            "wrong_type",
        ),
        ("libriheavy", "{half", "not_json"),
        ("libriheavy", '{"id": "x"}', "missing_field"),
        ("libriheavy", '{"id": "x", "recording": 3}', "missing_field"),
    ],
)
def test_a_damaged_line_of_json_is_counted_and_the_corpus_goes_on(name, bad, reason, tmp_path):
    if name == "emilia":
        emilia_batches(tmp_path)
        path = next(tmp_path.glob("**/*.jsonl"))
        path.write_text(bad + "\n" + path.read_text())
    else:
        libriheavy(tmp_path)
        path = tmp_path / "libriheavy_cuts_small.jsonl.gz"
        path.write_bytes(gzip.compress(bad.encode() + b"\n" + gzip.decompress(path.read_bytes())))
    records = prepared(name, tmp_path)
    assert reasons(records) == [reason] and len(records) > 1


def test_too_many_bad_rows_end_in_one_line_and_write_nothing(tmp_path):
    good, bad = (
        {"id": "a", "duration": 1.0},
        {"id": "b", "dropped": {"step": "prepare", "reason": "not_json", "detail": "m:7 is odd"}},
    )
    assert save([good] * 20 + [bad] * 5, tmp_path / "few", "x")["reasons"] == {"not_json": 5}
    assert save([good] * 90 + [bad] * 20, tmp_path / "share", "x")["kept"] == 90
    for some, share in (([good] * 20 + [bad] * 6, 0.2), ([good] * 90 + [bad] * 20, 0.1)):
        with pytest.raises(
            DataError, match=r"bad \(not_json .*, more than .*first: m:7 is odd; .*--max-bad"
        ) as error:
            save(some, tmp_path / "many", "x", share)
        assert "\n" not in str(error.value) and not list((tmp_path / "many").iterdir())


def test_a_hopeless_corpus_stops_long_before_its_end(tmp_path):
    def endless():
        while True:
            yield {"id": "b", "dropped": {"step": "prepare", "reason": "not_json"}}

    with pytest.raises(DataError, match="2,000 of 2,000 rows"):
        save(endless(), tmp_path, "x")


def test_a_common_voice_delta_has_no_splits(tmp_path):
    common_voice(tmp_path, "cv-corpus-24.0-delta-2025-12-05", splits=False)
    records = prepared("common_voice", tmp_path)
    assert len(records) == 3 and {r["split"] for r in records} == {None}
    assert [r["language"] for r in prepared("common_voice", tmp_path, language="zh")] == ["zh"]
    assert 'A lone " mark.' in {r["text"] for r in records}


def test_aishell1_still_in_archives_says_how_to_unpack(tmp_path):
    write(tmp_path / "data_aishell/transcript/aishell_transcript_v0.8.txt", "BAC009S0002W0122 而 对")
    archive(tmp_path / "data_aishell/wav/S0002.tar.gz", {"train/S0002/BAC009S0002W0122.wav": b""}, "w:gz")
    with pytest.raises(DataError, match="tar xzf"):
        prepared("aishell1", tmp_path)


def test_aishell3_lines_that_do_not_pair_are_dropped(tmp_path):
    aishell3(tmp_path)
    write(tmp_path / "train" / "content.txt", "SSB00050001.wav\t广 guang3 州")
    records = prepared("aishell3", tmp_path)
    assert [r.get("dropped", {}).get("reason") for r in records] == ["bad_transcript", None]


def test_transcripts_are_tidied_as_their_corpus_needs(tmp_path):
    aishell1(tmp_path / "1")
    by_id = {r["id"]: r["text"] for r in prepared("aishell1", tmp_path / "1")}
    assert by_id["BAC009S0724W0121"] == "广州市 b 座" and by_id["BAC009S0002W0123"] is None
    aishell2(tmp_path / "2")
    assert {r["text"] for r in prepared("aishell2", tmp_path / "2")} == {"厨房用具", "小成"}


def test_m4a_is_read_too(tmp_path):
    import av

    wave, rate = soundfile.read(CLIP, dtype="int16")
    with av.open(str(tmp_path / "one.m4a"), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        for start in range(0, rate, 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
            frame.rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (record,) = prepared("folder", tmp_path)
    assert record["rate"] == rate and record["duration"] == pytest.approx(1.0, abs=0.1)
    (tmp_path / "one.m4a").write_bytes(b"not audio")
    assert prepared("folder", tmp_path)[0]["dropped"]["reason"] == "unreadable_audio"


@pytest.mark.parametrize(
    "rows",
    [
        ("file_name,text,speaker", '"one.wav","Hello, ""you""",ann'),
        ("speaker,transcription,path", '"ann","Hello, ""you""",wavs/one.wav'),
        ('one|Hello, "you"',),
        ('one|raw|Hello, "you"',),
    ],
)
def test_metadata_of_both_kinds_is_read(rows, tmp_path):
    sound(tmp_path / ("one.wav" if "one.wav" in rows[-1] and "wavs/" not in rows[-1] else "wavs/one.wav"))
    write(tmp_path / "metadata.csv", *rows)
    (record,) = prepared("folder", tmp_path)
    assert record["text"] == 'Hello, "you"'
    assert record["speaker"] == ("folder-ann" if "ann" in rows[-1] else None)


def test_metadata_without_its_columns_is_refused(tmp_path):
    sound(tmp_path / "one.wav")
    write(tmp_path / "metadata.csv", "name,words", "one.wav,hi")
    with pytest.raises(DataError, match="metadata.csv:1: no file and text columns"):
        prepared("folder", tmp_path)


@pytest.mark.parametrize(
    ("row", "reason", "says"),
    [
        ("one.wav,hi,there", "wrong_columns", "metadata.csv:2: 3 columns where 2"),
        ("two.wav,ho", "repeated_id", "metadata.csv:3: 'two.wav' stands twice"),
        ("none.wav,hi", "missing_audio", "metadata.csv:2: no audio file"),
        (",hi", "no_file_name", "metadata.csv:2: no name"),
        ("one.wav," + "x" * 200_000, "not_csv", "metadata.csv:2 is not CSV"),
        ('one.wav,"a lone mark', "not_csv", "metadata.csv:2 is not CSV"),
    ],
)
def test_a_bad_row_of_metadata_is_dropped_alone(row, reason, says, tmp_path):
    sound(tmp_path / "one.wav")
    sound(tmp_path / "two.wav")
    write(tmp_path / "metadata.csv", "file_name,text", row, "two.wav,good")
    records = prepared("folder", tmp_path)
    (drop,) = (r["dropped"] for r in records if "dropped" in r)
    assert drop["reason"] == reason and says in drop["detail"]
    assert [r["text"] for r in records if r["path"] == "two.wav" and "dropped" not in r] in (["good"], ["ho"])


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "data_prep.corpora.os.access", lambda *_: False
    )  # whoever runs the tests may be allowed to read everything
    with pytest.raises(DataError, match=f"cannot read {tmp_path}"):
        prepared("folder", tmp_path)


def test_many_files_of_one_wrong_type_are_named(tmp_path):
    for i in range(40):
        write(tmp_path / f"{i}.pdf", "x")
    with pytest.raises(DataError, match=r"no audio in .* \(40 \.pdf\)"):
        prepared("folder", tmp_path)


# ---- the manifest and the command line -----------------------------------------------------------------------------------


def test_a_failed_run_leaves_the_old_manifest_and_nothing_half(tmp_path):
    librispeech(tmp_path)
    __main__.main(["librispeech", "--root", str(tmp_path)])
    before = (tmp_path / "manifest.jsonl").read_bytes()
    for file in tmp_path.glob("*/*/*/*.flac"):
        file.write_bytes(b"not audio")
    with pytest.raises(SystemExit, match=r"error: .*nothing usable found \(unreadable_audio 3; first: "):
        __main__.main(["librispeech", "--root", str(tmp_path)])
    assert (tmp_path / "manifest.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_command_line_limits_and_reports(tmp_path, capsys):
    librispeech(tmp_path)
    __main__.main(["librispeech", "--root", str(tmp_path), "--limit", "2"])
    assert "2 records, 0.00 h; 0 dropped" in capsys.readouterr().out
    __main__.main([])
    table = capsys.readouterr().out
    assert all(name in table for name in CORPORA) and "46,828 / 49,922" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gigaspeech"], "no corpus 'gigaspeech'"),
        (["librispeech"], "needs --root"),
        (["librispeech", "--root", "x", "--language", "zh"], "holds en only"),
        (["common_voice", "--stream", "--out", "x"], "cannot be streamed: left the hub"),
        (["emilia", "--stream"], "needs --out"),
    ],
)
def test_command_line_errors_are_one_line(arguments, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        __main__.main(arguments)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(iter([]), tmp_path, "x")


# ---- streaming, from local folders of the hub's layout ---------------------------------------------------------------------


def streamed(name: str, source: Path, out: Path, **options) -> list[dict]:
    save(load(name).stream(out, source=str(source), **options), out, name)
    return read_manifest(out / "manifest.jsonl")


def test_emilia_streams_from_its_hub_layout(tmp_path):
    emilia(tmp_path / "hub")
    records = streamed("emilia", tmp_path / "hub", tmp_path / "out", language="en")
    assert {r["id"]: r["licence"] for r in records} == {
        "EN_B00000_S00000_W000000": "CC BY-NC 4.0",
        "EN_-tKvmUvxYZXI_W000001": "CC BY 4.0",
    }
    assert all(soundfile.info(tmp_path / "out" / r["path"]).samplerate == r["rate"] for r in records)
    assert len(streamed("emilia", tmp_path / "hub", tmp_path / "one", language="en", limit=1)) == 1


def test_aishell1_streams_from_its_hub_layout(tmp_path):
    wav = sound(tmp_path / "x.wav").read_bytes()
    hub = tmp_path / "hub" / "data_aishell"
    write(hub / "transcript" / "aishell_transcript_v0.8.txt", "BAC009S0002W0122 而 对 楼市")
    archive(hub / "wav" / "S0002.tar.gz", {"train/S0002/BAC009S0002W0122.wav": wav}, "w:gz")
    (record,) = streamed("aishell1", tmp_path / "hub", tmp_path / "out")
    assert (record["text"], record["split"], record["speaker"]) == ("而对楼市", "train", "aishell1-S0002")


def test_aishell3_streams_from_its_hub_layout(tmp_path):
    aishell3(tmp_path / "hub")
    (record,) = streamed("aishell3", tmp_path / "hub", tmp_path / "out")
    assert (record["id"], record["text"], record["duration"]) == ("SSB00050001", "广州女", 1.0)


def test_librispeech_streams_from_its_hub_layout(tmp_path):
    import pyarrow
    from pyarrow import parquet

    flac = sound(tmp_path / "x.flac").read_bytes()
    configs = []
    for config, part in (("clean", "train.100"), ("clean", "train.360"), ("other", "train.500")):
        key = f"19-{len(configs)}-0000"
        row = {
            "file": "x",
            "audio": {"bytes": flac, "path": f"{key}.flac"},
            "text": "CHAPTER ONE",
            "speaker_id": 19,
            "chapter_id": 198,
            "id": key,
        }
        path = tmp_path / "hub" / config / part / "0000.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        configs.append(f"  - split: {part}\n    path: {config}/{part}/*.parquet")
    head = "- config_name: {}\n  data_files:"
    card = (head.format("clean"), *configs[:2], head.format("other"), configs[2])
    write(tmp_path / "hub" / "README.md", "---", "configs:", *card, "---")
    records = streamed("librispeech", tmp_path / "hub", tmp_path / "out")
    assert [r["id"] for r in records] == ["19-0-0000", "19-1-0000", "19-2-0000"]
    assert records[0]["text"] == "CHAPTER ONE" and records[0]["duration"] == 1.0


def test_what_is_not_on_the_hub_is_one_line(tmp_path):
    emilia(tmp_path / "hub")
    with pytest.raises(DataError, match="emilia: nothing usable found"):
        streamed("emilia", tmp_path / "hub", tmp_path / "out", language="ja")
    with pytest.raises(DataError, match="cannot stream .*hf auth login"):
        streamed("librispeech", tmp_path / "hub", tmp_path / "out")
