"""`omni chat`: talk with brain and mouth in a terminal; all of it is kept in a folder as it comes.

    folder/conversation.json    turns: what was asked, written and said, and how it ended
    folder/01-audio-1.wav       what was heard and shown, copied: a later turn needs it again
    folder/01-answer.wav        the answer, written as it is made

Whenever the program ends, the folder is whole: the JSON is replaced in one step, and a wave that breaks
off has a header of open length, which players read to its end. Named again with --out, a folder's
conversation goes on.

Ctrl-C in an answer stops both tracks within a step; what was said stays in the conversation.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from omnilib.errors import DataError, UserError
from omnilib.output import pcm, shown, wav_header
from omnilib.paths import RUNS
from omnilib.playback import Player, find_player

if TYPE_CHECKING:
    from omnilib.omni import Answer, Conversation

KINDS = {
    "audio": "audio",
    "image": "images",
    "video": "videos",
}  # command -> as `Conversation.stream` calls it
HELP = "/audio, /image, /video FILE go with the next question, an empty line asks them alone; /quit ends"


class GrowingWave:
    """A mono 16-bit wave that can be read at any moment; nothing is there before the first sound."""

    def __init__(self, path: Path, rate: int):
        self.path, self.rate, self.samples, self.file = path, rate, 0, None

    def write(self, wave) -> None:
        """Append samples (n,)."""
        if not len(wave):
            return
        if self.file is None:
            self.file = self.path.open("wb")
            self.file.write(wav_header(self.rate))
        self.file.write(pcm(wave))
        self.file.flush()
        self.samples += len(wave)

    @property
    def seconds(self) -> float:
        return self.samples / self.rate

    def close(self) -> None:
        """Write down the length."""
        if self.file is not None:
            with self.file:
                os.pwrite(self.file.fileno(), wav_header(self.rate, self.samples), 0)
            self.file = None


class Record:
    """A conversation in a folder.

    Args:
        folder: made if it is not there; an earlier conversation in it goes on.
        about: what the conversation is held with; of an earlier one what is None here stays as it was.

    Raises:
        DataError: the folder holds something else, is damaged, in use, or cannot be written.
    """

    def __init__(self, folder: Path, about: dict):
        self.folder, self.path = folder, folder / "conversation.json"
        self.new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / ".lock")
            self.lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"{shown(folder)} is in use by another chat: choose another --out") from None
        except OSError as error:
            raise DataError(
                f"cannot write {shown(folder)} ({error.strerror}): choose another --out"
            ) from None
        self.turns: list[dict] = []
        self.about = about
        if self.path.exists():
            earlier, self.turns = self.read()
            self.about = earlier | {name: value for name, value in about.items() if value is not None}
        elif any(path.name != ".lock" for path in folder.iterdir()):
            raise DataError(f"{shown(folder)} holds other files: choose a new folder with --out")
        self.save()

    def read(self) -> tuple[dict, list[dict]]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            about, turns = dict(found["about"]), list(found["turns"])
            for turn in turns:
                names = [name for kind in KINDS.values() for name in turn["asked"][kind]]
                if not all(Path(name).name == name and (self.folder / name).is_file() for name in names):
                    raise DataError(
                        f"{shown(self.path)} names files that are not in its folder: restore them"
                    )
                _ = turn["asked"]["text"] + turn["said"]
                if turn["state"] == "answering":  # the program was killed
                    turn["state"] = "broken off"
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise DataError(f"{shown(self.path)} is damaged: choose another folder with --out") from None
        return about, turns

    def messages(self) -> list[dict]:
        """The turns so far, as the brain takes them."""
        from omnilib.brain.ask import turn

        told = []
        for one in self.turns:
            files = {
                kind: [str(self.folder / name) for name in one["asked"][kind]] for kind in KINDS.values()
            }
            told += [turn(one["asked"]["text"], **files), {"role": "assistant", "content": one["said"]}]
        return told

    def save(self) -> None:
        """Replace the JSON in one step."""
        temporary = self.path.with_suffix(".tmp")
        made = {"about": self.about, "turns": self.turns}
        temporary.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def copy(self, files: dict[str, list[str]]) -> dict[str, list[str]]:
        """Media of the next turn, copied: names by kind.

        Raises:
            DataError: a file is not there or cannot be read.
        """
        made: dict[str, list[str]] = {kind: [] for kind in KINDS.values()}
        for name, kind in KINDS.items():
            for number, path in enumerate(files.get(kind, ()), 1):
                target = f"{len(self.turns) + 1:02d}-{name}-{number}{Path(path).suffix[:10]}"
                try:
                    if not Path(path).is_file():
                        raise DataError(f"no {name} file {shown(Path(path))}: check the path")
                    shutil.copyfile(path, self.folder / target)
                except OSError as error:
                    raise DataError(f"cannot copy {shown(Path(path))} ({error.strerror})") from None
                made[kind].append(target)
        return made

    def drop(self, names: dict[str, list[str]]) -> None:
        """Remove the media of a turn that was not kept."""
        for name in sum(names.values(), []):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have the folder; a new one in which nothing was said goes."""
        self.lock.release()
        if self.new and not self.turns:
            shutil.rmtree(self.folder, ignore_errors=True)


class Talk:
    """Questions from a terminal, a pipe or the command line, answered one after the other.

    Attributes:
        code: exit code so far: 0, 1 (an answer was cut), 2 (a question could not be asked).
    """

    def __init__(self, talk: "Conversation", record: Record, args: argparse.Namespace):
        self.talk, self.record, self.args, self.code = talk, record, args, 0
        self.rate = talk.omni.speech.rate

    def ask(self, text: str, files: dict[str, list[str]]) -> None:
        """One turn; a question that cannot be used is one line, and the conversation goes on.

        Raises:
            UserError: as `Conversation.stream`; nothing of the turn is kept.
        """
        before, names = len(self.record.turns), {kind: [] for kind in KINDS.values()}
        try:
            names = self.record.copy(files)
            paths = {kind: [str(self.record.folder / name) for name in names[kind]] for kind in names}
            settings = {name: getattr(self.args, name) for name in ("max_new_tokens", "temperature", "seed")}
            began = time.perf_counter()
            answer = self.talk.stream(text, **paths, speak=not self.args.text_only, **settings)
            self.show(answer, {"text": text} | names, began)
        except UserError as error:
            if len(self.record.turns) == before:
                self.record.drop(names)
            originals = {str(self.record.folder / n): p for k in names for n, p in zip(names[k], files[k])}
            message = str(error)
            for copied, original in originals.items():
                message = message.replace(copied, str(original))
            raise UserError(message) from None

    def show(self, answer: "Answer", asked: dict, began: float) -> None:
        """Words to the screen, sound to file and loudspeaker, both into the record as they come."""
        number = len(self.record.turns) + 1
        wave = GrowingWave(self.record.folder / f"{number:02d}-answer.wav", self.rate)
        turn = {"asked": asked, "text": "", "said": "", "wave": None, "seconds": 0.0, "first_sound_s": None}
        turn["state"] = "answering"
        live = sys.stderr is not None and sys.stderr.isatty() and not self.args.text_only
        plays = self.args.play and not self.args.text_only
        with contextlib.ExitStack() as stack:
            stack.callback(wave.close)
            player = Player(self.rate) if plays else None
            stack.enter_context(stopped_by_ctrl_c(answer, player))
            if player is not None:
                stack.enter_context(player)  # is waited for: Ctrl-C stops the sound of a complete answer too
            for piece in answer:
                self.record.turns[number - 1 :] = [turn]  # an answer that never begins leaves nothing
                turn["text"] += piece.text
                turn["said"] = turn["text"].strip()
                print(piece.text, end="", flush=True)
                wave.write(piece.wave)
                if player is not None:
                    player.write(piece.wave)
                if wave.samples and turn["wave"] is None:
                    turn["wave"], turn["first_sound_s"] = (
                        wave.path.name,
                        round(time.perf_counter() - began, 3),
                    )
                turn["seconds"] = round(wave.seconds, 2)
                self.record.save()
                if live and answer.brain.over:
                    print(f"\r{wave.seconds:5.1f} s of speech", end="", file=sys.stderr, flush=True)
        print(flush=True)
        self.record.turns[number - 1 :] = [turn]
        cut = len(answer.brain.ids) >= self.args.max_new_tokens
        stopped = answer.stopped or (player is not None and player.stopped)
        turn["state"] = "stopped" if stopped else "cut" if cut else "complete"
        turn["said"] = self.talk.messages[-1]["content"]
        self.record.save()
        self.code = max(self.code, int(turn["state"] == "cut"))
        self.tell(turn, live)

    def tell(self, turn: dict, live: bool) -> None:
        """One line about the answer."""
        said = {"stopped": "stopped; ", "cut": "cut at --max-new-tokens; "}.get(turn["state"], "")
        if turn["wave"]:
            said += f"{turn['seconds']:.1f} s of speech, the first after {turn['first_sound_s']:.2f} s: "
            said += shown(self.record.folder / turn["wave"])
        if said:
            print("\r" * live + f"[{said.rstrip('; ')}]", file=sys.stderr, flush=True)

    def questions(self) -> Iterator[str]:
        """Lines from standard input, until it ends."""
        if sys.stdin is None:
            return
        asks = sys.stdin.isatty()
        if asks:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  lets a line be edited
            print(HELP, file=sys.stderr)
        while True:
            try:
                if asks:
                    yield input("you> ")
                    continue
                line = sys.stdin.buffer.readline()
                if not line:
                    return
                yield line.decode("utf-8-sig").rstrip("\r\n")
            except EOFError:
                print(file=sys.stderr)
                return
            except UnicodeDecodeError:
                self.mistake(UserError("a line is not UTF-8: it was not asked"))

    def mistake(self, error: UserError) -> None:
        """Say it, and go on."""
        print(f"omni: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        if sys.stdin is None or not sys.stdin.isatty():
            self.code = 2

    def run(self) -> None:
        """Ask what standard input holds."""
        files: dict[str, list[str]] = {kind: [] for kind in KINDS.values()}
        for line in self.questions():
            word, _, rest = line.strip().partition(" ")
            if word == "/quit":
                return
            if word == "/help":
                print(HELP, file=sys.stderr)
            elif word[:1] == "/" and word[1:] in KINDS:
                files[KINDS[word[1:]]].append(str(Path(rest.strip()).expanduser()))
            elif line.strip() or any(files.values()):
                try:
                    self.ask(line.strip(), files)
                except UserError as error:
                    self.mistake(error)
                files = {kind: [] for kind in KINDS.values()}


@contextlib.contextmanager
def stopped_by_ctrl_c(answer: "Answer", player: Player | None) -> Iterator[None]:
    """Ctrl-C ends the answer and its sound; a second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        if answer.stopped:
            raise KeyboardInterrupt
        answer.stop(heard=player.heard if player is not None else None)
        if player is not None:
            player.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def new_folder() -> Path:
    """Of this second, or the next that is free."""
    stem = RUNS / "chat" / time.strftime("%Y-%m-%d-%H%M%S")
    return next(
        p for n in range(1000) if not (p := stem.with_name(stem.name + (f"-{n}" if n else ""))).exists()
    )


def run(args: argparse.Namespace, text: str) -> int:
    """Hold a conversation.

    Args:
        args: of `omni chat`.
        text: the first question, asked with the media of the command line; "" and no media: none.

    Raises:
        UserError: the first question, the voice, the folder or a checkpoint cannot be used.
    """
    from transformers.utils import logging

    from omnilib.brain.ask import turn
    from omnilib.omni import Omni

    logging.disable_progress_bar()  # of a fraction of a second
    if args.voice_text and not args.voice:
        raise UserError("--voice-text is what is said in a recording: give the recording with --voice")
    files = {"audio": args.audio, "images": args.image, "videos": args.video}
    first = bool(text.strip() or any(files.values()))
    if first:
        turn(text, **files)  # before the seconds of loading
    if args.play and not args.text_only:
        find_player(24_000)
    given = {name: getattr(args, name) for name in ("voice", "voice_text", "language", "system")}
    given["voice"] = (
        str(Path(args.voice).absolute()) if args.voice and Path(args.voice).is_file() else args.voice
    )
    record = Record(args.out or new_folder(), {"scale": str(args.scale)} | given)
    try:
        omni = Omni.load(args.scale, args.device)
        conversation = omni.conversation(**{name: record.about.get(name) for name in given})
        conversation.messages += record.messages()
        talk = Talk(conversation, record, args)
        print(f"[{shown(record.folder)}]", file=sys.stderr, flush=True)
        if not args.text_only:
            conversation.warm()  # the first answer is heard sooner
        if first:
            talk.ask(text, files)
        talk.run()
    finally:
        record.close()
    return talk.code
