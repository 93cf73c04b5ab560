"""The prompts of the greedy references: own sentences, or text generated from them."""

import random

SHORT = {
    "hello": "Hello",
    "sentence": "The lighthouse keeper climbed the stairs every evening because",
    "prose": (
        "When the river froze that winter, the ferry stayed tied to its post and the two villages stopped speaking. "
        "Letters were left in a tin box under the bridge. Marta collected them on Sundays, and on the third Sunday she found"
    ),
    "question": "Question: Why does bread rise when it is baked?\nAnswer:",
    "list": "Five things to pack for a week in the mountains:\n1. A warm jacket\n2.",
    "spaces": "Name      Count\n-----     -----\napples       12\npears         7\nplums   ",
    "rust": (
        "/// Returns the greatest common divisor of two numbers.\n"
        "fn gcd(mut a: u64, mut b: u64) -> u64 {\n    while b != 0 {\n"
    ),
    "python": (
        "def moving_average(values, width):\n"
        '    """Average of every `width` neighbouring values."""\n'
        "    result = []\n    for i in range("
    ),
    "c": "#include <stdio.h>\n\nint main(int argc, char **argv) {\n    for (int i = 1; i < argc; i++) {\n",
    "javascript": "async function loadUser(id) {\n  const response = await fetch(`/api/users/${id}`);\n  if (!response.ok) {\n",
    "sql": "-- The ten customers who spent most in 2021\nSELECT customer.name, SUM(",
    "html": '<!DOCTYPE html>\n<html lang="en">\n<head>\n  <meta charset="utf-8">\n  <title>Garden diary</title>\n',
    "shell": "#!/bin/sh\n# Count the lines of every text file below the current folder.\nfind . -name '*.txt' |",
    "json": '{\n  "city": "Oslo",\n  "population": 709037,\n  "districts": [\n    {"name": "Frogner", "id": 5},\n',
    "maths": "Solve for x: 3x + 7 = 22.\nFirst subtract 7 from both sides: 3x = 15.\nThen",
    "numbers": "2, 3, 5, 7, 11, 13, 17, 19, 23,",
    "latex": "\\begin{theorem}\nLet $f : \\mathbb{R} \\to \\mathbb{R}$ be continuous and let $f(0) < 0 < f(1)$. Then",
    "german": "Der alte Bahnhof wurde im Frühjahr wieder geöffnet. Zum ersten Mal seit zwanzig Jahren hielt dort ein Zug, und",
    "french": "Chaque matin, la boulangère pose une chaise devant sa porte. « C'est pour le chat », dit-elle,",
    "chinese": "春天来了,河边的柳树发芽了。孩子们放学以后喜欢到河边去",
    "japanese": "昨日は雨が降っていたので、私たちは家で料理をしました。最初に",
    "korean": "우리 할머니는 매일 아침 시장에 가십니다. 오늘은",
    "arabic": "في الصباح الباكر خرج الصياد إلى البحر ومعه شبكته القديمة، وعندما",
    "hindi": "गाँव के बीच में एक बड़ा पेड़ है। हर शाम लोग उसके नीचे बैठकर",
    "russian": "Осенью мы собирали яблоки в старом саду. Дедушка говорил, что",
    "emoji": "Weather this week: Mon ☀️ Tue 🌧️ Wed ⛈️ Thu 👩‍🚀🚀 Fri",
    "bytes": "Mixed: na\u00efve caf\u00e9 \u200b\u00a0 \U0001d54f\U0001f9ff \ue000 \u0301 end.",
}

# What differs by model: a prompt of exactly one token, and its chat format.
OWN = {
    "smollm2": {
        "one-token": "The",
        "chat": (
            "<|im_start|>system\nYou are a helpful assistant who answers in one sentence.<|im_end|>\n"
            "<|im_start|>user\nWhat is the capital of Portugal?<|im_end|>\n<|im_start|>assistant\n"
        ),
        "chat-turns": (
            "<|im_start|>user\nGive me a name for a black cat.<|im_end|>\n<|im_start|>assistant\nShadow.<|im_end|>\n"
            "<|im_start|>user\nAnd write a short poem about it.<|im_end|>\n<|im_start|>assistant\n"
        ),
    },
    "gemma3": {
        "one-token": "",
        "chat": (
            "<start_of_turn>user\nAnswer in one sentence.\n\nWhat is the capital of Portugal?<end_of_turn>\n"
            "<start_of_turn>model\n"
        ),
        "chat-turns": (
            "<start_of_turn>user\nGive me a name for a black cat.<end_of_turn>\n<start_of_turn>model\nShadow.<end_of_turn>\n"
            "<start_of_turn>user\nAnd write a short poem about it.<end_of_turn>\n<start_of_turn>model\n"
        ),
    },
}

PEOPLE = ["Anna", "Boris", "Chidi", "Dalia", "Emre", "Farah", "Goran", "Hana"]
PLACES = ["the harbour", "the old mill", "the market", "the library", "the north gate", "the orchard"]
THINGS = ["a brass lamp", "two letters", "a basket of pears", "the spare key", "a map of the coast", "seven candles"]
TIMES = ["On Monday", "Before noon", "After the storm", "Late in the evening", "Two days later", "At dawn"]
ENDINGS = [
    "and nobody asked why.",
    "because the bridge was closed again.",
    "although the road was covered with snow.",
    "and wrote it down in the ledger.",
    "while the others were still asleep.",
    "so the plan had to change.",
]


def story(random, sentences):
    """A chronicle without a plot."""
    lines = [
        f"{random.choice(TIMES)}, {random.choice(PEOPLE)} carried {random.choice(THINGS)} from {random.choice(PLACES)} "
        f"to {random.choice(PLACES)}, {random.choice(ENDINGS)}"
        for _ in range(sentences)
    ]
    return " ".join(lines)


def log(random, lines):
    """What a server might write."""
    entries = []
    for i in range(lines):
        minute, second = divmod(i * 7 + random.randrange(7), 60)
        status = random.choice([200, 200, 200, 304, 404, 503])
        entries.append(f"2024-03-05T10:{minute:02}:{second:02}Z GET /items/{random.randrange(10000)} {status} {random.randrange(900)}ms")
    return "\n".join(entries)


def functions(random, count):
    """Small Python functions that do arithmetic."""
    return "\n\n".join(
        f"def scale_{i}(value):\n    return value * {random.randrange(2, 99)} + {random.randrange(99)}" for i in range(count)
    )


def long_prompts():
    """Prompts of about 500, 1,000 and 2,000 tokens."""
    source = random.Random(20240305)
    return {
        "story-500": story(source, 18) + " In the end,",
        "code-500": functions(source, 20) + "\n\ndef scale_20(value):\n",
        "log-1000": log(source, 28) + "\n",
        "story-1000": story(source, 36) + " To sum up, the people in this chronicle are",
        "mixed-2000": (
            "# Chronicle\n\n" + story(source, 44) + "\n\n# Access log\n\n" + log(source, 16) + "\n\n# Code\n\n"
            + functions(source, 16) + "\n\n# Summary\n\nThe chronicle tells of"
        ),
    }


def prompts(model):
    """Every prompt of a model, by name."""
    return SHORT | OWN[model] | long_prompts()
