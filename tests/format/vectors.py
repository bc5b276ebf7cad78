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
    add, b64, blake3, derive, encode_context, lanes, prf, recovery_key_text, seal_block, siv_open, siv_seal, text_of_kind, u16, u32,
    u64, wrap, xwing,
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
        "file wrapping key": (KEY + derive("header wrapping key", KEY + VAULT), 32),
        "names root wrapping key": (KEY + VAULT, 32),
        "vault header mac key": (KEY + VAULT, 32),
        "names root mark": (KEY, 16),
        "root directory id": (KEY, 16),
        "directory id": (KEY + DIRECTORY + NAME, 16),
        "directory name key": (KEY + DIRECTORY, 32),
        "directory header key": (KEY, 32),
        "long name": (b"sealed name", 33),
        "journal key": (KEY, 32),
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
        "share code": (KEY, 10),
        "identity passphrase": (stretched, 32),
        "text checksum": (b"\x01" + KEY, 4),
        "customer key": (KEY + VAULT, 32),
        "audit first key": (KEY + FILE, 32),
        "audit next key": (KEY, 32),
        "record key": (KEY, 32),
        "snapshot key": (KEY + FILE, 32),
    }
    return {f"hushfs v1 {context}": derive(context, *given).hex() for context, given in inputs.items()}


def locked_identity():
    """An identity under the passphrase above."""
    hardness = SALT + u32(8192) + u32(1) + u32(1)
    stretched = hash_secret_raw(b"passphrase", SALT, 1, 8192, 1, 32, Type.ID, 19)
    wrapped = wrap(derive("identity passphrase", stretched), b"hushfs v1 identity" + hardness, KEY, SALT)
    return text_of_kind(3, hardness + wrapped)


def header(data_key=SECRET, vault=VAULT, commitment=None):
    commitment = commitment or derive("file key commitment", data_key + FILE + u16(SUITE))
    front = b"HUSHHEAD" + u16(1) + u16(1) + u32(166) + u16(SUITE) + u32(EPOCH) + FILE + DIRECTORY + commitment
    kek = derive("header wrapping key", KEY + VAULT)
    return front + wrap(kek, b"hushfs v1 header" + vault + front, data_key, SALT)


def file_blob():
    """What the keystore makes of the secret of a file's own, which is KEY, under a key whose epoch has a pair of the user's."""
    context = [("hushfs:file", FILE.hex()), ("hushfs:vault", VAULT.hex()), ("team", "blue")]
    aad = b"hushfs v1 master key wrap" + KEYSTORE + KEY_ID + u32(1) + encode_context(context)
    return u32(1) + wrap(SECRET, aad, KEY, SALT)


def header_2(data=None, key_id=KEY_ID, vault=VAULT, length=None, body=None, kek=None):
    """The header of a file without a bucket key."""
    data = file_blob() if data is None else data
    commitment = derive("file key commitment", SECRET + FILE + u16(SUITE))
    body_length = 170 + 16 + len(data) if body is None else body
    front = b"HUSHHEAD" + u16(2) + u16(1) + u32(body_length) + u16(SUITE) + u32(EPOCH) + FILE + DIRECTORY + commitment
    front += key_id + u32(len(data) if length is None else length) + data
    kek = kek or derive("file wrapping key", KEY + derive("header wrapping key", KEY + VAULT))
    return front + wrap(kek, b"hushfs v2 header" + vault + front, SECRET, SALT)


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


def with_mac(magic, body, key, version=1):
    out = magic + u16(version) + u16(1) + u32(len(body)) + body
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


def bucket_keys(data, critical=1):
    return u16(1) + bytes([critical]) + blob(data)


def epoch_of_key(number, key_id=KEY_ID, custodian=0, names_root=bytes(96), wraps=1):
    """An epoch of a key beside the vault's own: of one in the keystore, or of a customer's."""
    if custodian == 0:
        context = [("hushfs:epoch", str(number)), ("hushfs:vault", VAULT.hex())]
        aad = b"hushfs v1 master key wrap" + KEYSTORE + key_id + u32(1) + encode_context(context)
        data = u32(1) + wrap(SECRET, aad, KEY, SALT)
    else:
        aad = b"hushfs v1 customer key wrap" + VAULT + u32(number) + key_id
        data = wrap(derive("customer key", SECRET + VAULT), aad, KEY, SALT)
    wraps = listed([u32(custodian) + key_id + listed([]) + blob(data)] * wraps)
    return u32(number) + u64(1_700_000_001) + names_root + wraps


def vault_header_2(current=EPOCH, epochs=None, chains=None, directories=None, more=b"", extensions=()):
    """A vault with three keys: its own, the same one again for a directory, and a customer's."""
    if epochs is None:
        epochs = [epoch(), epoch_of_key(4), epoch_of_key(5, FILE, 1), epoch_of_key(6)]
    chains = [(FILE, [5]), (KEY_ID, [4, 6])] if chains is None else chains
    directories = [(DIRECTORY, KEY_ID)] if directories is None else directories
    body = VAULT + u64(1_700_000_000) + u16(SUITE) + u32(4096) + u64(0) + u32(current) + listed(epochs) + listed(extensions)
    body += listed([key + listed([u32(number) for number in numbers]) for key, numbers in chains])
    body += listed([directory + key for directory, key in directories]) + more
    return with_mac(b"HUSHVALT", body, derive("vault header mac key", KEY + VAULT), 2)


def slot(number=1, kind=None, label=b"laptop", public=1216):
    kind = kind or u32(0) + SALT + u32(65536) + u32(3) + u32(4)
    authenticator = wrap(KEY, b"hushfs v1 slot authenticator" + KEYSTORE + u32(number), SECRET, SALT)
    keys = blob(b"\x88" * public) + blob(b"\x99" * (1120 if public else 0))
    return u32(number) + blob(label) + u64(1_700_000_000) + kind + keys + b"\xaa" * 48 + authenticator


def material(version=1, cause=u32(0)):
    wrapped = wrap(KEY, b"hushfs v1 key material" + KEYSTORE + KEY_ID + u32(version), SECRET, SALT)
    return u32(version) + derive("key material id", SECRET) + u64(1_700_000_000) + cause + wrapped


ARN = u32(0) + blob(b"arn:aws:kms:eu-central-1:111122223333:key/1")
TOKEN_KEY = u32(1) + blob(b"token") + blob(b"key") + blob(b"\x01")
TAGS = [(b"cost", b"none"), (b"team", b"")]


def key_record(materials=None, manager=1, option=0, key_id=KEY_ID, remote=None, tags=TAGS, policy=b"", last_use=b"\x00"):
    if materials is None:
        materials = [] if remote else [material()]
    out = key_id + u32(manager) + (b"\x01" + remote if remote else b"\x00") + u32(0) + u64(1_700_000_000) + blob(b"")
    out += bytes([option]) + listed([blob(name) + blob(value) for name, value in tags]) + blob(policy) + last_use
    return out + listed(materials)


def vault_record(vault=VAULT, path=b"/srv/vault", keys=(KEY_ID,)):
    keys = listed([key + u32(2) + u32(1) for key in keys])
    return vault + u32(EPOCH) + blob(path) + keys + b"\x01" + u64(99) + u64(1_700_000_001) + b"\x01" + u64(1_700_000_002)


def keystore(slots=None, keys=None, aliases=(b"alias/hushfs/default",), vaults=None, extensions=()):
    slots, keys = [slot()] if slots is None else slots, [key_record()] if keys is None else keys
    vaults = [vault_record()] if vaults is None else vaults
    body = KEYSTORE + u64(7) + u64(1_700_000_000) + u64(5) + SECRET + listed(slots) + listed(keys)
    body += listed([blob(alias) + KEY_ID for alias in aliases]) + listed(vaults) + listed(extensions)
    return with_mac(b"HUSHKEYS", body, derive("keystore mac key", KEY), 2)


def names_marks(marks, critical=1):
    return u16(2) + bytes([critical]) + blob(b"".join(vault + mark for vault, mark in marks))


def every_kind():
    """A keystore with a slot of each kind, a key of each, and all there is to say of a key."""
    kinds = [
        None, u32(1), u32(2), u32(3) + blob(b"hushfs"), u32(4) + listed([blob(b"fido2-assert"), blob(b"-G")]),
        u32(5) + blob(b"\xbb" * 78) + blob(b"\xcc" * 158) + u32(1 << 7) + b"\x01",
        u32(6) + blob(b"\xdd" * 1216) + blob(b"\xee" * 1120) + b"\xff" * 48,
        u32(7) + ARN + blob(SECRET * 6), u32(7) + TOKEN_KEY + blob(SECRET * 5),
    ]
    materials = [material(1), material(2, u32(1)), material(3, u32(2)), material(4, u32(3))]
    whole = key_record(materials, manager=0, policy=b"{}", last_use=b"\x01" + u32(1) + u64(1_700_000_003))
    remote = [key_record(key_id=bytes([0x56 + i]) * 16, remote=name) for i, name in enumerate([ARN, TOKEN_KEY])]
    marks = names_marks([(VAULT, derive("names root mark", KEY, 16)), (FILE, KEY_ID)])
    return keystore([slot(number + 1, kind) for number, kind in enumerate(kinds)], [whole, *remote], extensions=[marks])


def keystore_1(kind=None):
    """A keystore of version 1."""
    record = KEY_ID + u32(1) + u32(0) + u64(1_700_000_000) + blob(b"") + b"\x00"
    record += listed([material(1, b""), material(2, b"")])
    body = KEYSTORE + u64(7) + u64(1_700_000_000) + listed([slot(kind=kind)]) + listed([record])
    body += listed([blob(b"alias/hushfs/default") + KEY_ID]) + listed([VAULT + u32(EPOCH)]) + listed([])
    return with_mac(b"HUSHKEYS", body, derive("keystore mac key", KEY))


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


def sealed_header(mac=None, suite=SUITE, size=65536, commitment=None, pairs=(b"a", b"b"), ways=None, extensions=()):
    """The header of a sealed file that opens with a key file of 32 times 0x22, and with a key of a keystore."""
    secret = derive("key file slot", FILE * 2)
    wrapped = lambda number: wrap(secret, b"hushfs v1 sealed file" + FILE + u32(number), SECRET, SALT)
    if ways is None:
        by_key = u32(3) + u32(1) + KEYSTORE + KEY_ID + blob(b"blob") + wrapped(3)
        ways = [u32(1) + u32(0) + u32(1) + wrapped(1), by_key]
    commitment = commitment or derive("file key commitment", SECRET + FILE + u16(SUITE))
    body = FILE + u16(suite) + u32(size) + commitment
    body += listed([blob(name) + blob(b"value") for name in pairs]) + listed(ways) + listed(extensions)
    out = b"HUSHSEAL" + u16(1) + u16(1) + u32(len(body)) + body
    return out + (mac or prf(SEAL_KEY, b"\x05" + out))


HOME = u32(EPOCH) + b"\xaa" * 16 + KEYSTORE + u64(7)


def record(reserved=bytes(6), vault=VAULT, kind=1, count=2, flags=3, key=None):
    """A record with a batch of two files and one of a vault header."""
    key = key or derive("record key", KEY)
    out = b"HUSHRECD" + u16(1) + reserved + vault + KEYSTORE
    out += prf(key, b"\x01" + out)
    place = prf(key, b"\x03" + DIRECTORY + NAME)[:8]
    mark = prf(SEAL_KEY, b"\x07" + u64(14) + SECRET)[:7]
    files = FILE + u64(5) + place + mark + bytes([flags]) + KEY_ID + u64(0) + u64(0) + bytes(7) + b"\x04"
    for batch in (u32(kind) + u32(count) + u64(1_700_000_000) + files, u32(2) + u32(1) + u64(1_700_000_001) + HOME):
        out += batch + prf(key, b"\x02" + out[-32:] + batch)
    return out


def listed_entry(kind, name, rest, depth=0, mode=0o100644):
    return bytes([kind]) + u16(depth) + bytes([len(name)]) + name + u32(mode) + rest


SNAPSHOT_ENTRIES = [
    listed_entry(1, b"a", DIRECTORY, mode=0o40755),
    listed_entry(2, b"blank", u64(1), 1),
    listed_entry(3, b"open", u64(2) + FILE + u64(14) + u64(5), 1),
    listed_entry(4, b"sealed", u64(3) + FILE + u64(14) + u64(5) + SALT + b"\x01", 1),
    listed_entry(5, b"link", SALT, mode=0o120777),
    listed_entry(6, b"pipe", u64(0), mode=0o10644),
    listed_entry(7, b"unreadable", b"", mode=0),
]


def snapshot(reserved=bytes(6), flags=1, entries=SNAPSHOT_ENTRIES, count=7, more=b"", last=1, key=KEY):
    """A snapshot of one chunk, with an entry of each kind."""
    front = b"HUSHSNAP" + u16(1) + reserved + VAULT + FILE
    plain = u64(1_700_000_000) + u32(flags) + KEY_ID + HOME + b"".join(entries) + b"\x00" + u64(count) + more
    return front + siv_seal(derive("snapshot key", key + FILE), u64(0) + bytes([last, 0, 0, 0]), front, plain)


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
        "header 2": header_2().hex(),
        "preamble": preamble().hex(),
        "directory header": directory_header().hex(),
        "link": b64(NONCE[:12] + inline),
        "link file": link_file().hex(),
        "xattr hash": xattr_hash(b"user.colour").hex(),
        "xattr": xattr().hex(),
        "recovery key": recovery_key_text(KEY),
        "identity": text_of_kind(2, KEY),
        "locked identity": locked_identity(),
        "recipient": text_of_kind(1, xwing(KEY)[2]),
        "vault header": vault_header().hex(),
        "vault header 2": vault_header_2().hex(),
        "vault header without bucket keys": vault_header_2(extensions=[bucket_keys(b"\x01" + DIRECTORY)]).hex(),
        "keystore": keystore().hex(),
        "keystore of every kind": every_kind().hex(),
        "keystore 1": keystore_1().hex(),
        "sealed header": sealed_header().hex(),
        "record": record().hex(),
        "snapshot": snapshot().hex(),
    }


def front_faults(kind, good, newer=2):
    """What can be wrong with any file that starts with a magic number and a version."""
    yield f"{kind}_wrong_magic", b"X" + good[1:]
    yield f"{kind}_newer_version", good[:8] + u16(newer) + good[10:]
    yield f"{kind}_version_zero", good[:8] + u16(0) + good[10:]
    yield f"{kind}_cut", good[:-1]


def flipped(good, at):
    return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]


def faults():
    good = header()
    yield from front_faults("header", good, 3)
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

    good = header_2()
    yield "header_2_cut", good[:-1]
    yield "header_2_trailing", good + b"x"
    yield "header_2_as_version_1", good[:8] + u16(1) + good[10:]
    yield "header_1_as_version_2", header()[:8] + u16(2) + header()[10:]
    yield "header_2_wrong_length", good[:12] + u32(len(good) - 15) + good[16:]
    yield "header_2_no_blob", header_2(b"")
    yield "header_2_blob_too_large", header_2(bytes(8193))
    yield "header_2_blob_length", header_2(length=99)
    yield "header_2_other_key", flipped(good, 86)
    yield "header_2_other_directory", flipped(good, 38)
    yield "header_2_other_blob", flipped(good, 120)
    yield "header_2_other_vault", header_2(vault=FILE)
    yield "header_2_bad_wrap", flipped(good, len(good) - 1)
    yield "header_2_without_epoch_key", header_2(kek=derive("file wrapping key", KEY + VAULT))

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
    yield from front_faults("vault_header", good, 3)
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
    yield "vault_header_bucket_keys_not_critical", vault_header(extensions=[bucket_keys(b"\x01", 0)])
    yield "vault_header_bucket_keys_twice", vault_header(extensions=[bucket_keys(b"\x01")] * 2)
    yield "vault_header_bucket_keys_state", vault_header(extensions=[bucket_keys(b"\x02")])
    yield "vault_header_bucket_keys_empty", vault_header(extensions=[bucket_keys(b"")])
    yield "vault_header_bucket_keys_of_no_directory", vault_header(extensions=[bucket_keys(b"\x01" + DIRECTORY)])
    yield "vault_header_2_bucket_keys_fall", vault_header_2(extensions=[bucket_keys(b"\x00" + DIRECTORY * 2)])
    yield "vault_header_no_epoch", vault_header(epochs=[])
    yield "vault_header_epoch_zero", vault_header(current=0, epochs=[epoch(0)])
    yield "vault_header_epochs_fall", vault_header(epochs=[epoch(3), epoch(2)])
    yield "vault_header_current_missing", vault_header(current=4)
    yield "vault_header_no_wrap", vault_header(epochs=[epoch(wraps=0)])
    yield "vault_header_too_many_wraps", vault_header(epochs=[epoch(wraps=17)])
    yield "vault_header_context_falls", vault_header(epochs=[epoch(pairs=[(b"b", b""), (b"a", b"")])])
    yield "vault_header_blob_too_large", vault_header(epochs=[epoch(data=bytes(8193))])
    yield "vault_header_customer_epoch", vault_header(epochs=[epoch_of_key(3, FILE, 1)])
    yield "vault_header_2_one_key", vault_header_2(epochs=[epoch()], chains=[], directories=[])
    yield "vault_header_2_body_left_over", vault_header_2(more=b"x")
    yield "vault_header_2_keys_fall", vault_header_2(chains=[(KEY_ID, [4, 6]), (FILE, [5])])
    many = [(bytes([i]) * 16, [EPOCH]) for i in range(65)]
    yield "vault_header_2_too_many_keys", vault_header_2(chains=many)
    yield "vault_header_2_key_without_epoch", vault_header_2(chains=[(FILE, [5]), (KEY_ID, [])])
    yield "vault_header_2_epochs_fall", vault_header_2(chains=[(FILE, [5]), (KEY_ID, [6, 4])])
    yield "vault_header_2_epoch_missing", vault_header_2(chains=[(FILE, [5]), (KEY_ID, [4, 7])])
    yield "vault_header_2_epoch_of_other_key", vault_header_2(chains=[(FILE, [4, 5])], directories=[])
    opens_names = [epoch(), epoch_of_key(4, names_root=b"x" * 96)]
    yield "vault_header_2_opens_names", vault_header_2(epochs=opens_names, chains=[(KEY_ID, [4])])
    two_wraps = [epoch(), epoch_of_key(4, wraps=2)]
    yield "vault_header_2_two_wraps", vault_header_2(epochs=two_wraps, chains=[(KEY_ID, [4])])
    yield "vault_header_2_current_of_key", vault_header_2(current=4)
    yield "vault_header_2_customer_in_none", vault_header_2(chains=[(KEY_ID, [4, 6])])
    yield "vault_header_2_directory_of_no_key", vault_header_2(directories=[(DIRECTORY, VAULT)])
    yield "vault_header_2_directory_of_customer", vault_header_2(directories=[(DIRECTORY, FILE)])
    yield "vault_header_2_directories_fall", vault_header_2(directories=[(DIRECTORY, KEY_ID), (FILE, KEY_ID)])
    many = [(i.to_bytes(16, "big"), KEY_ID) for i in range(4097)]
    yield "vault_header_2_too_many_directories", vault_header_2(directories=many)
    yield "vault_header_2_unknown_custodian", vault_header_2(epochs=[epoch(), epoch_of_key(4, custodian=2)])
    yield "vault_header_context_not_utf8", vault_header(epochs=[epoch(pairs=[(b"\xff", b"")])])

    good = keystore()
    yield from front_faults("keystore", good, newer=3)
    yield "keystore_trailing", good + b"x"
    yield "keystore_too_long", good[:12] + u32((4 << 20) + 1) + good[16:]
    yield "keystore_bad_mac", flipped(good, 32)
    yield "keystore_no_slot", keystore([])
    yield "keystore_too_many_slots", keystore([slot(number, u32(2), b"", 0) for number in range(1, 34)])
    yield "keystore_slots_fall", keystore([slot(2, u32(2), b"", 0), slot(1, u32(2), b"", 0)])
    yield "keystore_unknown_slot_kind", keystore([slot(kind=u32(8))])
    yield "keystore_1_unknown_slot_kind", keystore_1(u32(3) + blob(b"hushfs"))
    yield "keystore_1_body_of_2", with_mac(b"HUSHKEYS", good[16:-32], derive("keystore mac key", KEY))
    yield "keystore_credential_path", keystore([slot(kind=u32(3) + blob(b"../key"))])
    yield "keystore_command_empty", keystore([slot(kind=u32(4) + listed([]))])
    yield "keystore_command_too_long", keystore([slot(kind=u32(4) + listed([blob(b"x"), blob(b"y" * 4096)]))])
    yield "keystore_tpm_registers", keystore([slot(kind=u32(5) + blob(b"x") + blob(b"y") + u32(1 << 24) + b"\x00")])
    yield "keystore_tpm_pin_two", keystore([slot(kind=u32(5) + blob(b"x") + blob(b"y") + u32(0) + b"\x02")])
    yield "keystore_recipient_size", keystore([slot(kind=u32(6) + blob(b"x") + blob(b"\xee" * 1120) + b"\xff" * 48)])
    yield "keystore_slot_blob_too_large", keystore([slot(kind=u32(7) + ARN + blob(bytes(8193)))])
    yield "keystore_remote_url", keystore(keys=[key_record(remote=u32(0) + blob(b"https://kms.example.com/"))])
    yield "keystore_remote_token_label", keystore(keys=[key_record(remote=u32(1) + blob(b"") + blob(b"k") + blob(b""))])
    yield "keystore_remote_unknown", keystore(keys=[key_record(remote=u32(2) + blob(b"x"))])
    yield "keystore_remote_material", keystore(keys=[key_record([material()], remote=ARN)])
    yield "keystore_material_cause", keystore(keys=[key_record([material(1, u32(4))])])
    yield "keystore_tags_fall", keystore(keys=[key_record(tags=TAGS[::-1])])
    yield "keystore_too_many_tags", keystore(keys=[key_record(tags=[(b"%03d" % i, b"") for i in range(51)])])
    yield "keystore_tag_too_long", keystore(keys=[key_record(tags=[("é".encode() * 129, b"")])])
    yield "keystore_policy_too_long", keystore(keys=[key_record(policy=b"x" * 32769)])
    yield "keystore_last_use_unknown", keystore(keys=[key_record(last_use=b"\x01" + u32(4) + u64(0))])
    yield "keystore_vault_path_too_long", keystore(vaults=[vault_record(path=b"x" * 256)])
    yield "keystore_vault_keys_fall", keystore(vaults=[vault_record(keys=[KEY_ID, FILE])])
    yield "keystore_vault_too_many_keys", keystore(vaults=[vault_record(keys=[bytes([i]) * 16 for i in range(17)])])
    yield "keystore_label_too_long", keystore([slot(label=b"x" * 65)])
    yield "keystore_public_key_size", keystore([slot(public=1215)])
    yield "keystore_no_key", keystore(keys=[])
    yield "keystore_unknown_manager", keystore(keys=[key_record(manager=2)])
    yield "keystore_option_two", keystore(keys=[key_record(option=2)])
    yield "keystore_no_material", keystore(keys=[key_record([])])
    yield "keystore_material_zero", keystore(keys=[key_record([material(0)])])
    yield "keystore_aliases_fall", keystore(aliases=[b"b", b"a"])
    yield "keystore_marks_fall", keystore(extensions=[names_marks([(FILE, KEY_ID), (VAULT, KEY_ID)])])
    yield "keystore_marks_cut", keystore(extensions=[names_marks([(VAULT, KEY_ID[1:])])])
    yield "keystore_marks_none", keystore(extensions=[names_marks([])])
    yield "keystore_marks_not_critical", keystore(extensions=[names_marks([(VAULT, KEY_ID)], 0)])
    yield "keystore_marks_twice", keystore(extensions=[names_marks([(VAULT, KEY_ID)])] * 2)
    yield "keystore_too_many_marks", keystore(extensions=[names_marks([(u32(i)[::-1] * 4, KEY_ID) for i in range(4097)])])
    yield "keystore_vaults_fall", keystore(vaults=[vault_record(FILE), vault_record()])
    yield "keystore_critical_extension", keystore(extensions=[extension(1)])
    yield "keystore_huge_count", with_mac(b"HUSHKEYS", KEYSTORE + u64(7) + u64(0) + u64(0) + SECRET + u64(1 << 60), KEY, 2)
    yield "keystore_hostile_argon2_memory", argon2((4 << 20) + 1, 3, 4)
    yield "keystore_hostile_argon2_passes", argon2(65536, 65, 4)
    yield "keystore_hostile_argon2_lanes", argon2(65536, 3, 65)
    yield "keystore_weak_argon2_memory", argon2((8 << 10) - 1, 3, 4)
    yield "keystore_no_argon2_passes", argon2(65536, 0, 4)

    good = sealed_header()
    yield from front_faults("sealed", good)
    yield "sealed_trailing", good + b"\0"
    yield "sealed_wrong_encoding", good[:10] + u16(2) + good[12:]
    yield "sealed_too_long", good[:12] + u32((1 << 20) + 1) + good[16:]
    yield "sealed_unknown_suite", sealed_header(suite=3)
    yield "sealed_other_suite", sealed_header(suite=2)
    yield "sealed_block_size", sealed_header(size=65535)
    yield "sealed_other_block_size", sealed_header(bytes(32), size=4096)
    yield "sealed_bad_commitment", sealed_header(commitment=SECRET)
    yield "sealed_bad_mac", flipped(good, len(good) - 1)
    yield "sealed_pairs_fall", sealed_header(pairs=(b"b", b"a"))
    yield "sealed_too_many_pairs", sealed_header(pairs=[b"%02d" % i for i in range(16)])
    yield "sealed_no_way", sealed_header(ways=[])
    yield "sealed_ways_fall", sealed_header(ways=[u32(i) + u32(0) + u32(1) + bytes(96) for i in (2, 1)])
    yield "sealed_too_many_ways", sealed_header(ways=[u32(i) + u32(0) + u32(1) + bytes(96) for i in range(65)])
    yield "sealed_unknown_way", sealed_header(ways=[u32(1) + u32(2) + bytes(96)])
    yield "sealed_blob_too_large", sealed_header(
        ways=[u32(1) + u32(1) + KEYSTORE + KEY_ID + blob(bytes(8193)) + bytes(96)]
    )
    yield "sealed_critical_extension", sealed_header(extensions=[extension(1)])

    good = record()
    yield from front_faults("record", good)
    yield "record_reserved", record(reserved=b"x" * 6)
    yield "record_other_vault", record(vault=FILE)
    yield "record_other_key", record(key=KEY)
    yield "record_batch_kind", record(kind=3)
    yield "record_batch_empty", record(count=0)
    yield "record_batch_too_large", record(count=65537)
    yield "record_unknown_flag", record(flags=8)
    yield "record_bad_front_mac", flipped(good, 48)
    yield "record_bad_batch_mac", flipped(good, 80 + 16 + 80)
    yield "record_batch_missing", good[:80] + good[80 + 16 + 80 + 32 :]

    good = snapshot()
    yield "snapshot_wrong_magic", b"X" + good[1:]
    yield "snapshot_newer_version", good[:8] + u16(2) + good[10:]
    yield "snapshot_cut", good[:-1]
    yield "snapshot_reserved", snapshot(reserved=b"x" * 6)
    yield "snapshot_other_vault", flipped(good, 16)
    yield "snapshot_other_key", snapshot(key=SECRET)
    yield "snapshot_not_the_last", snapshot(last=0)
    yield "snapshot_unknown_flag", snapshot(flags=2)
    yield "snapshot_entry_cut", snapshot(entries=[listed_entry(1, b"a" * 255, b"")])
    yield "snapshot_empty_name", snapshot(entries=[listed_entry(1, b"", DIRECTORY)])
    yield "snapshot_name_with_slash", snapshot(entries=[listed_entry(1, b"a/b", DIRECTORY)])
    yield "snapshot_unknown_kind", snapshot(entries=[listed_entry(8, b"a", b"")])
    placed = u64(3) + FILE + u64(14) + u64(5) + SALT + b"\x02"
    yield "snapshot_placed_two", snapshot(entries=[listed_entry(4, b"a", placed)])
    yield "snapshot_wrong_count", snapshot(count=8)
    yield "snapshot_trailing", snapshot(more=b"x")


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
