"""Known answers and malformed files, made from docs/FORMAT.md by the second reader, without hushfs.

    vectors.py check    compares them with vectors.json and faults/
    vectors.py write    writes them, for a change of the format

Every random value is fixed. tests/format.rs has the same ones, and the error that belongs to each fault.
"""

import json
import struct
import sys
from pathlib import Path

from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from decryptor import (
    add, b64, blake3, derive, encode_context, lanes, prf, recovery_key_text, seal_block, siv_open, siv_seal, u16, u32, u64, wrap,
)

HERE = Path(__file__).parent
KEY, SECRET = bytes(range(32)), bytes(range(0x80, 0xA0))
VAULT, FILE, DIRECTORY, KEYSTORE, KEY_ID = (bytes([byte]) * 16 for byte in (0x11, 0x22, 0x33, 0x44, 0x55))
SALT, NONCE = b"\x66" * 16, b"\x77" * 24
EPOCH, SUITE, NAME = 3, 1, b"name"
NAMES = [b"a", b"sixteen bytes ok", b"seventeen bytes !", b"n" * 160, b"n" * 161, b"n" * 255, b"caf\xe9"]


def derivations():
    file = KEY + FILE + u16(SUITE)
    stretched = hash_secret_raw(b"passphrase", SALT, 1, 8192, 1, 32, Type.ID, 19)
    inputs = {
        "committing wrap": (KEY + SALT + blake3(b"purpose").digest(), 76),
        "header wrapping key": (KEY + VAULT, 32),
        "names root wrapping key": (KEY + VAULT, 32),
        "vault header mac key": (KEY + VAULT, 32),
        "root directory id": (KEY, 16),
        "directory id": (KEY + DIRECTORY + NAME, 16),
        "directory name key": (KEY + DIRECTORY, 32),
        "directory header key": (KEY, 32),
        "long name": (b"sealed name", 33),
        "symlink key": (KEY, 32),
        "xattr key": (KEY, 32),
        "xattr name key": (KEY, 32),
        "block key": (file, 32),
        "seal key": (file, 32),
        "file key commitment": (file, 32),
        "keystore mac key": (KEY, 32),
        "key material id": (KEY, 32),
        "key file slot": (b"contents of the key file, longer than 32 bytes", 32),
        "recovery slot": (KEY, 32),
        "recovery key checksum": (KEY, 3),
        "passphrase slot": (stretched, 32),
        "slot authenticator": (KEY, 32),
    }
    return {f"hushfs v1 {context}": derive(context, *given).hex() for context, given in inputs.items()}


def header(data_key=SECRET, vault=VAULT, commitment=None):
    commitment = commitment or derive("file key commitment", data_key + FILE + u16(SUITE))
    front = b"HUSHHEAD" + u16(1) + u16(1) + u32(166) + u16(SUITE) + u32(EPOCH) + FILE + DIRECTORY + commitment
    kek = derive("header wrapping key", KEY + VAULT)
    return front + wrap(kek, b"hushfs v1 header" + vault + front, data_key, SALT)


SEAL_KEY = derive("seal key", SECRET + FILE + u16(SUITE))


def block(suite, index, plain):
    key = derive("block key", SECRET + FILE + u16(suite))
    return seal_block(suite, key, NONCE[: {1: 12, 2: 24}[suite]], u64(index) + u16(1), plain)


def preamble(state=2, flags=6, reserved=bytes(4), tail=bytes(32), key=SEAL_KEY):
    commitment = derive("file key commitment", SECRET + FILE + u16(SUITE))
    total = lanes(prf(key, b"\x02" + u64(0) + block(SUITE, 0, b"attack at dawn")[-16:]))
    masked = struct.pack("<4Q", *add(total, lanes(prf(key, b"\x03" + SALT))))
    place, coming = (prf(key, b"\x04" + DIRECTORY + name) for name in (NAME, b"coming"))
    out = b"HUSHDATA" + u16(1) + bytes([state, flags]) + reserved + FILE + commitment
    out += u64(5) + u64(14) + SALT + masked + place + coming + tail
    return out + prf(key, b"\x01" + out)


def directory_header(flags=1, reserved=bytes(4)):
    key = derive("directory header key", KEY)
    places = [prf(key, b"place" + DIRECTORY + name) for name in (NAME, b"coming")]
    out = b"HUSHDIRS" + u16(1) + u16(flags) + reserved + FILE + places[0] + places[1]
    return out + prf(key, out)


def sealed_name(name):
    return siv_seal(derive("directory name key", KEY + DIRECTORY), bytes(12), b"", name + bytes(-len(name) % 16))


def long_name(sealed):
    return b"HUSHNAME" + u16(1) + u16(len(sealed)) + sealed


def link_file(link=FILE):
    sealed = siv_seal(derive("symlink key", KEY), NONCE[:12], link, b"t" * 3044)
    return b"HUSHLINK" + u16(1) + bytes(2) + NONCE[:12] + sealed


def xattr_hash(name):
    return prf(derive("xattr name key", KEY), name)[:16]


def xattr(name=b"user.colour", h=None, size=None):
    plain = u16(len(name) if size is None else size) + name + b"red"
    return NONCE[:12] + siv_seal(derive("xattr key", KEY), NONCE[:12], h or xattr_hash(name), plain)


def with_mac(magic, body, key):
    out = magic + u16(1) + u16(1) + u32(len(body)) + body
    return out + prf(key, out)


def listed(items):
    return u64(len(items)) + b"".join(items)


def blob(data):
    return u64(len(data)) + data


def extension(critical):
    return u16(9) + bytes([critical]) + blob(b"later")


def epoch(number=EPOCH, wraps=1, pairs=(), data=None):
    names_root = wrap(derive("names root wrapping key", KEY + VAULT), b"hushfs v1 names root" + VAULT + u32(number), SECRET, SALT)
    context = [("hushfs:epoch", str(number)), ("hushfs:vault", VAULT.hex())]
    aad = b"hushfs v1 master key wrap" + KEYSTORE + KEY_ID + u32(1) + encode_context(context)
    data = data or u32(1) + wrap(SECRET, aad, KEY, SALT)
    pairs = listed([blob(a) + blob(b) for a, b in pairs])
    return u32(number) + u64(1_700_000_000) + names_root + listed([u32(0) + KEY_ID + pairs + blob(data)] * wraps)


def vault_header(suite=SUITE, size=4096, features=0, current=EPOCH, epochs=None, extensions=(), more=b""):
    epochs = [epoch()] if epochs is None else epochs
    body = VAULT + u64(1_700_000_000) + u16(suite) + u32(size) + u64(features) + u32(current)
    body += listed(epochs) + listed(extensions) + more
    return with_mac(b"HUSHVALT", body, derive("vault header mac key", KEY + VAULT))


def slot(number=1, kind=None, label=b"laptop", public=1216):
    kind = kind or u32(0) + SALT + u32(65536) + u32(3) + u32(4)
    authenticator = wrap(KEY, b"hushfs v1 slot authenticator" + KEYSTORE + u32(number), SECRET, SALT)
    keys = blob(b"\x88" * public) + blob(b"\x99" * (1120 if public else 0))
    return u32(number) + blob(label) + u64(1_700_000_000) + kind + keys + b"\xaa" * 48 + authenticator


def material(version=1):
    wrapped = wrap(KEY, b"hushfs v1 key material" + KEYSTORE + KEY_ID + u32(version), SECRET, SALT)
    return u32(version) + derive("key material id", SECRET) + u64(1_700_000_000) + wrapped


def key_record(materials=None, manager=1, option=0):
    out = KEY_ID + u32(manager) + u32(0) + u64(1_700_000_000) + blob(b"") + bytes([option])
    return out + listed([material()] if materials is None else materials)


def keystore(slots=None, keys=None, aliases=(b"alias/hushfs/default",), vaults=(VAULT,), extensions=()):
    slots, keys = [slot()] if slots is None else slots, [key_record()] if keys is None else keys
    body = KEYSTORE + u64(7) + u64(1_700_000_000) + listed(slots) + listed(keys)
    body += listed([blob(alias) + KEY_ID for alias in aliases]) + listed([vault + u32(EPOCH) for vault in vaults])
    return with_mac(b"HUSHKEYS", body + listed(extensions), derive("keystore mac key", KEY))


def argon2(memory, passes, lane_count):
    return keystore([slot(kind=u32(0) + SALT + u32(memory) + u32(passes) + u32(lane_count))])


# The salamander: GCM-SIV's tag is a polynomial of the plaintext, and two blocks of it are two unknowns for two keys.


def gf(data):
    return int.from_bytes(data, "little")


def multiply(a, b):
    """Multiplies as RFC 8452's dot: a * b * x^-128 modulo x^128 + x^127 + x^126 + x^121 + 1."""
    out = 0
    for bit in range(128):
        if a >> bit & 1:
            out ^= b << bit
    for _ in range(128):
        if out & 1:
            out ^= (1 << 128) | (1 << 127) | (1 << 126) | (1 << 121) | 1
        out >>= 1
    return out


def invert(a):
    """Returns what multiplies with a to the dot's one, by Fermat."""
    out, power = (1 << 127) | (1 << 126) | (1 << 121) | 1, a
    for bit in range(128):
        if bit:
            out = multiply(out, power)
        power = multiply(power, power)
    return out


def aes(key, data):
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(data)


def salamander():
    """Makes 48 bytes that the cipher alone opens under two derived keys, and returns the wraps of them that commit to either."""
    keys = []
    for kek in (KEY, SECRET):
        out = derive("committing wrap", kek + SALT + blake3(b"purpose").digest(), 76)
        key, nonce = out[:32], out[32:44]
        halves = [aes(key, u32(counter) + nonce)[:8] for counter in range(6)]
        keys.append((gf(halves[0] + halves[1]), b"".join(halves[2:]), nonce, out[44:]))
    for attempt in range(256):
        tag = blake3(bytes([attempt])).digest()[:16]
        rows = []
        for h, key, nonce, _ in keys:
            plain_tag = Cipher(algorithms.AES(key), modes.ECB()).decryptor().update(tag)
            if plain_tag[15] & 0x80:
                break
            counter = tag[:15] + bytes([tag[15] | 0x80])
            number = struct.unpack("<I", counter[:4])[0]
            stream = b"".join(aes(key, u32((number + i) % (1 << 32)) + counter[4:]) for i in range(2))
            h2 = multiply(h, h)
            h3 = multiply(h2, h)
            # h3·p1 + h2·p2 + h·lengths = plain tag + nonce, and p = c + stream
            total = gf(plain_tag) ^ gf(nonce + bytes(4)) ^ multiply(h, gf(u64(0) + u64(256)))
            total ^= multiply(h3, gf(stream[:16])) ^ multiply(h2, gf(stream[16:]))
            rows.append((h3, h2, total))
        if len(rows) < 2:
            continue
        (a, b, e), (c, d, f) = rows
        inverse = invert(multiply(a, d) ^ multiply(b, c))
        c1 = multiply(inverse, multiply(d, e) ^ multiply(b, f))
        c2 = multiply(inverse, multiply(a, f) ^ multiply(c, e))
        sealed = c1.to_bytes(16, "little") + c2.to_bytes(16, "little") + tag
        for kek in (KEY, SECRET):
            out = derive("committing wrap", kek + SALT + blake3(b"purpose").digest(), 76)
            siv_open(out[:32], out[32:44], b"", sealed)
        return [(SALT + commitment + sealed).hex() for _, _, _, commitment in keys]
    raise AssertionError("half of all tags fit a key")


def vectors():
    names = []
    for name in NAMES:
        sealed = sealed_name(name)
        entry = b64(sealed) if len(sealed) <= 176 else b64(derive("long name", sealed, 33))
        names.append({"name": name.hex(), "entry": entry, "sealed": sealed.hex()})
    inline = siv_seal(derive("symlink key", KEY), NONCE[:12], b"", b"target")
    return {
        "derivations": derivations(),
        "wrap": wrap(KEY, b"purpose", SECRET, SALT).hex(),
        "salamander": salamander(),
        "names": names,
        "block suite 1": block(1, 7, b"attack at dawn").hex(),
        "block suite 2": block(2, 7, b"attack at dawn").hex(),
        "first block": block(1, 0, b"attack at dawn").hex(),
        "header": header().hex(),
        "preamble": preamble().hex(),
        "directory header": directory_header().hex(),
        "link": b64(NONCE[:12] + inline),
        "link file": link_file().hex(),
        "xattr hash": xattr_hash(b"user.colour").hex(),
        "xattr": xattr().hex(),
        "recovery key": recovery_key_text(KEY),
        "vault header": vault_header().hex(),
        "keystore": keystore().hex(),
    }


def front_faults(kind, good):
    """What can be wrong with any file that starts with a magic number and a version."""
    yield f"{kind}_wrong_magic", b"X" + good[1:]
    yield f"{kind}_newer_version", good[:8] + u16(2) + good[10:]
    yield f"{kind}_version_zero", good[:8] + u16(0) + good[10:]
    yield f"{kind}_cut", good[:-1]


def flipped(good, at):
    return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]


def faults():
    good = header()
    yield from front_faults("header", good)
    yield "header_trailing", good + b"x"
    yield "header_wrong_encoding", good[:10] + u16(2) + good[12:]
    yield "header_wrong_length", good[:12] + u32(167) + good[16:]
    yield "header_unknown_suite", good[:16] + u16(3) + good[18:]
    yield "header_other_suite", good[:16] + u16(2) + good[18:]
    yield "header_wrong_epoch", good[:18] + u32(EPOCH + 1) + good[22:]
    yield "header_wrong_file", flipped(good, 22)
    yield "header_wrong_directory", flipped(good, 38)
    yield "header_wrong_vault", header(vault=FILE)
    yield "header_bad_commitment", header(commitment=SECRET)
    yield "header_bad_wrap_commitment", flipped(good, 86 + 16)
    yield "header_bad_wrap", flipped(good, 181)

    good = preamble()
    yield from front_faults("preamble", good)
    yield "preamble_unknown_state", preamble(state=3)
    yield "preamble_unknown_flag", preamble(flags=16)
    yield "preamble_reserved", preamble(reserved=u32(1))
    yield "preamble_reserved_tail", preamble(tail=b"\x01" * 32)
    yield "preamble_bad_mac", flipped(good, 72)
    yield "preamble_other_key", preamble(key=KEY)

    good = directory_header()
    yield from front_faults("dirhush", good)
    yield "dirhush_trailing", good + b"x"
    yield "dirhush_unknown_flag", directory_header(flags=2)
    yield "dirhush_reserved", directory_header(reserved=u32(1))
    yield "dirhush_bad_mac", flipped(good, 16)

    good = long_name(sealed_name(NAMES[4]))
    yield from front_faults("longname", good)
    yield "longname_trailing", good + b"x"
    yield "longname_wrong_hash", flipped(good, 20)

    good = link_file()
    yield from front_faults("link", good)
    yield "link_reserved", good[:10] + u16(1) + good[12:]
    yield "link_no_target", good[:20]
    yield "link_wrong_id", link_file(DIRECTORY)

    yield "xattr_cut", xattr()[:11]
    yield "xattr_changed", flipped(xattr(), 12)
    yield "xattr_moved", xattr(b"user.other")
    yield "xattr_wrong_name", xattr(b"user.other", h=xattr_hash(b"user.colour"))
    yield "xattr_name_beyond_end", xattr(size=99)

    good = vault_header()
    yield from front_faults("vault_header", good)
    yield "vault_header_trailing", good + b"x"
    yield "vault_header_wrong_encoding", good[:10] + u16(2) + good[12:]
    yield "vault_header_too_long", good[:12] + u32((1 << 20) + 1) + good[16:]
    yield "vault_header_body_left_over", vault_header(more=b"x")
    yield "vault_header_bad_mac", flipped(good, 32)
    yield "vault_header_unknown_suite", vault_header(suite=3)
    yield "vault_header_block_size", vault_header(size=5000)
    yield "vault_header_unknown_feature", vault_header(features=1 << 40)
    yield "vault_header_critical_extension", vault_header(extensions=[extension(1)])
    yield "vault_header_too_many_extensions", vault_header(extensions=[extension(0)] * 65)
    yield "vault_header_no_epoch", vault_header(epochs=[])
    yield "vault_header_epoch_zero", vault_header(current=0, epochs=[epoch(0)])
    yield "vault_header_epochs_fall", vault_header(epochs=[epoch(3), epoch(2)])
    yield "vault_header_current_missing", vault_header(current=4)
    yield "vault_header_no_wrap", vault_header(epochs=[epoch(wraps=0)])
    yield "vault_header_too_many_wraps", vault_header(epochs=[epoch(wraps=17)])
    yield "vault_header_context_falls", vault_header(epochs=[epoch(pairs=[(b"b", b""), (b"a", b"")])])
    yield "vault_header_blob_too_large", vault_header(epochs=[epoch(data=bytes(8193))])
    yield "vault_header_context_not_utf8", vault_header(epochs=[epoch(pairs=[(b"\xff", b"")])])

    good = keystore()
    yield from front_faults("keystore", good)
    yield "keystore_trailing", good + b"x"
    yield "keystore_too_long", good[:12] + u32((4 << 20) + 1) + good[16:]
    yield "keystore_bad_mac", flipped(good, 32)
    yield "keystore_no_slot", keystore([])
    yield "keystore_too_many_slots", keystore([slot(number, u32(2), b"", 0) for number in range(1, 34)])
    yield "keystore_slots_fall", keystore([slot(2, u32(2), b"", 0), slot(1, u32(2), b"", 0)])
    yield "keystore_unknown_slot_kind", keystore([slot(kind=u32(3))])
    yield "keystore_label_too_long", keystore([slot(label=b"x" * 65)])
    yield "keystore_public_key_size", keystore([slot(public=1215)])
    yield "keystore_no_key", keystore(keys=[])
    yield "keystore_unknown_manager", keystore(keys=[key_record(manager=2)])
    yield "keystore_option_two", keystore(keys=[key_record(option=2)])
    yield "keystore_no_material", keystore(keys=[key_record([])])
    yield "keystore_material_zero", keystore(keys=[key_record([material(0)])])
    yield "keystore_aliases_fall", keystore(aliases=[b"b", b"a"])
    yield "keystore_vaults_fall", keystore(vaults=[FILE, VAULT])
    yield "keystore_critical_extension", keystore(extensions=[extension(1)])
    yield "keystore_huge_count", with_mac(b"HUSHKEYS", KEYSTORE + u64(7) + u64(0) + u64(1 << 60), KEY)
    yield "keystore_hostile_argon2_memory", argon2((4 << 20) + 1, 3, 4)
    yield "keystore_hostile_argon2_passes", argon2(65536, 65, 4)
    yield "keystore_hostile_argon2_lanes", argon2(65536, 3, 65)
    yield "keystore_weak_argon2_memory", argon2((8 << 10) - 1, 3, 4)
    yield "keystore_no_argon2_passes", argon2(65536, 0, 4)


def main():
    files = {"vectors.json": (json.dumps(vectors(), indent=1) + "\n").encode()}
    files.update({f"faults/{name}.bin": data for name, data in faults()})
    if sys.argv[1:] == ["write"]:
        (HERE / "faults").mkdir(exist_ok=True)
        for name, data in files.items():
            (HERE / name).write_bytes(data)
        return
    differing = [name for name, data in files.items() if (HERE / name).read_bytes() != data]
    strangers = {f"faults/{path.name}" for path in (HERE / "faults").iterdir()} - files.keys()
    if differing or strangers:
        sys.exit(f"not as FORMAT.md has them: {sorted([*differing, *strangers])}")


if __name__ == "__main__":
    main()
