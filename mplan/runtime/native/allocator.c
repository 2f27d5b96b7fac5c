/* The c10::Allocator that PyTorch sees. */
#define _GNU_SOURCE
#include "heap.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Allocator *original;
static Deleter original_free;

void heap_lock(void)
{
    pthread_mutex_lock(&mutex);
}

void heap_unlock(void)
{
    pthread_mutex_unlock(&mutex);
}

bool grow(void **array, size_t n, size_t *capacity, size_t item_bytes)
{
    if (n < *capacity)
        return true;
    size_t bigger = *capacity ? 2 * *capacity : 16;
    void *moved = realloc(*array, bigger * item_bytes);
    if (!moved)
        return false;
    *array = moved;
    *capacity = bigger;
    return true;
}

static void heap_free(void *p)
{
    if (!p)
        return;
    tape_note(p, FREED);
    heap_lock();
    Block block = blocks_take_locked(p);
    if (block.arena)
        arena_release_locked(block.arena, p);
    else
        level_add_locked(-block.size);
    heap_unlock();
    if (!block.arena)
        original_free(p);
}

static void track(void *p, size_t bytes)
{
    heap_lock();
    level_add_locked(-blocks_take_locked(p).size); /* stale: p was freed behind our back */
    if (blocks_put_locked(p, bytes, NULL))
        level_add_locked((int64_t)bytes);
    count_allocation_locked();
    heap_unlock();
}

static DataPtr heap_allocate(void *self, size_t bytes)
{
    (void)self;
    DataPtr p = {NULL, heap_free, NULL, 0, -1};
    if (bytes)
        p.data = p.ctx = replay_serve(bytes);
    if (!p.data) {
        p = original->functions->allocate(original, bytes); /* may throw through this frame */
        p.deleter = heap_free;
        if (p.data)
            track(p.data, bytes);
    }
    if (p.data)
        tape_note(p.data, (int64_t)bytes);
    return p;
}

static bool heap_is_simple(const void *self, const DataPtr *p)
{
    (void)self;
    return p->data == p->ctx;
}

static Deleter heap_raw_deleter(const void *self)
{
    (void)self;
    return heap_free;
}

static void heap_copy(const void *self, void *to, const void *from, size_t bytes)
{
    (void)self;
    memcpy(to, from, bytes);
}

static void heap_destroy(void *self)
{
    (void)self; /* lives as long as the process */
}

static struct {
    intptr_t offset_to_top;
    const void *type_info;
    Functions functions;
} vtable = {0,
            NULL,
            {heap_destroy, heap_destroy, heap_allocate, heap_is_simple, heap_raw_deleter,
             heap_copy}};
static Allocator heap = {&vtable.functions};

enum { NO_SYMBOL = 1, NOT_SET = 2, PROBE = 10 };

static Allocator *current_allocator(void *libc10)
{
    void *get = dlsym(libc10, "_ZN3c1015GetCPUAllocatorEv");
    return get ? ((Allocator * (*)(void)) get)() : NULL;
}

/* 0 if PyTorch's allocator has the layout that we know; else what is wrong with it. */
API int heap_probe(void *libc10)
{
    Allocator *allocator = current_allocator(libc10);
    if (!allocator || !dlsym(libc10, "_ZN3c1015SetCPUAllocatorEPNS_9AllocatorEh") ||
        !dlsym(libc10, "_ZTIN3c109AllocatorE"))
        return NO_SYMBOL;
    int failed = probe(libc10, allocator);
    return failed ? PROBE + failed : 0;
}

/* Put our allocator in front of PyTorch's, for good; want heap_probe to return 0. */
API int heap_install(void *libc10)
{
    void *set = dlsym(libc10, "_ZN3c1015SetCPUAllocatorEPNS_9AllocatorEh");
    if (current_allocator(libc10) == &heap)
        return 0;
    original = current_allocator(libc10);
    original_free = original->functions->raw_deleter(original);
    vtable.type_info = dlsym(libc10, "_ZTIN3c109AllocatorE");
    pthread_atfork(heap_lock, heap_unlock, heap_unlock);
    ((void (*)(Allocator *, uint8_t))set)(&heap, UINT8_MAX);
    return current_allocator(libc10) == &heap ? 0 : NOT_SET;
}
