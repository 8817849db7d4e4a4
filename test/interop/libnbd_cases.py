"""Cases of libnbd.test.ts: `libnbd_cases.py CASE URI SEED [MORE]`. An assertion that fails is the outcome."""
import errno
import random
import sys

import nbd

MIB = 1 << 20
BLOCK = 4096


def connect(uri, structured=True, contexts=('base:allocation',)):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    if structured:
        for context in contexts:
            h.add_meta_context(context)
    h.connect_uri(uri)
    return h


def data(seed, length):
    return bytearray(random.Random(seed).randbytes(length))


def extents(h, length, offset):
    """[(length, flags)] of base:allocation, neighbours with equal flags joined."""
    found = []

    def chunk(context, start, entries, error):
        if context != 'base:allocation':
            return
        for size, flags in zip(entries[::2], entries[1::2]):
            if found and found[-1][1] == flags:
                found[-1] = (found[-1][0] + size, flags)
            else:
                found.append((size, flags))

    at = offset
    while at < offset + length:
        before = sum(size for size, _ in found)
        h.block_status(offset + length - at, at, chunk)
        gained = sum(size for size, _ in found) - before
        assert gained > 0, 'block status made no progress'
        at += gained
    return found


def structured_and_simple(uri, seed):
    h = connect(uri)
    assert h.get_structured_replies_negotiated()
    h.pwrite(data(seed, 64 * 1024), 12 * BLOCK)
    simple = connect(uri, structured=False)
    assert not simple.get_structured_replies_negotiated()
    for one in (h, simple):
        assert one.pread(64 * 1024, 12 * BLOCK) == data(seed, 64 * 1024)
        assert one.pread(3 * BLOCK, 10 * BLOCK)[:2 * BLOCK] == bytearray(2 * BLOCK)


def block_status(uri, seed):
    h = connect(uri)
    assert h.can_meta_context('base:allocation')
    assert extents(h, h.get_size(), 0) == [(h.get_size(), nbd.STATE_HOLE | nbd.STATE_ZERO)], 'a new volume is one hole'
    h.pwrite(data(seed, 8 * MIB), 8 * MIB)
    h.flush()
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    found = extents(h, 24 * MIB, 0)
    assert found == [(8 * MIB, hole), (8 * MIB, 0), (8 * MIB, hole)], found
    h.trim(2 * MIB, 10 * MIB)
    h.zero(2 * MIB, 13 * MIB)
    found = extents(h, 24 * MIB, 0)
    assert found[0] == (8 * MIB, hole) and found[1] == (2 * MIB, 0), found
    assert sum(size for size, flags in found if flags & nbd.STATE_ZERO) >= 20 * MIB, found
    # a range that begins and ends inside of an extent
    assert sum(size for size, _ in extents(h, 3 * BLOCK, 8 * MIB + BLOCK)) >= 3 * BLOCK
    # REQ_ONE: exactly one extent, not longer than asked for
    one = []
    h.block_status(4 * MIB, 7 * MIB, lambda context, start, entries, error: one.extend(entries), nbd.CMD_FLAG_REQ_ONE)
    assert len(one) == 2 and one[0] <= 4 * MIB, one


def read_df(uri, seed):
    h = connect(uri)
    assert h.can_df()
    h.pwrite(data(seed, BLOCK), 8 * BLOCK)
    for flags, most in ((0, None), (nbd.CMD_FLAG_DF, 1)):
        chunks = []
        h.pread_structured(32 * BLOCK, 0, lambda buf, offset, status, error: chunks.append(len(buf)), flags)
        assert sum(chunks) == 32 * BLOCK, chunks
        assert most is None or len(chunks) <= most, chunks


def trim_and_zero(uri, seed):
    h = connect(uri)
    model = data(seed, MIB)
    h.pwrite(model, 0)
    for call, offset, length, flags in (
            (h.trim, 64 * 1024, 32 * 1024, 0), (h.trim, 5 * BLOCK + 100, 3 * BLOCK, 0), (h.zero, 200_001, 7, 0),
            (h.zero, 300_000, 100_000, nbd.CMD_FLAG_NO_HOLE), (h.zero, 500_000, 9 * BLOCK, nbd.CMD_FLAG_FUA), (h.trim, 700_000, 1, nbd.CMD_FLAG_FUA)):
        call(length, offset, flags)
        model[offset:offset + length] = bytes(length)
        assert h.pread(MIB, 0) == model, (call.__name__, offset, length)


def unaligned_model(uri, seed):
    h = connect(uri)
    size = h.get_size()
    step = max(1, h.get_block_size(nbd.SIZE_MINIMUM))
    chance = random.Random(seed)
    model = bytearray(size)
    for _ in range(400):
        kind = chance.choice(('write', 'write', 'write', 'zero', 'read'))
        length = max(step, chance.choice((1, 511, 512, 1000, 4095, 4096, 4097, 20_000, 70_000)) // step * step)
        offset = chance.randrange(0, size - length) // step * step
        if kind == 'write':
            content = chance.randbytes(length)
            h.pwrite(content, offset, nbd.CMD_FLAG_FUA if chance.random() < 0.05 else 0)
            model[offset:offset + length] = content
        elif kind == 'zero':
            h.zero(length, offset)
            model[offset:offset + length] = bytes(length)
        else:
            assert h.pread(length, offset) == model[offset:offset + length], (offset, length)
    # writes of neighbouring parts of one block under way at the same time
    under_way = []
    for i in range(0, 64 * 1024, 1024):
        content = chance.randbytes(1024)
        model[i:i + 1024] = content
        under_way.append((h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content)), i)))
    finish(under_way)
    assert h.pread(size // 2, 0) + h.pread(size - size // 2, size // 2) == model


def multi_conn(uri, seed):
    a, b = connect(uri), connect(uri)
    assert a.can_multi_conn()
    for i in range(50):
        a.pwrite(data(seed + i, BLOCK), i * 3 * BLOCK)
        assert b.pread(BLOCK, i * 3 * BLOCK) == data(seed + i, BLOCK)
    b.flush()
    a.shutdown()
    assert b.pread(BLOCK, 0) == data(seed, BLOCK)


def expect_errno(wanted, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum in wanted, (error.errno, error.string)
        return
    raise AssertionError(f'{call.__name__}{args[1:]} did not fail')


def out_of_bounds(uri, seed):
    h = connect(uri)
    size = h.get_size()
    expect_errno((errno.EINVAL,), h.pread, BLOCK, size)
    expect_errno((errno.EINVAL,), h.pread, 2 * BLOCK, size - BLOCK)
    expect_errno((errno.ENOSPC, errno.EINVAL), h.pwrite, bytes(2 * BLOCK), size - BLOCK)
    expect_errno((errno.EINVAL, errno.ENOSPC), h.trim, 2 * BLOCK, size - BLOCK)
    expect_errno((errno.ENOSPC, errno.EINVAL), h.zero, BLOCK, size)
    h.pwrite(data(seed, BLOCK), size - BLOCK)
    assert h.pread(BLOCK, size - BLOCK) == data(seed, BLOCK), 'the connection is still good'


def many_at_once(uri, seed):
    handles = [connect(uri) for _ in range(4)]
    for turn, start in enumerate((0, 16 * MIB)):
        under_way = []
        for i in range(256):
            h = handles[i % 4]
            buffer = nbd.Buffer.from_bytearray(data(seed + turn * 1000 + i, 8192))
            under_way.append((h, h.aio_pwrite(buffer, start + i * 16384), buffer))
        finish(under_way)
    under_way = []
    for turn, start in enumerate((0, 16 * MIB)):
        for i in reversed(range(256)):
            h = handles[(i + 1) % 4]
            buffer = nbd.Buffer(8192)
            under_way.append((h, h.aio_pread(buffer, start + i * 16384), buffer, seed + turn * 1000 + i))
    finish(under_way)
    for _, _, buffer, wanted in under_way:
        assert buffer.to_bytearray() == data(wanted, 8192)


def finish(under_way):
    """Waits for all of [(handle, cookie, ...)]; an error of a command is raised."""
    for h, cookie, *_ in under_way:
        while not h.aio_command_completed(cookie):
            h.poll(-1)


def large_request(uri, seed):
    h = connect(uri)
    content = data(seed, 32 * MIB)
    h.pwrite(content, 5 * BLOCK)
    assert h.pread(32 * MIB, 5 * BLOCK) == content
    h.pwrite(content[:32 * MIB - 1], 40 * MIB + 1)
    assert h.pread(32 * MIB - 1, 40 * MIB + 1) == content[:-1]


def huge_trim(uri, seed):
    h = connect(uri)
    size = h.get_size()
    length = (1 << 32) - BLOCK
    for offset in (0, length - BLOCK, length, size - BLOCK):
        h.pwrite(data(seed, BLOCK), offset)
    h.trim(length, 0)
    found = extents(h, length, 0)
    kept = sum(size for size, flags in found if not flags & nbd.STATE_HOLE)
    assert kept <= 64 * 1024, found  # a server may keep the edges of what it allocates
    assert h.pread(BLOCK, length - BLOCK) == bytearray(BLOCK)
    assert h.pread(BLOCK, length) == data(seed, BLOCK)
    assert h.pread(BLOCK, size - BLOCK) == data(seed, BLOCK)
    h.zero(length, BLOCK)
    assert h.pread(BLOCK, length) == bytearray(BLOCK)
    assert h.pread(BLOCK, size - BLOCK) == data(seed, BLOCK)


def snapshot_phase(uri, seed, phase, snapshot):
    h = connect(uri)
    if phase == 'before':
        h.pwrite(data(seed, MIB), 0)
        return
    s = connect(snapshot)
    if phase == 'after':
        h.pwrite(data(seed + 1, MIB // 2), MIB // 4)
        assert s.pread(MIB, 0) == data(seed, MIB)
        return
    s.pwrite(data(seed + 2, BLOCK), 0)
    assert s.pread(BLOCK, 0) == data(seed + 2, BLOCK)
    assert h.pread(MIB // 4, 0) == data(seed, MIB)[:MIB // 4]
    assert h.pread(MIB // 2, MIB // 4) == data(seed + 1, MIB // 2)
    assert s.pread(MIB - BLOCK, BLOCK) == data(seed, MIB)[BLOCK:]


def durable_write(uri, seed):
    h, other = connect(uri), connect(uri)
    h.pwrite(data(seed, MIB), 0, nbd.CMD_FLAG_FUA)
    h.pwrite(data(seed + 1, 1000), 2 * MIB + 77)
    h.zero(BLOCK, 4 * BLOCK)
    other.flush()
    h.pwrite(data(seed + 2, MIB), 4 * MIB)  # acknowledged is enough against kill -9


def durable_check(uri, seed):
    h = connect(uri)
    wanted = data(seed, MIB)
    wanted[4 * BLOCK:5 * BLOCK] = bytes(BLOCK)
    assert h.pread(MIB, 0) == wanted
    assert h.pread(1000, 2 * MIB + 77) == data(seed + 1, 1000)
    assert h.pread(77, 2 * MIB) == bytearray(77)
    assert h.pread(MIB, 4 * MIB) == data(seed + 2, MIB)


if __name__ == '__main__':
    name, uri, seed, *more = sys.argv[1:]
    globals()[name](uri, int(seed), *more)
