#!/usr/bin/env python3
"""Writes the reference libraries' encodings of the corpus: crates/basert-text/tests/data/ids/*.txt, and the small
unigram models beside them.

Run by hand after tools/tokenizer-corpus.py and tools/fetch-test-data, in a virtual environment outside the repository:

    pip install tokenizers==0.23.3 transformers==5.23.0 sentencepiece protobuf gguf

Each line belongs to one string of the corpus and has four fields, separated by tabs:

1. the ids, with special tokens in the text recognised;
2. the ids with them taken as text, or `=` if the same;
3. the text decoded from the ids, or `=` if it is the string;
4. the text decoded without special tokens, or `=` if it is that of field 3.

Ids are written out if there are at most 6, else as their number and a hash (FNV-1a of their decimal notation, joined by
spaces). Decoded texts are written as a hash of their UTF-8.
"""

import json
import os
import pathlib
import sys
import tempfile

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fnv1a import fnv1a

ROOT = pathlib.Path(os.environ.get("BASERT_TEST_DATA") or pathlib.Path.home() / ".cache" / "basert-test")
DATA = pathlib.Path(__file__).parent.parent / "crates/basert-text/tests/data"
CORPUS = json.loads((DATA / "corpus.json").read_text(encoding="utf-8"))


def compact(ids):
    text = " ".join(map(str, ids))
    return text if len(ids) <= 6 else f"{len(ids)}:{fnv1a(text.encode())}"


def write(name, encode, decode):
    """`encode(text, parse_special)` and `decode(ids, skip_special)` are the reference."""
    lines = []
    for text in CORPUS:
        ids, plain = encode(text, True), encode(text, False)
        whole, visible = decode(ids, False), decode(ids, True)
        lines.append("\t".join([
            compact(ids),
            "=" if plain == ids else compact(plain),
            "=" if whole == text else fnv1a(whole.encode()),
            "=" if visible == whole else fnv1a(visible.encode()),
        ]))
    path = DATA / "ids" / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(name, path.stat().st_size, "bytes")


def write_from_json(name, tokenizer):
    def encode(text, parse_special):
        tokenizer.encode_special_tokens = not parse_special
        return tokenizer.encode(text, add_special_tokens=False).ids

    write(name, encode, lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip))


def smollm2():
    """The tokenizer of SmolLM2, out of its GGUF file, put together as its authors published it."""
    from gguf import GGUFReader

    fields = GGUFReader(ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").fields
    value = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    tokens, types = value("tokens"), value("token_type")
    merges = [tuple(merge.split(" ")) for merge in value("merges")]
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, type in zip(tokens, types) if type == 3])
    return tokenizer


UNIGRAM_TEXT = [text for text in CORPUS if 20 < len(text) < 300 and text.isprintable() and "<" not in text]
# Replaced characters, as `normalization_rule_tsv` wants them: code points in hexadecimal.
UNIGRAM_RULES = "FB01\t66 69\nFB02\t66 6C\n3000\t20\n41\t61\n45 301\tE9\nA0\t20\n2460\t31\n"


def unigram(name, **options):
    """Trains a small unigram model, and writes it in the terms of GGUF with its ids of the corpus, special tokens taken
    as text: normalized by SentencePiece, then cut by the tokenizers library (whose sums are in double precision, as
    everybody's but SentencePiece's own)."""
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as pb

    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder) / "rules.tsv"
        rules.write_text(UNIGRAM_RULES)
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(UNIGRAM_TEXT), model_prefix=f"{folder}/m", vocab_size=1800, character_coverage=0.98, model_type="unigram",
            normalization_rule_tsv=str(rules), hard_vocab_limit=False, minloglevel=2, num_threads=1, **options,
        )
        model = pathlib.Path(f"{folder}/m.model").read_bytes()
    proto = pb.ModelProto.FromString(model)
    # The numbers of the kinds are the same in both formats.
    vocabulary = {
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "precompiled_charsmap": proto.normalizer_spec.precompiled_charsmap.hex(),
        "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "treat_whitespace_as_suffix": proto.trainer_spec.treat_whitespace_as_suffix,
        "unknown_token_id": proto.trainer_spec.unk_id,
    }
    (DATA / f"{name}.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    processor = spm.SentencePieceProcessor(model_proto=model)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    cutter = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))
    lines = [compact(cutter.encode(processor.normalize(text)).ids) for text in CORPUS]
    (DATA / "ids" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    print(name, len(proto.pieces), "tokens")


def main(names):
    for folder in sorted((ROOT / "tokenizers").iterdir()):
        if not names or folder.name in names:
            write_from_json(folder.name, Tokenizer.from_file(str(folder / "tokenizer.json")))
    if not names or "smollm2" in names:
        write_from_json("smollm2", smollm2())
    if not names or "unigram" in names:
        unigram("unigram", byte_fallback=False)
        unigram("unigram-bytes", byte_fallback=True, remove_extra_whitespaces=False, treat_whitespace_as_suffix=True)


if __name__ == "__main__":
    main(sys.argv[1:])
