#!/usr/bin/env python3
"""Tiny models that rank, or embed with dense layers of their own: their folders, and what sentence-transformers makes of some
texts with them. Writes crates/basert-testkit/data/rankers/. `pip install sentence-transformers` beside requirements.txt.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, models
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram, WordPiece
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

DATA = Path(__file__).parents[2] / "crates/basert-testkit/data/rankers"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!-'"
QUERY = "what is a lighthouse?"
DOCUMENTS = [
    "a lighthouse is a tower with a lamp, that guides ships.",
    "the stock market fell today.",
    "x",
    "keepers lit the lamp at dusk - and slept by day",
]
SMALL = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
)


def word_piece(inputs=("input_ids", "token_type_ids", "attention_mask")):
    """As BERT's: [CLS] a [SEP] b [SEP], of two types."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS)]
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    names = dict(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=list(inputs), **names), len(tokens)


def untyped():
    """The same for models without types."""
    return word_piece(["input_ids", "attention_mask"])


def unigram():
    """As XLM-RoBERTa's: <s> a </s> </s> b </s>."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = Tokenizer(Unigram([(token, -float(i)) for i, token in enumerate(tokens)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names), len(tokens)


RANKERS = {
    "bert": (word_piece, "bert", dict(type_vocab_size=2)),
    "bert-raw": (word_piece, "bert", dict(
        type_vocab_size=2,
        sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
    )),
    "xlm-roberta": (unigram, "xlm-roberta", dict(type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)),
    "distilbert": (untyped, "distilbert", dict(dim=64, hidden_dim=96, n_layers=2, n_heads=4)),
    "electra": (word_piece, "electra", dict(embedding_size=64, type_vocab_size=2)),
    "modernbert": (untyped, "modernbert", dict(
        classifier_pooling="mean", pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
        local_attention=16, global_attn_every_n_layers=2,
    )),
    "qwen3": (untyped, "qwen3", dict(num_key_value_heads=2, head_dim=16, pad_token_id=0, tie_word_embeddings=True)),
}


def save(model, name):
    """With weights that differ enough for scores to differ, in bfloat16."""
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
        elif parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def ranker(name):
    make, kind, more = RANKERS[name]
    tokenizer, size = make()
    config = AutoConfig.for_model(kind, **(SMALL | dict(vocab_size=size, num_labels=1) | more))
    torch.manual_seed(sum(map(ord, name)))
    folder = save(AutoModelForSequenceClassification.from_config(config), name)
    tokenizer.save_pretrained(folder)
    model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    pairs = [(QUERY, document) for document in DOCUMENTS]
    encoded = [tokenizer(*pair) for pair in pairs]
    expected = {
        "query": QUERY,
        "documents": DOCUMENTS,
        "tokens": [e["input_ids"] for e in encoded],
        "types": [e.get("token_type_ids", [0] * len(e["input_ids"])) for e in encoded],
        # One by one, as padding has to make no difference.
        "scores": [float(model.predict([pair])[0]) for pair in pairs],
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    print(name, expected["scores"])


def dense(name, layers):
    """An encoder with dense layers after pooling."""
    tokenizer, size = word_piece()
    config = AutoConfig.for_model("bert", **(SMALL | dict(vocab_size=size, type_vocab_size=2)))
    torch.manual_seed(sum(map(ord, name)))
    folder = save(AutoModel.from_config(config), name)
    tokenizer.save_pretrained(folder)
    inner = models.Transformer(str(folder))
    modules, width = [inner, models.Pooling(64, "mean")], 64
    for out, bias, activation in layers:
        modules.append(models.Dense(width, out, bias=bias, activation_function=activation))
        width = out
    model = SentenceTransformer(modules=[*modules, models.Normalize()], device="cpu").float()
    model.save(str(folder), create_model_card=False)
    texts = [QUERY, *DOCUMENTS]
    vectors = [model.encode([text])[0] for text in texts]
    expected = {"texts": texts, "vectors": [[float(x) for x in vector] for vector in vectors]}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, np.array(vectors).shape)


for name in RANKERS:
    ranker(name)
dense("dense-tanh", [(48, True, torch.nn.Tanh())])
dense("dense-two", [(96, False, torch.nn.Identity()), (32, False, torch.nn.Identity())])
