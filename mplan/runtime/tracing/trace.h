/* What is noted of an emulated run, the same for every emulator: instructions by step of the plan and
 * by place in the code, and bytes of memory that were accessed.
 *
 * All of it lies in one piece of memory, which trace.py lays out, fills in and reads; it mirrors the
 * structs. Fields called `..._at` are byte offsets from its start.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { WRITTEN = 1, READ = 2, OWNED = 4, SYSTEM_SPACE = 0xE0000000u };

struct memory {
    u64 base, size;
    u64 accessed_at; /* u8 per byte: WRITTEN | READ, since main began; OWNED */
    u64 code_bytes;  /* how much of it holds code and constants; 0 for RAM */
    u64 executed_at; /* u64 per halfword of code: instructions run in blocks that start there */
    u64 step_at;     /* u16 per halfword of code: the counter of the step that begins there, or 0 */
};

struct span {
    u64 start, end;
};

struct trace {
    u64 instructions;
    u64 in_main;
    u64 main;
    struct span uncounted;
    u64 mark_entries[2]; /* the functions that note the time */
    u64 step;            /* the counter in use; 0 is outside of all steps */
    u64 steps;           /* number of counters */
    u64 counters_at;     /* u64 per counter: instructions */
    u64 marks;
    u64 mark_capacity;
    u64 marks_at; /* rows of u64: instructions so far, then the counters */
    u64 strays;   /* stores to bytes that are not OWNED, since main began; the first one: */
    u64 stray_pc, stray_address, stray_size;
    u64 memories;
    struct memory memory[16];
};

static inline void *at(struct trace *trace, u64 offset) {
    return (u8 *)trace + offset;
}

static inline struct memory *memory_of(struct trace *trace, u64 address) {
    for (u64 i = 0; i < trace->memories; i++) {
        if (address - trace->memory[i].base < trace->memory[i].size) {
            return &trace->memory[i];
        }
    }
    return 0;
}

static inline int is_uncounted(const struct trace *trace, u64 pc) {
    return pc >= trace->uncounted.start && pc < trace->uncounted.end;
}

/* The counter of the step that begins at an instruction, or 0. */
static inline u32 step_of(struct trace *trace, u64 address) {
    const struct memory *memory = memory_of(trace, address);
    const u64 offset = memory ? address - memory->base : 0;
    return memory && offset < memory->code_bytes ? ((u16 *)at(trace, memory->step_at))[offset / 2] : 0;
}

static inline void note_mark(struct trace *trace) {
    if (trace->marks < trace->mark_capacity) {
        u64 *row = (u64 *)at(trace, trace->marks_at) + trace->marks * (1 + trace->steps);
        const u64 *counters = at(trace, trace->counters_at);
        *row = trace->instructions;
        for (u64 i = 0; i < trace->steps; i++) {
            row[1 + i] = counters[i];
        }
    }
    trace->marks++;
    trace->step = 0;
}

/* A block of code begins; all its instructions will run. Returns whether they count. */
static inline int note_block(struct trace *trace, u64 address, u64 instructions) {
    if (address == trace->main) {
        trace->in_main = 1;
    }
    if (is_uncounted(trace, address)) {
        if (address == trace->mark_entries[0] || address == trace->mark_entries[1]) {
            note_mark(trace);
        }
        return 0;
    }
    trace->instructions += instructions;
    ((u64 *)at(trace, trace->counters_at))[trace->step] += instructions;
    const struct memory *memory = memory_of(trace, address);
    if (memory && address - memory->base < memory->code_bytes) {
        ((u64 *)at(trace, memory->executed_at))[(address - memory->base) / 2] += instructions;
    }
    return 1;
}

/* A step begins inside of a noted block, of whose instructions the last `rest` belong to it. */
static inline void note_step(struct trace *trace, u64 step, u64 rest) {
    u64 *counters = at(trace, trace->counters_at);
    counters[trace->step] -= rest;
    counters[step] += rest;
    trace->step = step;
}

static inline void note_access(struct trace *trace, u64 pc, u64 address, u64 size, int store) {
    const struct memory *memory = memory_of(trace, address);
    const u64 start = memory ? address - memory->base : 0;
    const u8 bit = is_uncounted(trace, pc) ? 0 : store ? WRITTEN : READ;
    u64 owned = 0;
    if (!trace->in_main) {
        return;
    }
    for (u64 i = 0; memory && i < size && start + i < memory->size; i++) {
        u8 *byte = (u8 *)at(trace, memory->accessed_at) + start + i;
        owned += *byte & OWNED ? 1 : 0;
        *byte |= bit;
    }
    if (store && owned < size && address < SYSTEM_SPACE && trace->strays++ == 0) {
        trace->stray_pc = pc;
        trace->stray_address = address;
        trace->stray_size = size;
    }
}
