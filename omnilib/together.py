"""Answers of several conversations at once, padded to the longest: for evaluations, where throughput counts.

    talks = [omni.conversation("slt"), omni.conversation("rms")]
    replies = ask_many(talks, [{"audio": ["one.wav"]}, {"text": "And two?"}])

The brain writes all texts in one batch, then the mouth speaks them in one batch, each in its own voice. Rows and sound
of each are those of its text alone; so is the text, but for rounding: a batch is decoded in full precision.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from omnilib.brain.ask import turn
from omnilib.brain.decode import ends
from omnilib.bridge import SameIds, Words
from omnilib.errors import UserError
from omnilib.history import Turn
from omnilib.mouth.decode import Decoder, row_tokens
from omnilib.omni import Conversation
from omnilib.tracks import Mouth, Reply, Sound


def ask_many(
    talks: Sequence[Conversation], questions: Sequence[dict], speak: bool = True, **settings
) -> list[Reply]:
    """The next answer of every conversation.

    Args:
        talks: of one `Omni`, each once.
        questions: arguments of `Conversation.ask` (text, audio, images, videos) for each.
        speak: False: texts alone.
        settings: fields of `AnswerSettings`.

    Raises:
        UserError: not one question for each conversation, one twice, or of different models; as `Conversation.ask`.
    """
    if len(talks) != len(questions) or len({id(t) for t in talks}) < len(talks):
        raise UserError("give one question for each conversation, and each conversation once")
    if not talks:
        return []
    omni = talks[0].omni
    if any(t.omni is not omni for t in talks):
        raise UserError("these conversations are of different models: ask them one by one")
    asked = [turn(**question) for question in questions]
    ids = write(omni.brain, [[*t.messages, a] for t, a in zip(talks, asked, strict=True)], settings)
    texts = [omni.brain.processor.decode(own) for own in ids]
    mouths = [spoken(t, own, text) if speak else None for t, own, text in zip(talks, ids, texts, strict=True)]
    tokens = speak_rows([mouth for mouth in mouths if mouth is not None])
    replies = []
    for talk, a, text, mouth in zip(talks, asked, texts, mouths, strict=True):
        wave, flat = torch.empty(0), tokens[id(mouth)] if mouth is not None else []
        if flat:
            wave = Sound(omni.speech.codec, talk.warm()).push(flat, last=True)
        chunks = mouth.chunks if mouth is not None else []
        replies.append(Reply(text.strip(), wave, omni.speech.rate, chunks))
        Turn(talk.messages, a).keep(text)
    return replies


def write(brain, chats: list[list[dict]], settings: dict) -> list[list[int]]:
    """Ids of the answer to each chat, without the id that ends it."""
    batch = brain.processor.chat(chats).to(brain.model.device)
    chosen = replace(brain.settings, **settings)
    stops, rows, over = set(ends(brain.model, chosen)), [[] for _ in chats], [False] * len(chats)
    for step in brain.steps(batch, chosen):
        for n, new in enumerate(step.tolist()):
            over[n] = over[n] or new in stops
            rows[n] += [] if over[n] else [new]
    return rows


def spoken(talk: Conversation, ids: list[int], text: str) -> Mouth:
    """The mouth of a conversation with all of its text."""
    omni, speech = talk.omni, talk.omni.speech
    mouth = Mouth(speech.model, speech.front, talk.reference.prompt, talk.settings, omni.released)
    if omni.same:
        bridge = SameIds(omni.brain.processor.decode)
        mouth.push([i for new in ids for i in bridge.push(new, text)], last=True)
    else:
        mouth.push(Words(speech.front, talk.language).close(text), last=True)
    return mouth


def speak_rows(mouths: list[Mouth]) -> dict[int, list[int]]:
    """25 Hz tokens of each mouth, by its `id`: those with the same settings in one batch, pass after pass."""
    tokens: dict[int, list[int]] = {id(mouth): [] for mouth in mouths}
    while waiting := [mouth for mouth in mouths if not mouth.over]:
        group = [mouth for mouth in waiting if mouth.settings == waiting[0].settings]
        first = group[0]
        machines = [mouth.machine for mouth in group]
        prompts = [mouth.prompt for mouth in group]
        decoder = Decoder(first.model, first.front.layout, prompts, machines, first.settings)
        while not decoder.done:
            for n, row in decoder.step():
                tokens[id(group[n])] += row_tokens(row, first.front.layout, decoder.blank)
                group[n].rows.append(row)
    return tokens
