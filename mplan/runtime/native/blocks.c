/* The table of live blocks by address: open addressing, linear probing, no tombstones. Two blocks
 * have one address only if both are in-place tensors of one arena. */
#include "heap.h"

#include <stdlib.h>

static Block *table;
static size_t capacity, used;

static size_t home_of(uintptr_t address)
{
    return (size_t)(((uint64_t)address >> 4) * 0x9E3779B97F4A7C15u >> 32) & (capacity - 1);
}

static void insert(Block block)
{
    size_t i = home_of(block.address);
    while (table[i].address)
        i = (i + 1) & (capacity - 1);
    table[i] = block;
    used++;
}

static bool rehash(size_t bigger)
{
    Block *old = table;
    size_t n = capacity;
    Block *fresh = calloc(bigger, sizeof(Block));
    if (!fresh)
        return false;
    table = fresh;
    capacity = bigger;
    used = 0;
    for (size_t i = 0; i < n; i++)
        if (old[i].address)
            insert(old[i]);
    free(old);
    return true;
}

bool blocks_put_locked(void *p, size_t size, Arena *arena)
{
    if (2 * (used + 1) > capacity && !rehash(capacity ? 2 * capacity : 1024))
        return false;
    insert((Block){(uintptr_t)p, (int64_t)size, arena});
    return true;
}

Block blocks_take_locked(void *p)
{
    Block none = {0};
    if (!capacity)
        return none;
    size_t mask = capacity - 1, i = home_of((uintptr_t)p);
    while (table[i].address != (uintptr_t)p) {
        if (!table[i].address)
            return none;
        i = (i + 1) & mask;
    }
    Block found = table[i];
    for (size_t j = (i + 1) & mask; table[j].address; j = (j + 1) & mask) {
        if (((j - home_of(table[j].address)) & mask) >= ((j - i) & mask)) { /* may move to i */
            table[i] = table[j];
            i = j;
        }
    }
    table[i] = none;
    used--;
    return found;
}
