#!/usr/bin/env python3
"""Writes tests/fuzz/seeds: valid tiny files for the targets whose files are not text. Text seeds are kept as they are."""
import json
import struct
from pathlib import Path

SEEDS = Path(__file__).resolve().parent / "seeds"


def put(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def safetensors(entries, metadata=None):
    """entries: name -> (dtype, shape, bytes)"""
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, (dtype, shape, content) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    if isinstance(content, float):
        return varint(number << 3 | 5) + struct.pack("<f", content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def sentencepiece():
    pieces = [(b"<unk>", 2), (b"<s>", 3), (b"</s>", 3)] + [(b"<0x%02X>" % byte, 6) for byte in range(256)]
    pieces += [(piece.encode(), 1) for piece in ("\u2581", "\u2581t", "he", "\u2581the", "h", "e", "t", "l", "o")]
    model = b"".join(field(1, field(1, piece) + field(2, -float(rank)) + field(3, kind)) for rank, (piece, kind) in enumerate(pieces))
    trainer = field(3, 2) + field(35, 1)
    normalizer = field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1)
    return model + field(2, trainer) + field(3, normalizer)


def gptq_tensor(part, dtype, shape, fill):
    """What gptq_view_fuzzer.cpp reads; part: 0 qweight, 1 qzeros, 2 scales, 3 g_idx, 4 bias; dtype: 0 I32, 1 F16."""
    return bytes([part, dtype, len(shape)]) + b"".join(struct.pack("<H", size) for size in shape) + bytes([fill])


def gptq_layer(config, bits, in_features, out_features, groups, extra=b"", awq=False):
    codes = [in_features, out_features // 8] if awq else [in_features * bits // 32, out_features]
    tensors = gptq_tensor(0, 0, codes, 77) + gptq_tensor(1, 0, [groups, out_features * bits // 32], 99) + gptq_tensor(2, 1, [groups, out_features], 0)
    return json.dumps(config).encode() + b"\n" + tensors + extra


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(metadata, tensors, alignment=32):
    """metadata: key -> (type, bytes); tensors: name -> (type, dimensions as in the file, bytes)"""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        head += gguf_string(key) + struct.pack("<I", kind) + value
    data = b""
    for name, (kind, dimensions, content) in tensors.items():
        head += gguf_string(name) + struct.pack("<I", len(dimensions)) + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        head += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % alignment)
    return head + bytes(-len(head) % alignment) + data


def gguf_llama(kind, block_bytes):
    """One layer, 32 wide; projections of a type with blocks of 32."""
    u32, f32, text, array = 4, 6, 8, 9
    number = lambda value: (u32, struct.pack("<I", value))
    words = ["<unk>", "<s>", "</s>", "a"]
    metadata = {"general.architecture": (text, gguf_string("llama")), "llama.block_count": number(1), "llama.context_length": number(64),
                "llama.embedding_length": number(32), "llama.feed_forward_length": number(32), "llama.attention.head_count": number(2),
                "llama.attention.head_count_kv": number(1), "llama.vocab_size": number(4), "llama.rope.dimension_count": number(16),
                "llama.attention.layer_norm_rms_epsilon": (f32, struct.pack("<f", 1e-5)),
                "llama.rope.freq_base": (f32, struct.pack("<f", 1e4)),
                "tokenizer.ggml.model": (text, gguf_string("llama")),
                "tokenizer.ggml.tokens": (array, struct.pack("<IQ", text, len(words)) + b"".join(map(gguf_string, words))),
                "tokenizer.ggml.scores": (array, struct.pack("<IQ4f", f32, 4, 0, 0, 0, -1)),
                "tokenizer.ggml.token_type": (array, struct.pack("<IQ4i", 5, 4, 2, 3, 3, 1)),
                "tokenizer.ggml.bos_token_id": number(1), "tokenizer.ggml.eos_token_id": number(2)}
    matrix = lambda rows: (kind, [32, rows], bytes(rows * block_bytes))
    norm = (0, [32], bytes(32 * 4))
    tensors = {"token_embd.weight": (1, [32, 4], bytes(4 * 32 * 2)), "output_norm.weight": norm, "blk.0.attn_norm.weight": norm,
               "blk.0.ffn_norm.weight": norm, "blk.0.attn_q.weight": matrix(32), "blk.0.attn_k.weight": matrix(16),
               "blk.0.attn_v.weight": matrix(16), "blk.0.attn_output.weight": matrix(32), "blk.0.ffn_gate.weight": matrix(32),
               "blk.0.ffn_up.weight": matrix(32), "blk.0.ffn_down.weight": matrix(32)}
    return gguf(metadata, tensors)


def main():
    for name, bits, settings in (("v1", 4, {}), ("v2", 2, {"checkpoint_format": "gptq_v2"}), ("planar", 3, {"checkpoint_format": "gptq_p"}),
                                 ("model", 8, {"meta": {"quantizer": ["gptqmodel:7"]}, "dynamic": {"a": 1}})):
        put("gptq_view", name, gptq_layer({"bits": bits, "group_size": 32, **settings}, bits, 64, 96, 2))
    put("gptq_view", "sorted", gptq_layer({"bits": 4, "group_size": 32}, 4, 96, 32, 3, gptq_tensor(3, 0, [96], 9) + gptq_tensor(4, 1, [32], 0)))
    put("gptq_view", "awq", gptq_layer({"w_bit": 4, "q_group_size": 64, "version": "GEMM"}, 4, 128, 32, 2, awq=True))
    put("safetensors", "two", safetensors({"a.weight": ("F32", [2, 2], bytes(16)), "b": ("BF16", [3], bytes(6))}, {"format": "pt"}))
    put("safetensors", "empty", safetensors({"none": ("I64", [0, 4], b""), "scalar": ("U8", [], b"\1")}))
    put("tokenizer_model", "bpe", sentencepiece())
    for name, kind, block_bytes in [("q4_0", 2, 18), ("q4_1", 3, 20), ("q5_1", 7, 24), ("q8_0", 8, 34), ("f16", 1, 64)]:
        put("gguf", name, gguf_llama(kind, block_bytes))


if __name__ == "__main__":
    main()
