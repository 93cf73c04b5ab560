"""The smallest vocabularies that llama.cpp accepts."""

import gguf

import tiny


def add_to(writer, kind):
    """256 bytes, then <s>, </s>, <unk> and merged letters. `kind` is "llama" or "gpt2"."""
    special = ["<s>", "</s>", "<unk>"]
    letters = [f"{chr(97 + i)}{chr(97 + i)}" for i in range(26)]
    if kind == "llama":
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
    if kind == "llama":
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([-float(i) for i in range(tiny.VOCABULARY)])
    else:
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges([f"{pair[0]} {pair[1]}" for pair in letters])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_unk_token_id(258)
    writer.add_add_bos_token(kind == "llama")
