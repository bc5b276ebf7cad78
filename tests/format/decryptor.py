"""A second reader of hushfs vaults, written from docs/FORMAT.md alone: the proof that the document is exact.

It is a test and no tool: it is slow, reads everything into memory, and stops at the first thing that is not as the document says.

    decryptor.py VAULT passphrase|key-file|recovery-key|credential|command|identity|root SECRET [CUSTOMER-KEY-FILE]
    decryptor.py VAULT ... SECRET --snapshot SNAPSHOT
    decryptor.py FILE passphrase|key-file|recovery-key|identity SECRET

SECRET is the passphrase, the recovery key, the identity, the keystore root in hexadecimal, or the path of a file with the key, the
credential or what the command wrote. What is printed is a JSON list of the entries below the vault's root, or in a SNAPSHOT of it, or the content of a sealed FILE.
Sections are those of the document.
"""

import base64
import hashlib
import hmac
import json
import os
import stat
import struct
import sys
from pathlib import Path
from urllib.parse import quote_from_bytes

from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV, ChaCha20Poly1305


class Fault(Exception):
    """The bytes are not what the document says they are."""


def check(holds, what):
    if not holds:
        raise Fault(what)


# Section 1: primitives.


def derive(context, material, size=32):
    return blake3(material, derive_key_context="hushfs v1 " + context).digest(length=size)


def prf(key, message):
    return blake3(message, key=key).digest()


def siv_seal(key, nonce, aad, plain):
    return AESGCMSIV(key).encrypt(nonce, plain, aad)


def siv_open(key, nonce, aad, sealed):
    return AESGCMSIV(key).decrypt(nonce, sealed, aad)


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    check(b64(data) == text, "base64url is canonical")
    return data


def u16(number):
    return struct.pack("<H", number)


def u32(number):
    return struct.pack("<I", number)


def u64(number):
    return struct.pack("<Q", number)


def wrap(kek, aad, secret, salt):
    out = derive("committing wrap", kek + salt + blake3(aad).digest(), 76)
    return salt + out[44:] + siv_seal(out[:32], out[32:44], b"", secret)


def unwrap(kek, aad, wrapped):
    check(len(wrapped) == 96, "a wrap has 96 bytes")
    out = derive("committing wrap", kek + wrapped[:16] + blake3(aad).digest(), 76)
    check(hmac.compare_digest(out[44:], wrapped[16:48]), "the commitment of a wrap")
    return siv_open(out[:32], out[32:44], b"", wrapped[48:])


class Body:
    """Reads the fields of section 1.3."""

    def __init__(self, data):
        self.data = data

    def bytes(self, size):
        check(len(self.data) >= size, "a body is long enough")
        head, self.data = self.data[:size], self.data[size:]
        return head

    def u8(self):
        return self.bytes(1)[0]

    def u16(self):
        return struct.unpack("<H", self.bytes(2))[0]

    def u32(self):
        return struct.unpack("<I", self.bytes(4))[0]

    def u64(self):
        return struct.unpack("<Q", self.bytes(8))[0]

    def list(self, least, most, element):
        count = self.u64()
        check(least <= count <= most, "the count of a list")
        return [element() for _ in range(count)]

    def blob(self, most):
        size = self.u64()
        check(size <= most, "the size of a list of bytes")
        return self.bytes(size)

    def string(self, most=1 << 22):
        return self.blob(most).decode()

    def option(self, value):
        present = self.u8()
        check(present <= 1, "an option is 0 or 1")
        return value() if present else None

    def extensions(self, known=()):
        """The data of the extensions of known kinds."""
        found = self.list(0, 64, lambda: (self.u16(), self.u8(), self.blob(1 << 22)))
        check(not any(critical and kind not in known for kind, critical, _ in found), "no unknown critical extension")
        return [(critical, data) for kind, critical, data in found if kind in known]

    def end(self):
        check(not self.data, "no bytes are left over in a body")


def rises(items):
    return all(a < b for a, b in zip(items, items[1:]))


def split_file(data, magic, newest, limit):
    """Splits front ‖ body ‖ mac; returns the version, the body, the bytes under the mac, and the mac."""
    check(data[:8] == magic, "the magic number")
    version, encoding, size = struct.unpack("<HHI", data[8:16])
    check(1 <= version <= newest and encoding == 1 and size <= limit, "version, encoding and length")
    check(len(data) == 16 + size + 32, "the file ends behind its mac")
    return version, Body(data[16 : 16 + size]), data[: 16 + size], data[16 + size :]


# What slots and ways take: the table of section 4.


def slot_kind(body, newest=7):
    """Reads the kind of a slot; returns its number, and all of it as it stands there."""
    before = body.data
    kind = body.u32()
    check(kind <= newest, "the kind of a slot")
    if kind == 0:
        body.bytes(28)
    elif kind == 3:
        name = body.string(255)
        check(name not in ("", ".", "..") and "/" not in name and "\0" not in name, "the name of a credential")
    elif kind == 4:
        words = body.list(1, 64, lambda: body.string(4096))
        check(words[0] and "\0" not in "".join(words), "the words of a command")
        check(sum(len(word.encode()) for word in words) <= 4096, "the length of a command")
    elif kind == 5:
        check(body.blob(2048) and body.blob(2048), "the halves of a TPM's object")
        check(body.u32() < 1 << 24 and body.u8() <= 1, "registers and PIN of a TPM's object")
    elif kind == 6:
        check(len(body.blob(1216)) == 1216 and len(body.blob(1120)) == 1120, "the keys of a recipient")
        body.bytes(48)
    elif kind == 7:
        remote_key(body)
        body.blob(8192)
    return kind, before[: len(before) - len(body.data)]


def remote_key(body):
    kind = body.u32()
    check(kind <= 1, "the kind of a remote key")
    if kind == 0:
        arn = body.string(2048)
        check(arn.startswith("arn:") and all("!" <= c <= "~" for c in arn), "an ARN")
        return arn
    token, label, id = body.string(32), body.string(255), body.blob(255)
    check(token and (label or id) and "\0" not in token + label, "the name of a key in a token")
    return token, label, id


# Section 4: the local keystore.


class Keystore:
    def __init__(self, data):
        self.version, body, self.message, self.mac = split_file(data, b"HUSHKEYS", 2, 4 << 20)
        self.id, self.generation, self.last_time = body.bytes(16), body.u64(), body.u64()
        self.audit = (body.u64(), body.bytes(32)) if self.version > 1 else None
        self.slots = body.list(1, 32, lambda: self.slot(body))
        self.keys = body.list(1, 1024, lambda: self.key(body))
        self.aliases = body.list(0, 4096, lambda: (body.string(), body.bytes(16)))
        self.vaults = dict(body.list(0, 4096, lambda: self.vault(body)))
        self.names_marks = self.marks(body.extensions(known=(2,)))
        body.end()
        check(rises([slot["id"] for slot in self.slots]), "slots rise")
        check(rises([key["id"] for key in self.keys]), "keys rise")

    @staticmethod
    def marks(found):
        """The marks of the names roots of vaults."""
        check(len(found) <= 1, "one extension with marks")
        if not found:
            return {}
        critical, data = found[0]
        check(critical == 1 and data and len(data) % 32 == 0 and len(data) <= 4096 * 32, "the marks of vaults")
        marks = [(data[at : at + 16], data[at + 16 : at + 32]) for at in range(0, len(data), 32)]
        check(rises([vault for vault, _ in marks]), "the marks of vaults rise")
        return dict(marks)

    def vault(self, body):
        record = body.bytes(16), body.u32()
        if self.version > 1:
            body.string(255)
            keys = body.list(0, 16, lambda: (body.bytes(16), body.u32(), body.u32()))
            check(rises([key for key, _, _ in keys]), "keys of a vault rise")
            body.option(lambda: (body.u64(), body.u64()))
            body.option(body.u64)
        return record

    def slot(self, body):
        slot = {"id": body.u32(), "label": body.string(64), "created": body.u64()}
        _, slot["kind"] = slot_kind(body, 2 if self.version == 1 else 7)
        slot["public"], slot["encapsulated"] = body.blob(1216), body.blob(1120)
        slot["sealed"], slot["authenticator"] = body.bytes(48), body.bytes(96)
        return slot

    def key(self, body):
        new = self.version > 1
        key = {"id": body.bytes(16), "manager": body.u32()}
        key["remote"] = body.option(lambda: remote_key(body)) if new else None
        key["state"] = body.u32()
        check(key["manager"] <= 1 and key["state"] <= 2, "manager and state of a key")
        if key["state"] == 2:
            body.u64()
        key["created"], key["description"] = body.u64(), body.string(8192)
        key["rotation"] = body.option(lambda: (body.u32(), body.u64()))
        if new:
            tags = body.list(0, 50, lambda: (body.string(), body.string()))
            check(rises([name.encode() for name, _ in tags]), "tags rise")
            check(all(1 <= len(name) <= 128 and len(value) <= 256 for name, value in tags), "lengths of tags")
            body.string(32 << 10)
            last_use = body.option(lambda: (body.u32(), body.u64()))
            check(last_use is None or last_use[0] <= 3, "the operation of a last use")
        least, most = (1, 1000) if key["remote"] is None else (0, 0)
        key["materials"] = body.list(least, most, lambda: self.material(body))
        check(rises([0] + [material[0] for material in key["materials"]]), "materials rise from 1")
        return key

    def material(self, body):
        version, material_id, created = body.u32(), body.bytes(32), body.u64()
        if self.version > 1:
            check(body.u32() <= 3, "the cause of a material")
        return version, material_id, created, body.bytes(96)

    def root(self, kind, secret):
        """Opens the slot of a kind that the secret fits."""
        for slot in self.slots:
            if slot["kind"][0] != kind:
                continue
            slot_secret = secret
            try:
                if kind == 0:
                    slot_secret = passphrase_slot(secret, slot["kind"])
                if kind == 6:
                    slot_secret = recipient_slot(secret, slot["kind"], self.id + u32(slot["id"]))
                aad = self.id + u32(slot["id"]) + slot["kind"]
                root = open_root(slot_secret, slot["public"], slot["encapsulated"], aad, slot["sealed"])
            except Exception as error:
                print(f"slot {slot['id']}: {error!r}", file=sys.stderr)
                continue
            aad = b"hushfs v1 slot authenticator" + self.id + u32(slot["id"])
            authenticator = derive("slot authenticator", slot_secret)
            check(unwrap(root, aad, slot["authenticator"]) == authenticator, "the authenticator of a slot")
            return root
        raise Fault("a slot opens")

    def open(self, root):
        """Checks the mac; returns the materials by key id and version."""
        check(prf(derive("keystore mac key", root), self.message) == self.mac, "the mac of the keystore")
        materials = {}
        for key in self.keys:
            for version, material_id, _, wrapped in key["materials"]:
                aad = b"hushfs v1 key material" + self.id + key["id"] + u32(version)
                material = unwrap(root, aad, wrapped)
                check(derive("key material id", material) == material_id, "the id of a material")
                materials[key["id"], version] = material
        return materials


def passphrase_slot(passphrase, kind):
    salt, (memory, passes, lanes) = kind[4:20], struct.unpack("<III", kind[20:])
    check(8 << 10 <= memory <= 4 << 20 and 1 <= passes <= 64 and 1 <= lanes <= 64, "Argon2id parameters")
    stretched = hash_secret_raw(passphrase, salt, passes, memory, lanes, 32, Type.ID, 19)
    return derive("passphrase slot", stretched)


def recipient_slot(identity, kind, place, purpose=b"hushfs v1 recipient slot"):
    """Opens the secret of a slot that was sealed to the public key of an identity."""
    recipient, encapsulated, sealed = kind[12:1228], kind[1236:2356], kind[2356:]
    check(recipient == xwing(identity)[2], "the recipient of a slot")
    shared = decapsulate(identity, encapsulated)
    key, nonce = hpke_key(shared, b"\x00", b"hushfs v1 recipient", b"", b"")
    return ChaCha20Poly1305(key).decrypt(nonce, sealed, purpose + place)


# Texts of section 4: what they start with, by the number in their checksum.
TEXTS = {1: "hush-recipient-1-", 2: "HUSH-IDENTITY-1-", 3: "HUSH-LOCKED-IDENTITY-1-"}


def text_of_kind(kind, data):
    return TEXTS[kind] + b64(data + derive("text checksum", bytes([kind]) + data, 4))


def bytes_of_kind(kind, text):
    data = unb64(text.removeprefix(TEXTS[kind]))[:-4]
    check(text_of_kind(kind, data) == text, "the checksum of a text")
    return data


CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def recovery_key_text(key):
    """Prints a recovery key."""
    bits = int.from_bytes(key + derive("recovery key checksum", key, 3), "big")
    symbols = [bits >> 5 * (55 - i) & 31 for i in range(56)]
    text = "HUSH1"
    for number in range(8):
        group = symbols[7 * number : 7 * number + 7]
        total = (sum((i + 1) * value for i, value in enumerate(group)) + number) % 31
        text += "-" + "".join(CROCKFORD[value] for value in group + [total])
    return text


def recovery_key(text):
    symbols = text.strip().removeprefix("HUSH1-").replace("-", "")
    check(len(symbols) == 64, "a recovery key has 64 characters")
    bits = 0
    for i, symbol in enumerate(symbols):
        if i % 8 != 7:
            bits = bits << 5 | CROCKFORD.index(symbol)
    key = bits.to_bytes(35, "big")[:32]
    check(recovery_key_text(key) == text.strip(), "the checks of a recovery key")
    return key


# HPKE with X-Wing, as section 4 names it: RFC 9180, with the KEM of draft-ietf-hpke-pq and draft-connolly-cfrg-xwing-kem.


def labeled_extract(suite, salt, label, ikm):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def labeled_expand(suite, prk, label, info, size):
    info = struct.pack(">H", size) + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, info + b"\x01", "sha256")[:size]


def xwing(secret):
    """Grows a key pair from 32 bytes, by DeriveKeyPair."""
    kem = b"KEM" + bytes.fromhex("647a")
    labeled = secret + b"HPKE-v1" + kem + b"\x00\x0dDeriveKeyPair" + b"\x00\x20"
    seed = hashlib.shake_256(labeled).digest(32)
    expanded = hashlib.shake_256(seed).digest(96)
    mlkem, x25519 = MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
    return mlkem, x25519, mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def decapsulate(secret, encapsulated):
    mlkem, x25519, public = xwing(secret)
    shared_x = x25519.exchange(X25519PublicKey.from_public_bytes(encapsulated[1088:]))
    return hashlib.sha3_256(
        mlkem.decapsulate(encapsulated[:1088]) + shared_x + encapsulated[1088:] + public[1184:] + rb"\.//^" + b"\\"
    ).digest()


def hpke_key(shared, mode, info, psk, psk_id):
    suite = b"HPKE" + bytes.fromhex("647a00010003")
    psk_id = labeled_extract(suite, b"", b"psk_id_hash", psk_id)
    info = labeled_extract(suite, b"", b"info_hash", info)
    secret = labeled_extract(suite, shared, b"secret", psk)
    context = mode + psk_id + info
    return labeled_expand(suite, secret, b"key", context, 32), labeled_expand(suite, secret, b"base_nonce", context, 12)


def open_root(slot_secret, public, encapsulated, aad, sealed):
    check(len(public) == 1216 and len(encapsulated) == 1120, "sizes of a slot's keys")
    check(xwing(slot_secret)[2] == public, "the public key grows from the secret")
    shared, psk = decapsulate(slot_secret, encapsulated), derive("slot authenticator", slot_secret)
    key, nonce = hpke_key(shared, b"\x01", b"hushfs v1 slot", psk, b"hushfs v1 slot authenticator")
    return ChaCha20Poly1305(key).decrypt(nonce, sealed, aad)


# Section 3: the vault header.


def encode_context(pairs):
    out = u64(len(pairs))
    for text in [text for pair in sorted(pairs) for text in pair]:
        out += u64(len(text.encode())) + text.encode()
    return out


class Vault:
    def __init__(self, path, keystore, materials, customer_key=None):
        self.path = path
        data = (path / "vault.hush").read_bytes()
        version, body, message, mac = split_file(data, b"HUSHVALT", 2, 1 << 20)
        self.id, self.created = body.bytes(16), body.u64()
        self.suite, self.block_size, features, self.current = body.u16(), body.u32(), body.u64(), body.u32()
        epochs = body.list(1, 1024, lambda: (body.u32(), body.u64(), body.bytes(96), self.wraps(body)))
        bucket_keys = body.extensions([1])
        self.keystore, self.materials = keystore, materials
        self.wraps_of = {number: wraps for number, _, _, wraps in epochs}
        chains = body.list(1, 64, lambda: (body.bytes(16), body.list(1, 1024, body.u32))) if version > 1 else []
        directories = body.list(0, 4096, lambda: (body.bytes(16), body.bytes(16))) if version > 1 else []
        body.end()
        check(features == 0, "no unknown feature")
        check(rises([key for key, _ in chains]) and rises([id for id, _ in directories]), "keys and directories rise")
        owner = {number: key for key, numbers in chains for number in numbers}
        check(len(owner) == sum(len(numbers) for _, numbers in chains), "an epoch is of one key")
        customers = {wraps[0][1] for _, _, _, wraps in epochs if wraps[0][0] == 1}
        check({key for _, key in directories} <= {key for key, _ in chains} - customers, "directories have keys of the keystore")
        check(len(bucket_keys) <= 1, "where bucket keys are off is said once")
        for critical, data in bucket_keys:
            off = [data[at : at + 16] for at in range(1, len(data), 16)]
            check(critical == 1 and data[:1] in (b"\0", b"\1") and len(data) % 16 == 1, "where bucket keys are off")
            check(rises(off) and set(off) <= {id for id, _ in directories}, "directories without bucket keys have a key")
        check(self.block_size in (1 << bit for bit in range(12, 17)), "the block size")
        check(rises([0] + [epoch[0] for epoch in epochs]), "epochs rise from 1")
        self.epochs = {}
        names_roots = set()
        for number, _, names_root, wraps in epochs:
            custodian, key_id, pairs, blob = wraps[0]
            if number in owner:
                check(len(wraps) == 1 and key_id == owner[number], "an epoch of another key has one wrap, under that")
                check(names_root == bytes(96), "an epoch of another key opens no names")
            check(custodian == 0 or custodian == 1 and number in owner, "the custodian")
            if custodian == 1:
                if customer_key is not None:
                    aad = b"hushfs v1 customer key wrap" + self.id + u32(number) + key_id
                    self.epochs[number] = unwrap(derive("customer key", customer_key + self.id), aad, blob)
                continue
            version = struct.unpack("<I", blob[:4])[0]
            pairs = pairs + [("hushfs:vault", self.id.hex()), ("hushfs:epoch", str(number))]
            aad = b"hushfs v1 master key wrap" + keystore.id + key_id + u32(version) + encode_context(pairs)
            key = unwrap(materials[key_id, version], aad, blob[4:])
            self.epochs[number] = key
            if number in owner:
                continue
            aad = b"hushfs v1 names root" + self.id + u32(number)
            names_roots.add(unwrap(derive("names root wrapping key", key + self.id), aad, names_root))
        mac_key = derive("vault header mac key", self.epochs[self.current] + self.id)
        check(prf(mac_key, message) == mac, "the mac of the vault header")
        check(self.current not in owner, "the current epoch is of the vault's own key")
        check(keystore.vaults.get(self.id, 0) <= self.current, "the current epoch is not an old one")
        check(len(names_roots) == 1, "the names root is the same in all epochs")
        self.names_root = names_roots.pop()
        mark = derive("names root mark", self.names_root, 16)
        check(keystore.names_marks.get(self.id, mark) == mark, "the vault is the one that the keystore knows")

    @staticmethod
    def wraps(body):
        pair = lambda: (body.string(), body.string())
        return body.list(1, 16, lambda: (body.u32(), body.bytes(16), body.list(0, 16, pair), body.blob(8192)))

    # Section 6: directories and names.

    def root_id(self):
        return derive("root directory id", self.names_root, 16)

    def directory_id(self, path, parent, name):
        header = path / "dir.hush"
        if not header.exists():
            return derive("directory id", self.names_root + parent + name, 16)
        data = header.read_bytes()
        check(len(data) == 128 and data[:10] == b"HUSHDIRS" + u16(1), "the shape of a directory header")
        flags, key = struct.unpack("<H", data[10:12])[0], derive("directory header key", self.names_root)
        check(prf(key, data[:96]) == data[96:], "the mac of a directory header")
        check(flags <= 1 and data[12:16] == bytes(4), "flags of a directory header")
        place = prf(key, b"place" + parent + name)
        check(place == data[32:64] or (flags and place == data[64:96]), "the place of a directory")
        return data[16:32]

    def names(self, path, directory):
        """Gives the entries of a directory: the name in the view and the path on disk."""
        key = derive("directory name key", self.names_root + directory)
        for entry in sorted(os.listdir(path)):
            if "." in entry:
                continue
            if len(entry) == 44:
                data = (path / f"{entry}.long.hush").read_bytes()
                check(data[:10] == b"HUSHNAME" + u16(1), "the shape of a long name")
                sealed = data[12:]
                check(len(sealed) == struct.unpack("<H", data[10:12])[0], "the length of a long name")
                check(b64(derive("long name", sealed, 33)) == entry, "the hash of a long name")
            else:
                check(len(entry) in (43, 64, 86, 107, 128, 150, 171, 192, 214, 235), "the length of an entry")
                sealed = unb64(entry)
            padded = siv_open(key, bytes(12), b"", sealed)
            name = padded.rstrip(b"\0")
            check(1 <= len(name) <= 255 and len(padded) - len(name) < 16, "the padding of a name")
            check(b"\0" not in name and b"/" not in name and name not in (b".", b".."), "a name is one")
            yield name, path / entry

    # Section 5: files.

    def header(self, path, directory, file_id):
        data = (path / f"{b64(file_id)}.hush").read_bytes()
        check(data[:8] == b"HUSHHEAD" and data[10:12] == u16(1) and data[12:16] == u32(len(data) - 16), "the shape of a header")
        suite, epoch = struct.unpack("<HI", data[16:22])
        check(suite == self.suite and data[22:38] == file_id and data[38:54] == directory, "a header is in its place")
        if data[8:10] == u16(2):
            data_key = self.without_bucket_key(data, epoch, file_id)
        else:
            check(len(data) == 182 and data[8:10] == u16(1), "the version of a header")
            kek = derive("header wrapping key", self.epochs[epoch] + self.id)
            data_key = unwrap(kek, b"hushfs v1 header" + self.id + data[:86], data[86:])
        commitment = derive("file key commitment", data_key + file_id + u16(suite))
        check(commitment == data[54:86], "the commitment of a header")
        return data_key, commitment

    def without_bucket_key(self, data, epoch, file_id):
        """The data key of a file that the custodian was asked for by itself; here the keystore, with a key of its own."""
        key_id, size = data[86:102], struct.unpack("<I", data[102:106])[0]
        check(1 <= size <= 8192 and len(data) == 202 + size, "the size of a blob")
        pairs = [pairs for custodian, key, pairs, _ in self.wraps_of[epoch] if custodian == 0 and key == key_id]
        check(pairs, "a file's key is one of its epoch")
        blob, version = data[110 : 106 + size], struct.unpack("<I", data[106:110])[0]
        context = pairs[0] + [("hushfs:vault", self.id.hex()), ("hushfs:file", file_id.hex())]
        aad = b"hushfs v1 master key wrap" + self.keystore.id + key_id + u32(version) + encode_context(context)
        secret = unwrap(self.materials[key_id, version], aad, blob)
        kek = derive("file wrapping key", secret + derive("header wrapping key", self.epochs[epoch] + self.id))
        return unwrap(kek, b"hushfs v2 header" + self.id + data[:-96], data[-96:])

    def content(self, path, directory, name):
        data = path.read_bytes()
        if not data:
            return b""
        check(len(data) >= 256 and data[:10] == b"HUSHDATA" + u16(1), "the shape of a preamble")
        state, flags, file_id = data[10], data[11], data[16:32]
        data_key, commitment = self.header(path.parent, directory, file_id)
        check(data[32:64] == commitment, "the commitment of a preamble")
        file_key = data_key + file_id + u16(self.suite)
        seal_key, block_key = derive("seal key", file_key), derive("block key", file_key)
        check(prf(seal_key, b"\x01" + data[:224]) == data[224:256], "the mac of a preamble")
        check(state in (1, 2) and flags < 16 and data[12:16] == bytes(4), "state and flags of a preamble")
        check(data[192:224] == bytes(32), "reserved bytes of a preamble")
        check(state == 2, "a file of a frozen vault is sealed")
        nonce_size = {1: 12, 2: 24}[self.suite]
        stride = nonce_size + self.block_size + 16
        full, rest = divmod(len(data) - 256, stride)
        check(rest == 0 or rest > nonce_size + 16, "the size of a data file")
        size = full * self.block_size + max(rest - nonce_size - 16, 0)
        check(struct.unpack("<Q", data[72:80])[0] == size, "the size in a seal")
        if flags & 2:
            place = prf(seal_key, b"\x04" + directory + name)
            check(place == data[128:160] or (flags & 4 and place == data[160:192]), "the place of a file")
        plain, total = b"", [0] * 4
        for index, start in enumerate(range(256, len(data), stride)):
            block = data[start : start + stride]
            if not any(block):
                check(flags & 1, "only a sparse file has holes")
                plain += bytes(len(block) - nonce_size - 16)
                continue
            aad = u64(index) + u16(1)
            plain += open_block(self.suite, block_key, block[:nonce_size], aad, block[nonce_size:])
            total = add(total, lanes(prf(seal_key, b"\x02" + u64(index) + block[-16:])))
        masked = add(total, lanes(prf(seal_key, b"\x03" + data[80:96])))
        check(struct.pack("<4Q", *masked) == data[96:128], "the sum of a seal")
        check(len(plain) == size, "the size of a file")
        return plain

    # Section 7: symbolic links.

    def target(self, path):
        key, text = derive("symlink key", self.names_root), os.readlink(path)
        if not text.startswith("+"):
            sealed = unb64(text)
            return siv_open(key, sealed[:12], b"", sealed[12:])
        _, link, size = text.split("+")
        data = (path.parent / f"{link}.link.hush").read_bytes()
        check(data[:12] == b"HUSHLINK" + u16(1) + bytes(2), "the shape of a link file")
        target = siv_open(key, data[12:24], unb64(link), data[24:])
        check(len(target) == int(size), "the length of a target")
        return target

    # Section 8: extended attributes.

    def xattrs(self, path):
        key, name_key = derive("xattr key", self.names_root), derive("xattr name key", self.names_root)
        out = {}
        for attribute in os.listxattr(path, follow_symlinks=False):
            for prefix in ("user.hush.", "trusted.hush."):
                if not attribute.startswith(prefix):
                    continue
                h = unb64(attribute.removeprefix(prefix))
                sealed = os.getxattr(path, attribute, follow_symlinks=False)
                plain = siv_open(key, sealed[:12], h, sealed[12:])
                size = struct.unpack("<H", plain[:2])[0]
                name, value = plain[2 : 2 + size], plain[2 + size :]
                check(len(name) == size and prf(name_key, name)[:16] == h, "the name of an attribute")
                out[text_of(name)] = text_of(value)
        return out

    def walk(self, path, directory, prefix=b""):
        for name, disk in self.names(path, directory):
            status = disk.lstat()
            entry = {"path": text_of(prefix + name)}
            below = []
            if stat.S_ISDIR(status.st_mode):
                entry["type"] = "directory"
                below = self.walk(disk, self.directory_id(disk, directory, name), prefix + name + b"/")
            elif stat.S_ISLNK(status.st_mode):
                entry.update(type="link", target=text_of(self.target(disk)))
            elif stat.S_ISREG(status.st_mode):
                plain = self.content(disk, directory, name)
                entry.update(type="file", size=len(plain), blake3=blake3(plain).hexdigest())
            else:
                raise Fault("a frozen vault has no special files")
            if not stat.S_ISLNK(status.st_mode) and (attributes := self.xattrs(disk)):
                entry["xattrs"] = dict(sorted(attributes.items()))
            yield entry
            yield from below


def read_snapshot(vault, data):
    """Section 12: the entries of a snapshot."""
    front, chunks = data[:48], data[48:]
    check(front[:16] == b"HUSHSNAP" + u16(1) + bytes(6) and front[16:32] == vault.id, "the front of a snapshot")
    key, plain = derive("snapshot key", vault.names_root + front[32:]), b""
    while chunks:
        chunk, chunks = chunks[:65552], chunks[65552:]
        plain += siv_open(key, u64(len(plain) >> 16) + bytes([not chunks, 0, 0, 0]), front, chunk)
    body = Body(plain)
    _, flags, _, epoch = body.u64(), body.u32(), body.bytes(16), body.u32()
    check(flags <= 1 and epoch == vault.current, "flags and epoch of a snapshot")
    mark = prf(derive("record key", vault.names_root), b"\x04" + (vault.path / "vault.hush").read_bytes())[:16]
    check(body.bytes(16) == mark, "the mark of the vault header")
    body.bytes(24)
    kinds = {1: "directory", 2: "file", 3: "file", 4: "file", 5: "link", 6: "special", 7: "unreadable"}
    names, before, entries = [], None, []
    while kind := body.u8():
        depth, name, mode = body.u16(), body.bytes(body.u8()), body.u32()
        check(depth <= len(names) and name and b"/" not in name, "depth and name of an entry")
        names[depth:] = [name]
        check(before is None or before < names, "entries rise")
        before = names[:]
        entry = {"path": text_of(b"/".join(names)), "type": kinds[kind], "mode": mode}
        if kind in (2, 3, 4):
            body.u64()
            entry["size"] = 0
        if kind in (3, 4):
            entry["file"], entry["size"], entry["count"] = body.bytes(16).hex(), body.u64(), body.u64()
        if kind == 4:
            body.bytes(16)
            check(body.u8() <= 1, "placed is 0 or 1")
        if kind in (1, 5):
            body.bytes(16)
        if kind == 6:
            body.u64()
        entries.append(entry)
    check(body.u64() == len(entries), "the number of entries")
    body.end()
    return entries


def text_of(data):
    """Names, targets and values are bytes: all but the plainest are percent-encoded."""
    return quote_from_bytes(data)


def lanes(data):
    return list(struct.unpack("<4Q", data))


def add(a, b):
    return [(x + y) % (1 << 64) for x, y in zip(a, b)]


def open_block(suite, key, nonce, aad, sealed):
    if suite == 1:
        return siv_open(key, nonce, aad, sealed)
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).decrypt(bytes(4) + nonce[16:], sealed, aad)


def seal_block(suite, key, nonce, aad, plain):
    if suite == 1:
        return nonce + siv_seal(key, nonce, aad, plain)
    return nonce + ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(bytes(4) + nonce[16:], plain, aad)


# Section 9: sealed files.


class SealedFile:
    def __init__(self, data):
        check(len(data) >= 16, "a front")
        size = 16 + struct.unpack("<I", data[12:16])[0] + 32
        _, body, self.message, self.mac = split_file(data[:size], b"HUSHSEAL", 1, 1 << 20)
        self.content = data[size:]
        self.id, self.suite, self.block_size, self.commitment = body.bytes(16), body.u16(), body.u32(), body.bytes(32)
        self.context = body.list(0, 15, lambda: (body.string(), body.string()))
        self.ways = body.list(1, 64, lambda: self.way(body))
        body.extensions()
        body.end()
        check(self.suite in (1, 2) and self.block_size in (1 << bits for bits in range(12, 17)), "suite and block size")
        check(rises([number for number, _, _ in self.ways]), "ways rise")
        check(rises([name for name, _ in self.context]), "the context rises")

    def way(self, body):
        number, variant = body.u32(), body.u32()
        check(variant <= 1, "the kind of a way")
        kind = slot_kind(body) if variant == 0 else (None, body.bytes(32) + body.blob(8192))
        return number, kind, body.bytes(96)

    def open(self, wanted, secret):
        """Opens the content by the ways of a kind; `secret` gives that of a way from its fields and place."""
        faults = []
        for number, (kind, fields), wrapped in self.ways:
            if kind != wanted:
                continue
            place = self.id + u32(number)
            try:
                key = unwrap(secret(fields, place), b"hushfs v1 sealed file" + place, wrapped)
            except (Fault, ValueError, InvalidTag) as fault:
                faults.append(fault)
                continue
            return self.blocks(key)
        raise Fault(f"no way opens: {faults}")

    def blocks(self, key):
        file = key + self.id + u16(self.suite)
        check(hmac.compare_digest(derive("file key commitment", file), self.commitment), "the commitment")
        seal, block_key = derive("seal key", file), derive("block key", file)
        check(hmac.compare_digest(prf(seal, b"\x05" + self.message), self.mac), "the mac of a sealed file")
        check(len(self.content) >= 32, "a sealed file has an end")
        sealed, end = self.content[:-32], self.content[-32:]
        nonce_size = {1: 12, 2: 24}[self.suite]
        stride = nonce_size + self.block_size + 16
        plain, total = b"", [0] * 4
        for index, at in enumerate(range(0, len(sealed), stride)):
            block = sealed[at : at + stride]
            check(len(block) > nonce_size + 16, "a block has a byte")
            plain += open_block(self.suite, block_key, block[:nonce_size], u64(index) + u16(1), block[nonce_size:])
            total = add(total, lanes(prf(seal, b"\x02" + u64(index) + block[-16:])))
        check(hmac.compare_digest(prf(seal, b"\x06" + u64(len(plain)) + struct.pack("<4Q", *total)), end), "the end")
        return plain


def open_sealed(data, kind, secret):
    number, give = {
        "passphrase": (0, lambda fields, _: passphrase_slot(secret.encode(), fields)),
        "key-file": (1, lambda *_: derive("key file slot", Path(secret).read_bytes())),
        "recovery-key": (2, lambda *_: derive("recovery slot", recovery_key(secret))),
        "identity": (
            6,
            lambda fields, place: recipient_slot(
                bytes_of_kind(2, secret), fields, place, b"hushfs v1 sealed file recipient"
            ),
        ),
    }[kind]
    return SealedFile(data).open(number, give)


def hchacha20(key, nonce):
    """Section 2.2 of draft-irtf-cfrg-xchacha."""
    x = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))

    def rotate(value, by):
        return (value << by | value >> 32 - by) & 0xFFFFFFFF

    def quarter(a, b, c, d):
        for one, two, three, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[one] = (x[one] + x[two]) & 0xFFFFFFFF
            x[three] = rotate(x[three] ^ x[one], by)

    for _ in range(10):
        for column in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            quarter(*column)
        for diagonal in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(*diagonal)
    return struct.pack("<8I", *x[:4], *x[12:])


def main():
    path, kind, secret = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if path.is_file():
        sys.stdout.buffer.write(open_sealed(path.read_bytes(), kind, secret))
        return
    keystore = Keystore((path / "keystore.hush").read_bytes())
    if kind == "root":
        root = bytes.fromhex(secret)
    elif kind == "passphrase":
        root = keystore.root(0, secret.encode())
    elif kind == "key-file":
        root = keystore.root(1, derive("key file slot", Path(secret).read_bytes()))
    elif kind == "credential":
        root = keystore.root(3, derive("key file slot", Path(secret).read_bytes()))
    elif kind == "command":
        root = keystore.root(4, derive("key file slot", Path(secret).read_bytes()))
    elif kind == "identity":
        root = keystore.root(6, bytes_of_kind(2, secret))
    else:
        root = keystore.root(2, derive("recovery slot", recovery_key(secret)))
    more = sys.argv[4:]
    customer_key = Path(more[0]).read_bytes() if more and more[0] != "--snapshot" else None
    vault = Vault(path, keystore, keystore.open(root), customer_key)
    if more and more[0] == "--snapshot":
        listing = read_snapshot(vault, Path(more[1]).read_bytes())
    else:
        listing = list(vault.walk(path, vault.root_id()))
    listing.sort(key=lambda entry: entry["path"])
    json.dump(listing, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
