#!/usr/bin/env python3
"""Small tokenizers of the kinds that encoders have, as Hugging Face folders and, by llama.cpp's converter, as GGUF files.

Writes crates/basert-text/tests/data/encoders/NAME/ with the files that `transformers` saves, and a GGUF file that holds
nothing but the vocabulary. The ids of the corpus are for the test to compare: `hash` in `expected.json` is that of what
`transformers` finds in all texts, special tokens around them; those with the name of one in them, which is text here, are left
out. LLAMA_CPP is the folder of llama.cpp's sources.
"""

import base64
import json
import os
import sys
import tempfile
from pathlib import Path

LLAMA_CPP = Path(os.environ["LLAMA_CPP"])
sys.path[1:1] = [str(Path(__file__).parents[1]), str(LLAMA_CPP / "gguf-py"), str(LLAMA_CPP)]

import gguf
import sentencepiece as spm
from conversion import get_model_class
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer, XLMRobertaTokenizer

from fnv1a import fnv1a

DATA = Path(__file__).parents[2] / "crates/basert-text/tests/data"
CORPUS = json.loads((DATA / "corpus.json").read_text(encoding="utf-8"))
TEXT = [text for text in CORPUS if 20 < len(text) < 300 and text.isprintable() and "<" not in text and "[" not in text]
SIZE = 700
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<mask>"]
# Replaced characters, as `normalization_rule_tsv` wants them: as in what is published, all white space is a space, and "▁".
SPACES = [*range(0x9, 0xE), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x2581, 0x3000]
RULES = "FB01\t66 69\n41 30A\tC5\n45 301\tE9\n2460\t31\n" + "".join(f"{space:X}\t20\n" for space in SPACES)


def word_piece(cased):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=names, show_progress=False))
    # Trained ids of equal counts differ from run to run.
    pieces = names + sorted(set(tokenizer.get_vocab()) - set(names))
    return BertTokenizer({piece: id for id, piece in enumerate(pieces)}, do_lower_case=not cased)


def unigram():
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text(RULES)
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT), model_prefix=f"{folder}/m", vocab_size=1400, character_coverage=0.98, model_type="unigram",
            normalization_rule_tsv=str(rules), hard_vocab_limit=False, minloglevel=2, num_threads=1,
        )
        proto = pb.ModelProto.FromString(Path(f"{folder}/m.model").read_bytes())
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(name, 0.0) for name in names] + [(piece.piece, piece.score) for piece in proto.pieces if piece.type == 1]
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    # As published: by this the converter says whether runs of spaces count as one, which they always do.
    tokenizer = XLMRobertaTokenizer(pieces + [("<mask>", 0.0)], clean_up_tokenization_spaces=True)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    return tokenizer


def byte_pairs(names):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def roberta():
    vocabulary, merges = byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return RobertaTokenizer(vocabulary, merges)


def modernbert():
    """As ModernBERT has it: composed texts, and its special tokens by a template."""
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    vocabulary, merges = byte_pairs(names)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ids = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]")


# The tokenizer, the class of models that has it, and what llama.cpp calls its pre-tokenizer.
KINDS = {
    "word-piece": (lambda: word_piece(cased=False), "BertModel", "bert-bge"),
    "word-piece-cased": (lambda: word_piece(cased=True), "BertModel", "bert-bge"),
    "unigram": (unigram, "XLMRobertaModel", "default"),
    "roberta": (roberta, "RobertaModel", "roberta-bpe"),
    "modernbert": (modernbert, "ModernBertModel", "modern-bert"),
}


def convert(folder, path, kind, pre, size):
    """The vocabulary of a folder as a GGUF file."""
    hparams = {
        "architectures": [kind], "vocab_size": size, "num_hidden_layers": 1, "hidden_size": 4, "pad_token_id": 1,
        "intermediate_size": 4, "num_attention_heads": 1, "max_position_embeddings": 512, "type_vocab_size": 2, "local_attention": 4,
    }
    converter = get_model_class(kind)(folder, gguf.LlamaFileType.ALL_F32, path, eager=True, hparams=hparams)
    converter.get_vocab_base_pre = lambda tokenizer: pre
    converter.set_vocab()
    writer = converter.gguf_writer
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.close()


def make(name):
    build, kind, pre = KINDS[name]
    folder = DATA / "encoders" / name
    folder.mkdir(parents=True, exist_ok=True)
    build().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": [kind]}) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "config.json").unlink()
    convert(folder, folder.with_suffix(".gguf"), kind, pre, len(tokenizer))
    tokenizer.backend_tokenizer.encode_special_tokens = True
    texts = [text for text in CORPUS if not any(special in text for special in SPECIAL)]
    ids = [tokenizer.backend_tokenizer.encode(text).ids for text in texts]
    lines = "\n".join(" ".join(map(str, of_text)) for of_text in ids)
    (folder / "expected.json").write_text(json.dumps({"first": ids[0], "hash": fnv1a(lines.encode())}) + "\n")
    print(name, len(tokenizer), "tokens;", sum(file.stat().st_size for file in folder.iterdir()), folder.with_suffix(".gguf").stat().st_size)


if __name__ == "__main__":
    for name in sys.argv[1:] or KINDS:
        make(name)
