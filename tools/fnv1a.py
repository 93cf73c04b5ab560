"""The hash of goldens that are too long to keep: 64 bits of FNV-1a (Fowler, Noll and Vo), as the tests compute it."""


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"
