/* Hooks of the unicorn emulator: a Python call per block or store would be the whole cost.
 *
 * The struct is mirrored in unicorn_trace.py.
 */
#include "trace.h"

struct hooks {
    struct trace *trace;
    int (*write_register)(void *uc, int id, const void *value);
    u64 epsr;
    u64 block;           /* the address of the last block */
    const u8 *bytes[16]; /* per memory */
    u64 *sizes[16];      /* per memory, per halfword of code: a block's instructions << 32 | its size */
};

/* A Thumb instruction has 4 bytes if its first halfword starts with 0b11101, 0b11110 or 0b11111. */
static u32 width(const u8 *code) {
    return code[1] >> 3 >= 0x1D ? 4 : 2;
}

static u64 count(const u8 *code, u32 size) {
    u64 n = 0;
    for (u32 k = 0; k < size; k += width(code + k)) {
        n++;
    }
    return n;
}

void mplan_on_block(void *uc, u64 address, u32 size, struct hooks *hooks) {
    struct trace *trace = hooks->trace;
    const struct memory *memory = memory_of(trace, address);
    const u64 start = memory ? address - memory->base : 0;
    (void)uc;
    hooks->block = address;
    if (!memory || start >= memory->code_bytes) {
        return;
    }
    const u8 *code = hooks->bytes[memory - trace->memory] + start;
    u64 *known = &hooks->sizes[memory - trace->memory][start / 2];
    if ((u32)*known != size) {
        *known = count(code, size) << 32 | size;
    }
    u64 rest = *known >> 32;
    if (!note_block(trace, address, rest)) {
        return;
    }
    const u16 *steps = (u16 *)at(trace, memory->step_at) + start / 2;
    for (u32 k = 0; k < size; k += width(code + k), rest--) {
        if (steps[k / 2]) {
            note_step(trace, steps[k / 2], rest);
        }
    }
}

/* Before a hook of a store, unicorn 2.1 restores the processor's state at that instruction, with the
 * bits of an IT block if the store is in one. The translated block does not expect them, so they
 * would make the next block skip instructions: clear them, but for the Thumb bit. */
void mplan_on_write(void *uc, int type, u64 address, int size, long long value, struct hooks *hooks) {
    const u32 thumb = 1u << 24;
    (void)type, (void)value;
    hooks->write_register(uc, (int)hooks->epsr, &thumb);
    note_access(hooks->trace, hooks->block, address, (u64)size, 1);
}
