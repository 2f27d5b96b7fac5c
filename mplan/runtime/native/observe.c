/* The meter counts bytes over the whole process; the tape writes down what one thread does. */
#include "heap.h"

#include <stdlib.h>

typedef struct Meter {
    struct Meter *next;
    int64_t base, peak, allocations;
} Meter;

static Meter *meters;
static int64_t level; /* bytes held now: heap blocks, open arenas, survivors of closed ones */

void level_add_locked(int64_t bytes)
{
    level += bytes;
    for (Meter *m = meters; m; m = m->next)
        if (level > m->peak)
            m->peak = level;
}

void count_allocation_locked(void)
{
    for (Meter *m = meters; m; m = m->next)
        m->allocations++;
}

API Meter *meter_start(void)
{
    Meter *m = malloc(sizeof *m);
    if (!m)
        return NULL;
    heap_lock();
    *m = (Meter){meters, level, level, 0};
    meters = m;
    heap_unlock();
    return m;
}

/* out: bytes now and at the peak, both above the level at the start, and heap allocations. */
API void meter_read(const Meter *m, int64_t out[3])
{
    heap_lock();
    out[0] = level - m->base;
    out[1] = m->peak - m->base;
    out[2] = m->allocations;
    heap_unlock();
}

API void meter_stop(Meter *m)
{
    heap_lock();
    Meter **at = &meters;
    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
    heap_unlock();
    free(m);
}

API int64_t heap_level(void)
{
    heap_lock();
    int64_t now = level;
    heap_unlock();
    return now;
}

typedef struct {
    uint64_t address;
    int64_t size;
} Event;

typedef struct Tape {
    struct Tape *outer;
    Event *events;
    size_t n_events, capacity;
} Tape;

static _Thread_local Tape *taping;

void tape_note(const void *p, int64_t size)
{
    for (Tape *t = taping; t; t = t->outer)
        if (grow((void **)&t->events, t->n_events, &t->capacity, sizeof(Event)))
            t->events[t->n_events++] = (Event){(uintptr_t)p, size};
}

API Tape *tape_start(void)
{
    Tape *t = calloc(1, sizeof *t);
    if (t) {
        t->outer = taping;
        taping = t;
    }
    return t;
}

/* Returns the number of events; they stay valid until tape_free. */
API size_t tape_stop(Tape *t, const Event **events)
{
    taping = t->outer;
    *events = t->events;
    return t->n_events;
}

API void tape_free(Tape *t)
{
    free(t->events);
    free(t);
}
