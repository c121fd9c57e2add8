"""The runner of data curation: a recipe names steps, each step turns records into records and writes its
own manifest.

    curate(Path("in/manifest.jsonl"), "wild", Path("out"), workers=2)

A record is a JSON dict (fields of `omnilib.data.FIELDS`; text, language, speaker, split, duration and rate
may be null until a step fills them). The input manifest is cut into parts of about `part_seconds` of audio;
a worker takes a part through all the consecutive "map" steps (audio is decoded once) and writes the part's
results under a temporary name, then renames. When all parts are there they are joined, in order, into one
manifest a step. So the result does not depend on the number of workers, on the engine or on kills, and a
second run does only what is missing. A step of scope "all" gets every record as one part.

    out/00_input/ ... NN_<step>/   manifest.jsonl, dropped.jsonl, done.json (last: hashes, counts, hours)
    out/audio/                     FLAC files the steps wrote
    out/input/                     links to input files still in use
    out/work, out/tmp              unfinished parts, half-written files
    out/manifest.jsonl, dropped.jsonl, funnel.json, card.md

Inside a run a path starts with `input/` (below the input manifest's folder) or with `audio/` (written by a
step). On a cluster `out` and the input lie on a file system that all nodes share.

Units: seconds, hours where named so; T samples, float32 in [-1, 1], mono.

    audio.py     sound of records              run.py       what is not done yet
    step.py      what a step is                parts.py     some records through some steps
    recipe.py    YAML -> steps                 engine_*.py  where parts are worked on
    manifest.py  the input, checked            join.py      results of parts -> a step's manifest
    files.py     complete or absent; hashes    funnel.py    counts by step and reason, data card
"""

from data_prep.pipeline.audio import Audio
from data_prep.pipeline.manifest import check_input
from data_prep.pipeline.recipe import RECIPES, load_recipe
from data_prep.pipeline.run import curate
from data_prep.pipeline.step import STEPS, Step, dropped, register

__all__ = ["Audio", "RECIPES", "STEPS", "Step", "check_input", "curate", "dropped", "load_recipe", "register"]
