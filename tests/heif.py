"""Tiny HEIC files, put together box by box around pictures that x265 has encoded."""

import base64
import struct

# Of 128 x 64 pixels: their decoder's settings and their data. The first two have four quarters,
# red, green, blue and grey, of 8 bits and of 10; the third is grey and has two halves.
PICTURES = {
    8: (
        "0R#vD005pi000009`FGC|M>U-01pFT0096OKmiN^|NjIC00093o;Uyi0{{RXx&lC90096gLID8;2mk;B0G>Di00RI39"
        "*_bA2rRc!NlkNb5YS*i000I+00093LSg^`00=|@!E%NS0we",
        "0000~C;_h%fLl&eR7d~*fDga-4tf8>Zcsnq|NLc~kLxOj|Ce4683D$&dy@V+4){XGog(0-Nf`IW-BdAS?c93)ox%U(N>"
        "f%Q-}#HT^T#mu7@}M_",
    ),
    10: (
        "0R#vD005jg000009`FGC|N8m>01pFT0096OKmiN^|NjIC00093oHzgg0{{RXx&lC90096iLID8;2mk;B0Gv1g00RI39"
        "*_bA2qw#QB$U@T0SyKO00093WB>pI00ban00969L;=Bah71BE",
        "0000$C;_h%faNpczyI_aqyO!`&kx;By2TU!?fEqy=Gs&L;lnwMmJ9#z7H0pz@^AjVVX>U;*F`UXs-HjW>W1gQ",
    ),
    "grey": (
        "0R#vD005u(000009`FGC{P_3)01pFT0096OKmiN^|NjIC00093pZEX(0{{RXx&lC90096eLID8;2mk;B0H62(00RI39"
        ">73>1(xbbDXwe?00093$N&HX00=;000968L;=Baup&S",
        "0000PC;_e~!}KZj55kTW{h?p~;cyAN|N1l@SO",
    ),
}
QUARTERS = {  # red, green; blue, grey: as decoded, of all bits
    8: [[[225, 25, 25], [24, 225, 25]], [[26, 25, 225], [150, 150, 150]]],
    10: [[[900, 100, 100], [100, 900, 100]], [[100, 100, 900], [602, 602, 602]]],
}
HALVES = (200, 60)
ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"
GAIN_MAP = b"urn:com:apple:photo:2020:aux:hdrgainmap\0"


def box(kind: bytes, *parts: bytes) -> bytes:
    contents = b"".join(parts)
    return struct.pack(">I4s", 8 + len(contents), kind) + contents


def full_box(kind: bytes, version: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24), *parts)


def heic(
    bits: int = 8,
    *,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    profile: bytes | None = None,
    codes: tuple[int, int] = (1, 13),
    turn: int = 0,
    auxiliary: bytes | None = None,
) -> bytes:
    """Build a HEIC of the quarters.

    Args:
        bits: 8 or 10.
        exif: without the "Exif" header.
        xmp: an XMP packet.
        profile: the colour profile.
        codes: the numbers of primaries and transfer function that it tells if there is no profile.
        turn: quarters of a turn, anticlockwise, by which it is to be shown.
        auxiliary: what the halves are to it: ALPHA or GAIN_MAP.
    """
    settings, picture = map(base64.b85decode, PICTURES[bits])
    size = full_box(b"ispe", 0, struct.pack(">II", 128, 64))
    colours = b"nclx" + struct.pack(">3HB", *codes, 6, 128)
    colours = b"prof" + profile if profile else colours
    properties = [box(b"hvcC", settings), size, box(b"colr", colours), box(b"irot", bytes([turn]))]
    uses = {1: [0x81, 2, 3, 0x84]}  # by number from 1; 0x80 marks what a reader must understand
    items, links = [(b"hvc1\0", picture)], []
    if auxiliary:
        settings, halves = map(base64.b85decode, PICTURES["grey"])
        properties += [box(b"hvcC", settings), full_box(b"auxC", 0, auxiliary)]
        items.append((b"hvc1\0", halves))
        uses[len(items)] = [0x85, 2, 0x86, 0x84]
        links.append(box(b"auxl", struct.pack(">3H", len(items), 1, 1)))
    if exif:
        items.append((b"Exif\0", struct.pack(">I", 6) + b"Exif\0\0" + exif))
        links.append(box(b"cdsc", struct.pack(">3H", len(items), 1, 1)))
    if xmp:
        items.append((b"mime\0application/rdf+xml\0", xmp))
        links.append(box(b"cdsc", struct.pack(">3H", len(items), 1, 1)))
    head = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    start = len(head) + len(_meta(items, links, properties, uses, 0)) + 8
    data = box(b"mdat", *(contents for _, contents in items))
    return head + _meta(items, links, properties, uses, start) + data


def _meta(items: list, links: list, properties: list, uses: dict, start: int) -> bytes:
    """Describe the items, whose contents follow each other from `start` on."""
    names, places = [], []
    for number, (kind, contents) in enumerate(items, 1):
        names.append(full_box(b"infe", 2, struct.pack(">2H", number, 0), kind))
        places.append(struct.pack(">3H2I", number, 0, 1, start, len(contents)))
        start += len(contents)
    count = struct.pack(">H", len(items))
    applied = [struct.pack(">HB", item, len(each)) + bytes(each) for item, each in uses.items()]
    associations = full_box(b"ipma", 0, struct.pack(">I", len(uses)), *applied)
    return full_box(
        b"meta",
        0,
        full_box(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
        full_box(b"pitm", 0, struct.pack(">H", 1)),
        full_box(b"iinf", 0, count, *names),
        full_box(b"iref", 0, *links),
        box(b"iprp", box(b"ipco", *properties), associations),
        full_box(b"iloc", 0, b"\x44\0", count, *places),
    )
