"""An independent reader of GGUF: numpy and the format's description, no code of ours, llama.cpp's or PyPI's gguf."""

import pathlib
import struct

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# type: name, values of a block, its bytes
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}


class Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def read(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def text(self):
        length = self.read("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            element, count = self.read("I"), self.read("Q")
            return [self.value(element) for _ in range(count)]
        return self.read(SCALARS[kind])


class GgufFile:
    """metadata: {key: (type, value)} in file order; tensors: {name: (type, shape, bytes)}, fastest dimension last."""

    def __init__(self, path):
        data = pathlib.Path(path).read_bytes()
        cursor = Cursor(data)
        if data[:4] != b"GGUF":
            raise ValueError(f"{path} is not GGUF")
        cursor.at = 4
        version, tensors, pairs = cursor.read("I"), cursor.read("Q"), cursor.read("Q")
        if version != 3:
            raise ValueError(f"{path}: version {version}")
        self.metadata = {}
        for _ in range(pairs):
            key, kind = cursor.text().decode(), cursor.read("I")
            self.metadata[key] = (kind, cursor.value(kind))
        places = []
        for _ in range(tensors):
            name, rank = cursor.text().decode(), cursor.read("I")
            shape = [cursor.read("Q") for _ in range(rank)][::-1]
            places.append((name, shape, cursor.read("I"), cursor.read("Q")))
        alignment = self.metadata.get("general.alignment", (4, 32))[1]
        start = -(-cursor.at // alignment) * alignment
        self.tensors, end = {}, start
        for name, shape, kind, offset in places:
            type_name, values, size = TYPES[kind]
            begin, count = start + offset, int(np.prod(shape)) // values * size
            if begin != end:
                raise ValueError(f"{path}: {name} begins at {begin}, the one before ends at {end}")
            self.tensors[name] = (type_name, shape, data[begin : begin + count])
            end = -(-(begin + count) // alignment) * alignment
            if any(data[begin + count : end]):
                raise ValueError(f"{path}: the padding after {name} is not zero")
        if end != len(data):
            raise ValueError(f"{path} has {len(data)} bytes, its tensors end at {end}")

    def dense(self, name):
        kind, shape, data = self.tensors[name]
        return dequantize(kind, data).reshape(shape)


def dequantize(kind, data):
    if kind == "F32":
        return np.frombuffer(data, np.float32)
    if kind == "F16":
        return np.frombuffer(data, np.float16).astype(np.float32)
    if kind == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    (size,) = [s for n, _, s in TYPES.values() if n == kind]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, size)
    scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        return blocks[:, 2:].view(np.int8).astype(np.float32) * scale
    nibbles = blocks[:, -16:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    if kind == "Q4_0":
        return (codes.astype(np.float32) - 8) * scale
    minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    return codes.astype(np.float32) * scale + minimum
