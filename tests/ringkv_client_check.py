"""What ringkv_client.py checks: a live server, or the test vectors."""
import json
import os
import struct
import time

from ringkv_client import NEVER, WRITE, Client, Error, decode, encode


def live(host, port, credential=b""):
    client, done = Client(host, port, credential), 0
    tag = b"py-%d-" % os.getpid()
    key, big = tag + b"key", os.urandom(300_000)

    def check(truth, what):
        nonlocal done
        if not truth:
            raise AssertionError(what)
        done += 1

    check(client.server["protocol_version"] == 1 and client.server["cores"] >= 1, "hello")
    check(client.ping(), "ping")
    check(client.info(), "info says something")
    check(client.namespaces()["default"]["id"] == 1, "the default namespace is 1")
    check(client.namespaces()["default"]["compression"] in (0, 1), "with details")
    check(client.namespaces()["default"]["levels"] == 0, "with levels")
    check(client.get(key) is None and client.ttl(key) == -2, "absent at first")
    first = client.put(key, b"one")
    check(client.get(key) == (b"one", first, None), "get what was put")
    check(client.put(key, b"no", condition=1) is None, "if absent is not met")
    second = client.put(key, b"two", condition=3, condition_version=first)
    check(second and second > first and client.get(key)[0] == b"two", "if version is met")
    check(client.put(key, b"no", condition=3, condition_version=first) is None, "the old version is not met")
    third = client.put(key, big, announce=True)
    check(client.announced == third, "announced before done")
    check(client.put(key, big, version=third) == third and client.get(key)[:2] == (big, third), "a retry is the same write")
    check(client.ttl(key) == -1 and client.expire(key, 60_000) and 0 < client.ttl(key) <= 60_000, "expire")
    check(client.persist(key) and client.ttl(key) == -1, "persist")
    client.put(key, b"kept", ttl_ms=NEVER)
    check(client.ttl(key) == -1, "a put that never expires")
    client.put(key, b"short", ttl_ms=150)
    time.sleep(0.3)
    check(client.get(key) is None and client.ttl(key) == -2 and not client.expire(key, 5), "hidden at its deadline")
    pairs = [(tag + b"%d" % n, b"value-%d" % n) for n in range(200)]
    client.multi_put(pairs)
    check(client.multi_get([k for k, _ in pairs] + [key]) == [v for _, v in pairs] + [None], "multi")
    found = [pair for pair in client.scan(with_values=True, limit=7) if pair[0].startswith(tag)]
    check(sorted(found) == sorted(pairs), "a scan finds every key once")
    for k, _ in pairs:
        client.delete(k)
    check(client.multi_get([k for k, _ in pairs]) == [None] * 200, "deleted")
    for name, wrong, code in (("get", {"key": b"k" * 32769}, 2), ("expire", {"key": b"k", "ttl_ms": 0, **WRITE}, 1)):
        try:
            client.call(name, **wrong)
            check(False, "a bad request is refused")
        except Error as error:
            check(error.code == code, "with its code")
    check(client.ping(), "and the connection goes on")
    return done


def plain(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def vectors(path):
    done = 0
    for line in open(path):
        if line.strip() and not line.startswith("#"):
            name, hexed, meaning = (part.strip() for part in line.split("|"))
            frame, meaning = bytes.fromhex(hexed), json.loads(meaning)
            length, kind, more, request_id = struct.unpack_from("<IHHQ", frame)
            kind_name, values = decode(kind, frame[16:])
            assert length == len(frame) - 16, name
            assert {"kind": kind_name, "id": request_id, "more": more, **plain(values)} == meaning, name
            assert encode(kind_name, request_id, more, **values) == frame, name
            done += 1
    return done
