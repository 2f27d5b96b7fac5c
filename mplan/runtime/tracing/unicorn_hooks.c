/* What the unicorn emulator counts, in native code: a Python call per block would be the whole cost.
 *
 * Compiled for the machine that runs mplan; the structs are mirrored in unicorn_emulator.py.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

struct memory {
    u64 base, size;
    const u8 *bytes;
    u8 *touched; /* per byte: 0, or the phase in which it was last written */
    u64 *counts; /* per halfword: a block's instructions << 32 | its size; null for data */
};

struct trace {
    u64 instructions;
    u64 phase; /* 1 before main, 2 from its first instruction */
    u64 main;
    u64 uncounted_start, uncounted_end;
    int (*write_register)(void *uc, int id, const void *value);
    u64 epsr;
    u64 memories;
    struct memory memory[16];
};

/* A Thumb instruction has 4 bytes if its first halfword starts with 0b11101, 0b11110 or 0b11111. */
static u64 count(const u8 *code, u32 size) {
    u64 n = 0;
    for (u32 at = 0; at < size; n++) {
        at += code[at + 1] >> 3 >= 0x1D ? 4 : 2;
    }
    return n;
}

void mplan_on_block(void *uc, u64 address, u32 size, struct trace *trace) {
    (void)uc;
    if (address == trace->main) {
        trace->phase = 2;
    }
    if (address >= trace->uncounted_start && address < trace->uncounted_end) {
        return;
    }
    for (u64 i = 0; i < trace->memories; i++) {
        const struct memory *memory = &trace->memory[i];
        const u64 at = address - memory->base;
        if (at < memory->size && memory->counts) {
            u64 *entry = &memory->counts[at / 2];
            if ((u32)*entry != size) {
                *entry = count(memory->bytes + at, size) << 32 | size;
            }
            trace->instructions += *entry >> 32;
            return;
        }
    }
}

/* Before a hook of a store, unicorn 2.1 restores the processor's state at that instruction, with the
 * bits of an IT block if the store is in one. The translated block does not expect them, so they
 * would make the next block skip instructions: clear them, but for the Thumb bit. */
void mplan_on_write(void *uc, int type, u64 address, int size, long long value, struct trace *trace) {
    const u32 thumb = 1u << 24;
    (void)type, (void)value;
    trace->write_register(uc, (int)trace->epsr, &thumb);
    for (u64 i = 0; i < trace->memories; i++) {
        const struct memory *memory = &trace->memory[i];
        const u64 at = address - memory->base;
        if (at < memory->size) {
            for (int k = 0; k < size && at + (u64)k < memory->size; k++) {
                memory->touched[at + (u64)k] = (u8)trace->phase;
            }
            return;
        }
    }
}
