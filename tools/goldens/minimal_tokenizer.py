"""The smallest vocabularies that llama.cpp accepts."""

import gguf

import tiny


def add_to(writer, kind, token_types=None):
    """256 bytes, or characters, then <s>, </s>, <unk> and merged letters. `kind` is "llama", "gpt2", "bert" or "t5"."""
    special = ["[CLS]", "[SEP]", "[UNK]"] if kind == "bert" else ["<s>", "</s>", "<unk>"]
    letters = [f"{chr(97 + i)}{chr(97 + i)}" for i in range(26)]
    if kind == "bert":
        # Each character at the beginning of a word, and within.
        characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
        tokens = [f"▁{character}" for character in characters] + characters
        tokens += [f"[unused{i}]" for i in range(256 - len(tokens))] + special
        types = [gguf.TokenType.NORMAL] * 256
    elif kind == "t5":
        characters = [chr(code) for code in [*range(32, 127), *range(160, 321)]]
        tokens = ["▁" if character == " " else character for character in characters] + special + letters
        types = [gguf.TokenType.NORMAL] * 256
    elif kind == "llama":
        tokens = [f"<0x{byte:02X}>" for byte in range(256)] + special + ["▁", *(chr(97 + i) for i in range(26))]
        types = [gguf.TokenType.BYTE] * 256
    else:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        tokens = [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)] + special + letters
        types = [gguf.TokenType.NORMAL] * 256
    types += [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.UNKNOWN]
    unused = tiny.VOCABULARY - len(tokens)
    tokens += [f"<unused{i}>" for i in range(unused)]
    types += [gguf.TokenType.NORMAL] * (tiny.VOCABULARY - len(types) - unused) + [gguf.TokenType.UNUSED] * unused
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if kind in ("llama", "t5"):
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([-float(i) for i in range(tiny.VOCABULARY)])
    elif kind == "gpt2":
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges([f"{pair[0]} {pair[1]}" for pair in letters])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_unk_token_id(258)
    writer.add_add_bos_token(kind != "gpt2")
    if kind in ("bert", "t5"):
        writer.add_add_eos_token(True)
    if token_types is not None:
        writer.add_token_type_count(token_types)
