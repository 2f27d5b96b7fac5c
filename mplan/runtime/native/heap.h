/* The CPU heap of mplan, seen by PyTorch as its c10::Allocator.
 *
 * Idle, it hands every request to PyTorch's own allocator and keeps the exact sizes in a table:
 * the meter. While a replay runs on a thread, the k-th allocation of an operation is served at the
 * k-th planned offset of an arena. The data pointer is always the context pointer, because oneDNN
 * allocates through c10::Allocator::raw_allocate, which asserts it; and since raw_deallocate asks
 * whichever allocator is current, blocks that are not in the table (older than us) go to PyTorch.
 *
 * One mutex guards all shared state; it is never held while PyTorch's code runs. Functions marked
 * API are called from heap.py; those named *_locked want the mutex held.
 */
#ifndef MPLAN_HEAP_H
#define MPLAN_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(__linux__) || !(defined(__x86_64__) || defined(__aarch64__))
#error "the planned heap knows the C++ ABI of Linux on x86-64 and AArch64 only"
#endif

#define API __attribute__((visibility("default")))

/* ---- PyTorch's side: c10/core/Allocator.h as the Itanium C++ ABI lays it out ---- */

typedef void (*Deleter)(void *);

typedef struct { /* c10::DataPtr */
    void *data;
    Deleter deleter;
    void *ctx;
    int8_t device_type, device_index;
} DataPtr;

_Static_assert(sizeof(DataPtr) == 32, "c10::DataPtr has 32 bytes");

typedef struct { /* the virtual functions of c10::Allocator */
    void (*destroy)(void *);
    void (*destroy_and_free)(void *);
    DataPtr (*allocate)(void *, size_t);
    bool (*is_simple_data_ptr)(const void *, const DataPtr *);
    Deleter (*raw_deleter)(const void *);
    void (*copy_data)(const void *, void *, const void *, size_t);
} Functions;

typedef struct {
    const Functions *functions;
} Allocator;

/* 0 if allocator, of the loaded libc10, has exactly this layout; else the number of the check that
 * failed. Calls no function before its address is known to be code of libc10. */
int probe(void *libc10, Allocator *allocator);

/* ---- shared state ---- */

void heap_lock(void);
void heap_unlock(void);

/* Make room for one more item in an array that doubles; false if there is no memory. */
bool grow(void **array, size_t n, size_t *capacity, size_t item_bytes);

/* ---- the table of blocks ---- */

typedef struct Arena Arena;

typedef struct {
    uintptr_t address; /* 0: empty */
    int64_t size;      /* bytes asked for */
    Arena *arena;      /* NULL: a block of PyTorch's allocator */
} Block;

bool blocks_put_locked(void *p, size_t size, Arena *arena);
Block blocks_take_locked(void *p); /* removes it; all zero if there is none */

/* ---- the meter and the tape ---- */

void level_add_locked(int64_t bytes);
void count_allocation_locked(void);

enum { FREED = -1 };
void tape_note(const void *p, int64_t size); /* size is FREED for a release */

/* ---- arenas and replay ---- */

void arena_release_locked(Arena *a, const void *p);
void *replay_serve(size_t bytes); /* NULL: the heap has to serve it */

#endif
