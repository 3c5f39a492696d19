#!/usr/bin/env python3
"""A client of ringkv written from docs/protocol.md alone. What it checks is in ringkv_client_check.py.

ringkv_client.py HOST PORT [CREDENTIAL]   checks itself against a live server
ringkv_client.py --vectors FILE           checks the test vectors, without a server
"""
import socket
import struct
import sys

INTS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q"}
NEVER = 2**64 - 1
NO_VERSION = bytes(16)


def fields(text):
    return [tuple(part.split(":")) for part in text.split()]


ELEMENTS = {  # structures in lists
    "item": fields("ttl_ms:u64 key:bytes value:bytes"),
    "value": fields("present:u8 version:v value:bytes"),
    "entry": fields("version:v remaining_ms:u64 has_value:u8 key:bytes value:bytes"),
    "row": fields("id:u32 default_ttl_ms:u64 durability:u8 name:bytes"),
    "detail": fields("id:u32 default_ttl_ms:u64 durability:u8 compression:u8 name:bytes"),
    "term": fields("id:u32 default_ttl_ms:u64 durability:u8 compression:u8 levels:u16 name:bytes"),
    "node": fields("id:u64 port:u16 cores:u16 host:bytes"),
}
KEYED, SPEC = "deadline_ms:u32 namespace:u32 ", "deadline_ms:u32 default_ttl_ms:u64 durability:u8 name:bytes"
FORM = "deadline_ms:u32 default_ttl_ms:u64 durability:u8 compression:u8 name:bytes"
LIMITS = "frame_bytes_max key_bytes_max value_bytes_max multi_keys_max scan_entries_max connection_bytes_max deadline_ms_default"
KINDS = {
    "hello": (1, "deadline_ms:u32 version_min:u16 version_max:u16 core:u16 credential:bytes client_name:bytes"),
    "ping": (2, "deadline_ms:u32"), "info": (3, "deadline_ms:u32"), "namespace_list": (32, "deadline_ms:u32"),
    "get": (16, KEYED + "key:bytes"), "ttl": (23, KEYED + "key:bytes"),
    "put": (17, KEYED + "ttl_ms:u64 condition:u8 flags:u8 condition_version:v version:v key:bytes value:bytes"),
    "delete": (18, KEYED + "condition:u8 flags:u8 condition_version:v version:v key:bytes"),
    "multi_get": (19, KEYED + "keys:list-bytes"), "multi_put": (20, KEYED + "flags:u8 version:v items:list-item"),
    "expire": (21, KEYED + "ttl_ms:u64 flags:u8 version:v key:bytes"), "persist": (22, KEYED + "ttl_ms:u64 flags:u8 version:v key:bytes"),
    "scan": (24, KEYED + "vnode:u32 limit:u32 flags:u8 cursor:bytes"),
    "namespace_create": (33, SPEC), "namespace_alter": (34, SPEC), "snapshot": (40, "deadline_ms:u32 name:bytes"),
    "cluster": (41, "deadline_ms:u32 words:bytes"),
    "namespace_details": (35, "deadline_ms:u32"), "namespace_terms": (38, "deadline_ms:u32"), "namespace_make": (36, FORM), "namespace_change": (37, FORM),
    "hello_ok": (0x8001, "protocol_version:u16 core:u16 cores:u16 vnodes:u32 node_id:u64 cluster_id:v epoch:u64 features:u64 "
                 + " ".join(name + ":u32" for name in LIMITS.split()) + " nodes:list-node owners:list-u16"),
    "pong": (0x8002, ""), "text": (0x8003, "text:bytes"), "value": (0x8010, "version:v remaining_ms:u64 value:bytes"),
    "done": (0x8011, "version:v"), "absent": (0x8012, ""), "values": (0x8013, "values:list-value"),
    "ttl_is": (0x8014, "remaining_ms:u64"), "page": (0x8015, "cursor:bytes entries:list-entry"),
    "not_met": (0x8016, "version:v"), "announced": (0x8017, "version:v"), "namespaces": (0x8020, "namespaces:list-row"),
    "namespace_details_are": (0x8021, "namespaces:list-detail"), "namespace_terms_are": (0x8022, "namespaces:list-term"),
    "error": (0x80FF, "code:u16 need:u16 alive:u16 version:v message:bytes"),
}
NAMES = {kind: name for name, (kind, _) in KINDS.items()}
WRITE = {"flags": 0, "version": NO_VERSION}


def size(of):
    if of in ELEMENTS:
        return sum(size(kind) for _, kind in ELEMENTS[of])
    return struct.calcsize(INTS[of]) if of in INTS else 16 if of == "v" else 8


def write_piece(out, of, value):
    """Appends what a pointer of this type points at; what its root needs to know: position and length, or the value itself."""
    if of == "bytes":
        out += value
        return len(out) - len(value), len(value)
    if of.startswith("list-"):
        parts = [write_pieces(out, of[5:], element) for element in value]
        at = len(out)
        for part in parts:
            write_root(out, of[5:], part)
        return at, len(value)
    return value


def write_pieces(out, of, value):
    return [write_piece(out, kind, value[name]) for name, kind in ELEMENTS[of]] if of in ELEMENTS else write_piece(out, of, value)


def write_root(out, of, value):
    if of in ELEMENTS:
        for (_, kind), part in zip(ELEMENTS[of], value):
            write_root(out, kind, part)
    elif of in INTS:
        out += struct.pack(INTS[of], value)
    elif of == "v":
        out += value
    else:
        out += struct.pack("<iI", value[0] - len(out), value[1])


def encode(name, request_id, more=0, /, **values):
    kind, layout = KINDS[name]
    out = bytearray()
    parts = [(of, write_piece(out, of, values[field])) for field, of in fields(layout)]
    for of, part in parts:
        write_root(out, of, part)
    return struct.pack("<IHHQ", len(out), kind, more, request_id) + bytes(out)


def read(body, at, of):
    if of in ELEMENTS:
        value = {}
        for name, kind in ELEMENTS[of]:
            value[name] = read(body, at, kind)
            at += size(kind)
        return value
    if of in INTS:
        return struct.unpack_from(INTS[of], body, at)[0]
    if of == "v":
        return bytes(body[at:at + 16])
    offset, count = struct.unpack_from("<iI", body, at)
    step = 1 if of == "bytes" else size(of[5:])
    start = at + offset
    if start < 0 or start + count * step > len(body):
        raise ValueError("a pointer leaves the body")
    if of == "bytes":
        return bytes(body[start:start + count])
    return [read(body, start + index * step, of[5:]) for index in range(count)]


def decode(kind, body):
    name, values = NAMES[kind], {}
    layout = fields(KINDS[name][1])
    at = len(body) - sum(size(of) for _, of in layout)
    if at < 0:
        raise ValueError("the body is too short for its root")
    for field, of in layout:
        values[field] = read(body, at, of)
        at += size(of)
    return name, values


class Error(Exception):
    def __init__(self, code, message, version):
        super().__init__("error %d: %s" % (code, message))
        self.code, self.version = code, version


class Client:
    def __init__(self, host, port, credential=b"", deadline_ms=5000, namespace=1):
        self.socket = socket.create_connection((host, port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.id, self.deadline_ms, self.namespace, self.announced = 0, deadline_ms, namespace, None
        self.server = self.hello(credential)

    def exactly(self, count):
        data = bytearray()
        while len(data) < count:
            chunk = self.socket.recv(count - len(data))
            if not chunk:
                raise ConnectionError("the server closed the connection")
            data += chunk
        return data

    def call(self, name, /, **values):
        self.id += 1
        if "namespace:u32" in KINDS[name][1]:
            values["namespace"] = self.namespace
        self.socket.sendall(encode(name, self.id, deadline_ms=self.deadline_ms, **values))
        collected = []
        while True:
            length, kind, flags, answered = struct.unpack("<IHHQ", self.exactly(16))
            answer, got = decode(kind, self.exactly(length))
            assert answered == self.id, "one request at a time, one answer at a time"
            if answer == "error":
                raise Error(got["code"], got["message"].decode(), got["version"])
            if answer == "announced":
                self.announced = got["version"]
            collected += got.get("values", [])
            if not flags & 1:
                return answer, dict(got, values=collected) if answer == "values" else got

    def hello(self, credential=b""):
        return self.call("hello", version_min=1, version_max=1, core=0xFFFF, credential=credential, client_name=b"python")[1]

    def ping(self):
        return self.call("ping")[0] == "pong"

    def info(self):
        return dict(line.split(":", 1) for line in self.call("info")[1]["text"].decode().splitlines() if ":" in line)

    def get(self, key):
        """(value, version, remaining_ms or None), or None."""
        answer, got = self.call("get", key=key)
        return None if answer == "absent" else (got["value"], got["version"], None if got["remaining_ms"] == NEVER else got["remaining_ms"])

    def put(self, key, value, ttl_ms=0, condition=0, condition_version=NO_VERSION, version=NO_VERSION, announce=False):
        """The version, or None where the condition was not met."""
        answer, got = self.call("put", key=key, value=value, ttl_ms=ttl_ms, condition=condition, condition_version=condition_version,
                                version=version, flags=int(announce))
        return got["version"] if answer == "done" else None

    def delete(self, key, condition=0, condition_version=NO_VERSION):
        answer, got = self.call("delete", key=key, condition=condition, condition_version=condition_version, **WRITE)
        return got["version"] if answer == "done" else None

    def expire(self, key, ttl_ms):
        return self.call("expire", key=key, ttl_ms=ttl_ms, **WRITE)[0] == "done"

    def persist(self, key):
        return self.call("persist", key=key, ttl_ms=0, **WRITE)[0] == "done"

    def ttl(self, key):
        """Milliseconds, -1 for a key that never expires, -2 for an absent one."""
        answer, got = self.call("ttl", key=key)
        return -2 if answer == "absent" else -1 if got["remaining_ms"] == NEVER else got["remaining_ms"]

    def multi_get(self, keys):
        return [row["value"] if row["present"] else None for row in self.call("multi_get", keys=keys)[1]["values"]]

    def multi_put(self, pairs, ttl_ms=0):
        return self.call("multi_put", items=[{"ttl_ms": ttl_ms, "key": key, "value": value} for key, value in pairs], **WRITE)[1]["version"]

    def scan(self, with_values=False, limit=0):
        """Every live key of the namespace: (key, value)."""
        for vnode in range(self.server["vnodes"]):
            cursor = b""
            while True:
                page = self.call("scan", vnode=vnode, limit=limit, flags=int(with_values), cursor=cursor)[1]
                yield from ((row["key"], row["value"]) for row in page["entries"])
                cursor = page["cursor"]
                if not cursor:
                    break

    def namespaces(self):
        knows = self.server["features"]
        command = "namespace_terms" if knows & 8 else "namespace_details" if knows & 2 else "namespace_list"
        return {row["name"].decode(): row for row in self.call(command)[1]["namespaces"]}


if __name__ == "__main__":
    from ringkv_client_check import live, vectors

    try:
        if sys.argv[1] == "--vectors":
            print("ok %d vectors" % vectors(sys.argv[2]))
        else:
            print("ok %d checks" % live(sys.argv[1], int(sys.argv[2]), *(text.encode() for text in sys.argv[3:4])))
    except Exception as error:
        print("failed: %s: %s" % (type(error).__name__, error))
        sys.exit(1)
