/* Arenas: one mapping whose bytes are handed out at planned offsets, and given back page by page
 * once the arena is closed. Replays: which offsets the allocations of this thread get. */
#define _GNU_SOURCE
#include "heap.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct { /* half-open bytes of an arena, held by one live tensor */
    size_t start, end;
} Span;

struct Arena {
    char *base;
    size_t size;
    size_t high;   /* end of the highest byte ever handed out: what is counted */
    size_t mapped; /* size in whole pages */
    Span *live;    /* sorted by start */
    size_t n_live, capacity;
    int replays; /* that use it now */
    bool closed;
};

static size_t page_down(size_t offset)
{
    return offset & ~((size_t)sysconf(_SC_PAGESIZE) - 1);
}

static size_t page_up(size_t offset)
{
    return page_down(offset + (size_t)sysconf(_SC_PAGESIZE) - 1);
}

typedef void (*GapAction)(char *start, size_t bytes, intptr_t arg);

/* Call act on the maximal runs of [lo, hi) that no live span touches. */
static void each_gap(const Arena *a, Span range, bool whole_pages, GapAction act, intptr_t arg)
{
    size_t lo = range.start, hi = range.end;
    for (size_t i = 0; i < a->n_live && lo < hi; i++) {
        Span span = a->live[i];
        if (whole_pages)
            span = (Span){page_down(span.start), page_up(span.end)};
        if (span.start > lo)
            act(a->base + lo, (span.start < hi ? span.start : hi) - lo, arg);
        if (span.end > lo)
            lo = span.end;
    }
    if (lo < hi)
        act(a->base + lo, hi - lo, arg);
}

/* A process may own too many mappings to split one more: then at least the pages go. */
static void unmap(char *start, size_t bytes, intptr_t unused)
{
    (void)unused;
    if (munmap(start, bytes))
        madvise(start, bytes, MADV_DONTNEED);
}

static void fill(char *start, size_t bytes, intptr_t byte)
{
    memset(start, (int)byte, bytes);
}

static int64_t live_bytes(const Arena *a)
{
    int64_t bytes = 0;
    for (size_t i = 0; i < a->n_live; i++)
        bytes += (int64_t)(a->live[i].end - a->live[i].start);
    return bytes;
}

static void drop_if_done(Arena *a)
{
    if (a->closed && !a->n_live) {
        free(a->live);
        free(a);
    }
}

/* NULL if the system maps no more memory. */
API Arena *arena_new(size_t size)
{
    Arena *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->size = size;
    a->mapped = page_up(size ? size : 1);
    a->base = mmap(NULL, a->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a->base == MAP_FAILED) {
        free(a);
        return NULL;
    }
    return a;
}

/* Pages beyond the high-water mark are promised by the system, not yet taken from it. */
static void raise_high_locked(Arena *a, size_t end)
{
    if (end > a->high) {
        level_add_locked((int64_t)(end - a->high));
        a->high = end;
    }
}

API void *arena_base(const Arena *a)
{
    return a->base;
}

/* Bytes of the tensors that live in it, and the number of replays that use it. */
API void arena_read(const Arena *a, int64_t out[2])
{
    heap_lock();
    out[0] = live_bytes(a);
    out[1] = a->replays;
    heap_unlock();
}

/* Give all pages back that hold no live tensor; the others follow as their tensors die. */
API void arena_close(Arena *a)
{
    heap_lock();
    level_add_locked(live_bytes(a) - (int64_t)a->high);
    each_gap(a, (Span){0, a->mapped}, true, unmap, 0);
    a->closed = true;
    drop_if_done(a);
    heap_unlock();
}

/* Fill the bytes of [offset, offset + bytes) that belong to no live tensor. */
API void arena_poison(Arena *a, size_t offset, size_t bytes, int byte)
{
    heap_lock();
    raise_high_locked(a, offset + bytes);
    each_gap(a, (Span){offset, offset + bytes}, false, fill, byte);
    heap_unlock();
}

/* Of several in-place tensors at p any may die: they hold the same bytes. */
void arena_release_locked(Arena *a, const void *p)
{
    size_t start = (size_t)((const char *)p - a->base), at = 0;
    while (a->live[at].start != start)
        at++;
    Span dead = a->live[at];
    memmove(a->live + at, a->live + at + 1, (--a->n_live - at) * sizeof(Span));
    if (a->closed) {
        level_add_locked((int64_t)dead.start - (int64_t)dead.end);
        each_gap(a, (Span){page_down(dead.start), page_up(dead.end)}, true, unmap, 0);
        drop_if_done(a);
    }
}

/* ---- replay ---- */

typedef struct {
    int64_t size, offset, in_place;
} Slot;

enum { UNPLANNED, TOO_LARGE, BEYOND, OVERLAP };

typedef struct {
    int64_t op, index, size, reason;
} Miss;

typedef struct Replay {
    struct Replay *outer;
    Arena *arena;
    const Slot *slots;
    const int32_t *starts; /* operation k owns slots[starts[k] .. starts[k + 1]) */
    int32_t n_ops;
    int32_t op; /* negative: between operations */
    const Slot *op_slots;
    int32_t n_slots, next;
    Miss *misses;
    size_t n_misses, capacity;
} Replay;

static _Thread_local Replay *replaying;

API Replay *replay_begin(Arena *a, const Slot *slots, const int32_t *starts, int32_t n_ops)
{
    Replay *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->outer = replaying;
    r->arena = a;
    r->slots = slots;
    r->starts = starts;
    r->n_ops = n_ops;
    r->op = -1;
    heap_lock();
    a->replays++;
    heap_unlock();
    replaying = r;
    return r;
}

/* Returns the number of misses; they stay valid until replay_free. */
API size_t replay_end(Replay *r, const Miss **misses)
{
    heap_lock();
    r->arena->replays--;
    heap_unlock();
    replaying = r->outer;
    *misses = r->misses;
    return r->n_misses;
}

API void replay_free(Replay *r)
{
    free(r->misses);
    free(r);
}

/* The next allocations of this thread belong to operation op, until replay_leave. */
API void replay_enter(int32_t op)
{
    Replay *r = replaying;
    if (!r)
        return;
    bool known = op >= 0 && op < r->n_ops;
    r->op = op;
    r->next = 0;
    r->op_slots = known ? r->slots + r->starts[op] : NULL;
    r->n_slots = known ? r->starts[op + 1] - r->starts[op] : 0;
}

/* Returns the number of misses of the replay so far. */
API int32_t replay_leave(void)
{
    if (!replaying)
        return 0;
    replaying->op = -1;
    return (int32_t)replaying->n_misses;
}

/* In place means on exactly the bytes of one live tensor: a smaller request (a temporary that the
 * plan did not foresee) must not overwrite a part of it. */
static bool hold_locked(Arena *a, Span span, bool in_place)
{
    size_t at = 0;
    bool forbidden = false;
    for (size_t i = 0; i < a->n_live && a->live[i].start < span.end; i++) {
        Span other = a->live[i];
        bool same = other.start == span.start && other.end == span.end;
        forbidden = forbidden || (other.end > span.start && !(in_place && same));
        at += other.start <= span.start;
    }
    if (forbidden || !grow((void **)&a->live, a->n_live, &a->capacity, sizeof(Span)) ||
        !blocks_put_locked(a->base + span.start, span.end - span.start, a))
        return false;
    memmove(a->live + at + 1, a->live + at, (a->n_live++ - at) * sizeof(Span));
    a->live[at] = span;
    raise_high_locked(a, span.end);
    return true;
}

/* A live tensor at the planned bytes forbids them unless the slot was planned in place: a wrong
 * plan may cost memory, never another tensor's values. */
static void *serve_at(Arena *a, const Slot *slot, size_t bytes)
{
    size_t start = (size_t)slot->offset;
    heap_lock();
    bool held = hold_locked(a, (Span){start, start + bytes}, slot->in_place);
    heap_unlock();
    return held ? a->base + start : NULL;
}

void *replay_serve(size_t bytes)
{
    Replay *r = replaying;
    if (!r || r->op < 0)
        return NULL;
    int32_t index = r->next++;
    const Slot *slot = index < r->n_slots ? r->op_slots + index : NULL;
    int reason = !slot ? BEYOND : slot->offset < 0 ? UNPLANNED : TOO_LARGE;
    if (slot && slot->offset >= 0 && bytes <= (size_t)slot->size) {
        void *p = serve_at(r->arena, slot, bytes);
        if (p)
            return p;
        reason = OVERLAP;
    }
    if (grow((void **)&r->misses, r->n_misses, &r->capacity, sizeof(Miss)))
        r->misses[r->n_misses++] = (Miss){r->op, index, (int64_t)bytes, reason};
    return NULL;
}
