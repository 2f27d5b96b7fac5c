"""The C part of the CPU heap: built by any compiler, refused where PyTorch is not known."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from mplan.diagnostics import ToolError
from mplan.runtime import heap
from mplan.runtime.native import binding, build


def test_every_compiler_builds_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = (*build.FLAGS, "-Wall", "-Wextra", "-Wconversion", "-Werror")
    monkeypatch.setattr(build, "FLAGS", strict)
    for k, compiler in enumerate(build.compilers()):
        assert build.compile_to(tmp_path / f"{k}.so", compiler) == "", compiler
    cross = (*build.compilers()[-1], "-target", "aarch64-linux-gnu.2.28")
    assert build.compile_to(tmp_path / "aarch64.so", cross) == ""


def test_the_cache_is_used_and_keyed_by_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build.library()
    assert first.parent == tmp_path / "mplan"
    stamp = first.stat().st_mtime_ns
    assert build.library() == first
    assert first.stat().st_mtime_ns == stamp
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O1"))
    assert build.library() != first
    assert len(list((tmp_path / "mplan").iterdir())) == 2, "no temporary files are left"


def test_no_working_compiler_is_an_error_that_names_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "compilers", lambda: [("false",), ("sh", "-c", "echo no >&2; false")])
    with pytest.raises(ToolError) as error:
        build.library()
    assert error.value.code == "MP561"
    assert [text for text, _ in error.value.notes] == [
        "false: exit status 1",
        "sh -c echo no >&2; false: no",
    ]


@pytest.mark.parametrize(
    ("platform", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")]
)
def test_other_platforms_are_refused(
    platform: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.sys, "platform", platform)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    with pytest.raises(ToolError, match=machine) as error:
        build.library()
    assert error.value.code == "MP560"


FAKE = r"""
/* A libc10 with the exported names of the real one. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
typedef void (*Deleter)(void *);
typedef struct {
    void *data; Deleter deleter; void *ctx; int8_t type, index;
#ifdef LONG_DATA_PTR
    long more[4];
#endif
} DataPtr;
static void release(void *p) { free(p); }
static void other(void *p) { free(p); }
static DataPtr allocate(void *self, size_t n)
{
    (void)self; (void)other;
    char *p = aligned_alloc(64, n + 64);
    DataPtr d = {p, release, p, 0, -1};
#ifdef HEADER_BEFORE_DATA
    d.data = p + 64;
#endif
#ifdef OTHER_DELETER
    d.deleter = other;
#endif
#ifdef LONG_DATA_PTR
    d.more[0] = 1;
#endif
    return d;
}
static void destroy(void *self) { (void)self; }
bool _ZNK3c109Allocator18is_simple_data_ptrERKNS_7DataPtrE(const void *self, const DataPtr *p)
{
    (void)self;
    return p->data == p->ctx;
}
static Deleter raw_deleter(const void *self) { (void)self; return release; }
static void copy(const void *self, void *to, const void *from, size_t n)
{
    (void)self; (void)to; (void)from; (void)n;
}
static void pure(void) { abort(); }
#define SIMPLE (void *)_ZNK3c109Allocator18is_simple_data_ptrERKNS_7DataPtrE
const void *_ZTIN3c109AllocatorE[2];
#ifdef NEW_VIRTUAL
#define EXTRA , (void *)pure
#else
#define EXTRA
#endif
#ifdef REORDERED
#define ORDER SIMPLE, (void *)pure
#else
#define ORDER (void *)pure, SIMPLE
#endif
const void *_ZTVN3c109AllocatorE[] = {0, _ZTIN3c109AllocatorE, 0, 0, ORDER, (void *)raw_deleter,
                                      (void *)pure EXTRA};
static const void *concrete[] = {(void *)destroy, (void *)destroy, (void *)allocate, SIMPLE,
#ifdef DATA_IN_VTABLE
                                 _ZTIN3c109AllocatorE,
#else
                                 (void *)raw_deleter,
#endif
                                 (void *)copy};
static const void **object = concrete;
#ifdef FOREIGN_ALLOCATOR
void *_ZN3c1015GetCPUAllocatorEv(void)
{
    void **copy = malloc(sizeof *copy);
    *copy = concrete;
    return copy;
}
#else
void *_ZN3c1015GetCPUAllocatorEv(void) { return &object; }
#endif
#ifndef NO_SETTER
void _ZN3c1015SetCPUAllocatorEPNS_9AllocatorEh(void *a, uint8_t n) { (void)a; (void)n; }
#endif
"""


@pytest.mark.parametrize(
    ("difference", "result"),
    [
        ("NONE", 0),
        ("NO_SETTER", 1),
        ("NEW_VIRTUAL", 11),
        ("REORDERED", 11),
        ("DATA_IN_VTABLE", 12),
        ("FOREIGN_ALLOCATOR", 12),
        ("LONG_DATA_PTR", 13),
        ("HEADER_BEFORE_DATA", 13),
        ("OTHER_DELETER", 13),
    ],
)
def test_the_probe_knows_a_changed_pytorch(difference: str, result: int, tmp_path: Path) -> None:
    source, library = tmp_path / "fake.c", tmp_path / "libfake.so"
    source.write_text(FAKE)
    flags = [f for f in build.FLAGS if not f.startswith("-fvis")]
    command = [*build.compilers()[0], *flags, f"-D{difference}", str(source), "-o", str(library)]
    assert os.spawnvp(os.P_WAIT, command[0], command) == 0
    fake = ctypes.CDLL(str(library))
    assert binding.load().slow.heap_probe(fake._handle) == result


def test_an_unknown_pytorch_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "_loaded", None)
    monkeypatch.setattr(build, "libc10", lambda: ctypes.CDLL(None)._handle)
    with pytest.raises(ToolError, match=r"torch .* does not export") as error:
        heap.install()
    assert error.value.code == "MP562"
    assert heap.unavailable() is error.value
    monkeypatch.undo()
    assert heap.unavailable() is None
