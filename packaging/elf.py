"""Drops what a compiled module brings for debuggers: three quarters of the zipapp.

A 64-bit little-endian ELF file, as both architectures use:

    0   header   at 32: offset of the program headers (u64)    at 40: of the section headers (u64)
                 at 54: size of a program header (u16), their number (u16)
                 at 58: size of a section header (u16), their number (u16), index of names (u16)
    …   segments: what the program headers say; all that is ever loaded, with the dynamic symbols
    …   debugging information, the symbols for it, and the section headers

The loader looks at segments alone, so the file can end where the last of them does.
"""

import struct

import toolbox

HEADER = struct.Struct("<16s HHI QQQ I HHHHHH")
SEGMENT = struct.Struct("<II QQQQQQ")
assert HEADER.size == 64
assert SEGMENT.size == 56
MAGIC = b"\x7fELF\x02\x01"


def without_debugging(module: bytes) -> bytes:
    """The module as it is loaded. Raises BuildError if it is none of those above."""
    if not module.startswith(MAGIC):
        raise toolbox.BuildError("not a 64-bit little-endian ELF file")
    fields = list(HEADER.unpack_from(module))
    first, size, count = fields[5], fields[9], fields[10]
    if size != SEGMENT.size:
        raise toolbox.BuildError(f"program headers of {size} bytes")
    end = first + size * count
    for number in range(count):
        _, _, offset, _, _, in_file, _, _ = SEGMENT.unpack_from(module, first + size * number)
        end = max(end, offset + in_file)
    fields[6] = 0  # no section headers:
    fields[12] = fields[13] = 0  # none, and no names of them
    return HEADER.pack(*fields) + module[HEADER.size : end]
