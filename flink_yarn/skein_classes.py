"""What is changed in three of skein's classes. Pure: bytes of a class file → bytes of one.

Written for skein 0.8.2; each change looks for the very bytes that it knows and raises ValueError for all others.

- ``Driver``, ``Driver$DriverImpl``: the application type.
- ``Driver``: it sets a priority of 0, which is the default; in its place it sets the interval in which attempts that
  failed count (``yarn.application-attempt-failures-validity-interval``).
- ``ApplicationMaster``: on its way out it unregisters the application, so that YARN does not try again, if it has
  SUCCEEDED or this was the last attempt by its own count; now, if it was ended on purpose, as whatever. Of failures
  YARN decides, which may not count those of long ago; an attempt that is cut off must not delete what the next one
  needs. An application that has one attempt is unregistered, and its folder deleted, whatever ends it.
- ``ApplicationMaster``: it talks to the ResourceManager every 5 s, or every second while it waits for containers. That
  is how late it hears of a lost container, and how late it asks for another one; now it is 1 s and 0.25 s.
- ``ApplicationMaster``: when it hears of a container that it had killed itself, it forgets all that stand behind it in
  the same answer; now it goes on with them.
- ``ApplicationMaster``: each time it talks to the ResourceManager it also says on which nodes it wants no containers,
  and on which it wants them again: YARN's blacklist of an application. Their hosts are the names of the files in two
  folders of its container, ``AVOID_FOLDER`` and ``AGAIN_FOLDER`` (``bad_nodes`` writes them).

Source: The Java Virtual Machine Specification, chapter 4.4 (constant pool) and 6.5 (instructions).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Final

from flink_yarn.class_file import LONG, METHOD, NewConstants, constant_pool, utf8, with_method

__all__ = ["AGAIN_FOLDER", "AVOID_FOLDER", "VERSION", "class_changes"]

#: of these changes; copies of the jar made by others are not used
VERSION: Final = 5
#: In the working directory of the ApplicationMaster's container; an empty file for each host.
AVOID_FOLDER: Final = "nodes-to-avoid"
AGAIN_FOLDER: Final = "nodes-to-ask-again"
_NOP: Final = b"\x00"
#: aload_0; getfield finalStatus; getstatic SUCCEEDED; if_acmpeq +8
_IF_SUCCEEDED: Final = bytes.fromhex("2a b40109 b203c7 a50008")
#: aload_0; getfield exitCode; ifeq +8: 0 is the code of an end that was asked for
_IF_ENDED_ON_PURPOSE: Final = bytes.fromhex("2a b40102") + 3 * _NOP + bytes.fromhex("990008")
#: iload_2 (this attempt); iload_1 (of so many); if_icmplt +139
_IF_NOT_LAST: Final = bytes.fromhex("1c 1b a1008b")
#: goto +139
_IF_FAILED: Final = 2 * _NOP + bytes.fromhex("a7008b")
#: sipush 5000, sipush 1000: milliseconds
_IDLE_HEARTBEAT: Final = bytes.fromhex("111388")
_QUICKER_IDLE_HEARTBEAT: Final = bytes.fromhex("1103e8")
_PENDING_HEARTBEAT: Final = struct.pack(">Bq", LONG, 1000)
_QUICKER_PENDING_HEARTBEAT: Final = struct.pack(">Bq", LONG, 250)
#: iconst_0; invokestatic Priority.newInstance; invokevirtual ApplicationSubmissionContext.setPriority
_SET_PRIORITY: Final = bytes.fromhex("03 b802e8 b602ec")
_SET_PRIORITY_INDEX: Final = 0x02EC
#: In a lookupswitch at 91, whose loop begins at 27: -105 (killed by us) leads to a return at 132.
_IF_KILLED_BY_US: Final = struct.pack(">ii", -105, 132 - 91)
_GO_ON: Final = struct.pack(">ii", -105, 27 - 91)
#: ldc_w 0.1f; goto +4; fload_1; invokevirtual AMRMClient.allocate; astore_2
_ALLOCATE: Final = bytes.fromhex("130432 a70004 23 b60435 4d")
_CLIENT: Final = "org/apache/hadoop/yarn/client/api/AMRMClient"
_ANSWER: Final = "org/apache/hadoop/yarn/api/protocolrecords/AllocateResponse"
_STRINGS: Final = "[Ljava/lang/String;"


def class_changes(application_type: str, validity_ms: int | None) -> dict[str, Callable[[bytes], bytes]]:
    """Return entry of the jar → its change, which raises ValueError for a class that is not the one we know.

    ``validity_ms``: failed attempts of longer ago do not count, -1 = all count; None when there is one attempt.
    """
    rename = functools.partial(_rename_constant, old="skein", new=application_type)

    def driver(data: bytes) -> bytes:
        return rename(data) if validity_ms is None else _set_validity(rename(data), validity_ms)

    def master(data: bytes) -> bytes:
        data = _replace_once(data, _IF_SUCCEEDED, _IF_ENDED_ON_PURPOSE, "the test for SUCCEEDED")
        if validity_ms is not None:
            data = _replace_once(data, _IF_NOT_LAST, _IF_FAILED, "the test for the last attempt")
        data = _replace_once(data, _IF_KILLED_BY_US, _GO_ON, "the test for containers that it killed itself")
        return _avoid_nodes(_beat_quicker(data))

    return {
        "com/anaconda/skein/Driver.class": driver,
        "com/anaconda/skein/Driver$DriverImpl.class": rename,
        "com/anaconda/skein/ApplicationMaster.class": master,
    }


def _replace_once(data: bytes, old: bytes, new: bytes, what: str) -> bytes:
    if data.count(old) != 1:
        raise ValueError(f"{what} is there {data.count(old)} times; expected once")
    return data.replace(old, new)


def _rename_constant(data: bytes, old: str, new: str) -> bytes:
    # Nothing points into the bytes of a text.
    return _replace_once(data, utf8(old), utf8(new), f"the constant {old!r}")


def _beat_quicker(data: bytes) -> bytes:
    data = _replace_once(data, _IDLE_HEARTBEAT, _QUICKER_IDLE_HEARTBEAT, "the interval of heartbeats")
    return _replace_once(data, _PENDING_HEARTBEAT, _QUICKER_PENDING_HEARTBEAT, "that while containers are wanted")


def _set_validity(data: bytes, validity_ms: int) -> bytes:
    """Replace ``context.setPriority(Priority.newInstance(0))``, seven bytes of code, by
    ``context.setAttemptFailuresValidityInterval(validity_ms)``."""
    count, end, places = constant_pool(data)
    tag, class_index = struct.unpack_from(">BH", data, places.get(_SET_PRIORITY_INDEX, 0))
    if tag != METHOD:
        raise ValueError("setPriority is not where we know it")
    pool = NewConstants(count)
    set_validity = pool.method_of(class_index, "setAttemptFailuresValidityInterval", "(J)V")
    interval = pool.long(validity_ms)
    data = pool.added_to(data, end)
    # ldc2_w; invokevirtual; nop
    code = struct.pack(">BHBH", 0x14, interval, 0xB6, set_validity) + _NOP
    return _replace_once(data, _SET_PRIORITY, code, "setting the priority")


def _avoid_nodes(data: bytes) -> bytes:
    """Add a method and call it in place of ``client.allocate(progress)``::

        static AllocateResponse allocateElsewhere(AMRMClient client, float progress) {
            client.updateBlacklist(
                new ArrayList(namesIn("nodes-to-avoid")), new ArrayList(namesIn("nodes-to-ask-again")));
            return client.allocate(progress);
        }

    where ``namesIn(folder)`` stands for ``Arrays.asList((String[]) Optional.ofNullable(new File(folder).list())
    .orElse(new String[0]))``: no branches, so the verifier needs no frames. The lists are copied, as the client removes
    from the first what is in the second.
    """
    count, end, _ = constant_pool(data)
    pool = NewConstants(count)
    name, descriptor = pool.utf8("allocateElsewhere"), pool.utf8(f"(L{_CLIENT};F)L{_ANSWER};")
    code_attribute = pool.utf8("Code")
    array_list, file, string = (pool.class_(f"java/{of}") for of in ("util/ArrayList", "io/File", "lang/String"))
    client = pool.class_(_CLIENT)
    new_list = pool.method_of(array_list, "<init>", "(Ljava/util/Collection;)V")
    new_file = pool.method_of(file, "<init>", "(Ljava/lang/String;)V")
    names = pool.method_of(file, "list", f"(){_STRINGS}")
    optional = pool.class_("java/util/Optional")
    of_nullable = pool.method_of(optional, "ofNullable", "(Ljava/lang/Object;)Ljava/util/Optional;")
    or_else = pool.method_of(optional, "orElse", "(Ljava/lang/Object;)Ljava/lang/Object;")
    strings = pool.class_(_STRINGS)
    as_list = pool.method_of(pool.class_("java/util/Arrays"), "asList", "([Ljava/lang/Object;)Ljava/util/List;")
    update = pool.method_of(client, "updateBlacklist", "(Ljava/util/List;Ljava/util/List;)V")
    allocate = pool.method_of(client, "allocate", f"(F)L{_ANSWER};")
    own_class = int.from_bytes(data[end + 2 : end + 4], "big")
    elsewhere = pool.method(own_class, pool.name_and_type(name, descriptor))

    def names_in(folder: str) -> bytes:
        return b"".join(
            (
                struct.pack(">BHB", 0xBB, array_list, 0x59),  # new; dup
                struct.pack(">BHB", 0xBB, file, 0x59),
                struct.pack(">BH", 0x13, pool.string(folder)),  # ldc_w
                struct.pack(">BH", 0xB7, new_file),  # invokespecial
                struct.pack(">BH", 0xB6, names),  # invokevirtual
                struct.pack(">BH", 0xB8, of_nullable),  # invokestatic
                struct.pack(">BBH", 0x03, 0xBD, string),  # iconst_0; anewarray
                struct.pack(">BH", 0xB6, or_else),
                struct.pack(">BH", 0xC0, strings),  # checkcast
                struct.pack(">BH", 0xB8, as_list),
                struct.pack(">BH", 0xB7, new_list),
            )
        )

    code = b"".join(
        (
            b"\x2a",  # aload_0
            names_in(AVOID_FOLDER),
            names_in(AGAIN_FOLDER),
            struct.pack(">BH", 0xB6, update),
            b"\x2a\x23",  # aload_0; fload_1
            struct.pack(">BH", 0xB6, allocate),
            b"\xb0",  # areturn
        )
    )
    body = struct.pack(">HHI", 7, 2, len(code)) + code + struct.pack(">HH", 0, 0)  # stack, locals; no handlers
    method = struct.pack(">HHHHHI", 0x000A, name, descriptor, 1, code_attribute, len(body)) + body  # private static
    call = _ALLOCATE[:-4] + struct.pack(">BH", 0xB8, elsewhere) + _ALLOCATE[-1:]
    data = _replace_once(data, _ALLOCATE, call, "the heartbeat")
    return pool.added_to(with_method(data, method), end)
