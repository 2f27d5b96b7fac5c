/* mplan_host.h over Arm semihosting ("Semihosting for AArch32 and AArch64", Arm IHI 0074).
 *
 * Marks, and what the host was asked to write, go to the file mplan.marks as records of three words.
 * The emulator notes the time of a mark when it sees the call.
 */
#include "mplan_host.h"

enum {
    SYS_OPEN = 0x01,
    SYS_WRITE0 = 0x04,
    SYS_WRITE = 0x05,
    SYS_READ = 0x06,
    SYS_EXIT_EXTENDED = 0x20,
    STOPPED_APPLICATION_EXIT = 0x20026,
    OPEN_READ = 1,
    OPEN_WRITE = 5,
    LAST_MARK = -1,
    READ_MARK = -2,
};

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define CFSR REGISTER(0xE000ED28u)
#define HFSR REGISTER(0xE000ED2Cu)
#define MMFAR REGISTER(0xE000ED34u)
#define BFAR REGISTER(0xE000ED38u)

/* Kept apart from the program's data, so that they do not count as its static RAM. */
#define HOST_DATA __attribute__((section(".mplan_host")))
/* Instructions in this section are not counted. */
#define UNCOUNTED __attribute__((section(".text.mplan_mark"), noinline))
#define INLINE __attribute__((always_inline)) static inline

HOST_DATA static struct {
    int input, output, marks;
} mplan_host_state;

extern uint32_t mplan_stack_limit[], mplan_stack_top[];
void mplan_host_start(void);
__attribute__((noreturn)) void mplan_host_fault(const uint32_t *frame);

INLINE int semihost(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* The handle of a host file, opened on first use; `handle` holds it plus one, zero before. */
INLINE uint32_t opened(int *handle, const char *name, uint32_t length, uint32_t mode) {
    if (*handle == 0) {
        const uint32_t arguments[3] = {(uint32_t)(uintptr_t)name, mode, length};
        *handle = semihost(SYS_OPEN, arguments) + 1;
    }
    return (uint32_t)(*handle - 1);
}

INLINE size_t transfer(int operation, uint32_t file, const void *data, size_t size) {
    const uint32_t arguments[3] = {file, (uint32_t)(uintptr_t)data, (uint32_t)size};
    return size - (size_t)semihost(operation, arguments);
}

UNCOUNTED static void record(int kind, uint32_t first, uint32_t second) {
    const uint32_t words[3] = {(uint32_t)kind, first, second};
    const uint32_t file = opened(&mplan_host_state.marks, "mplan.marks", 11, OPEN_WRITE);
    transfer(SYS_WRITE, file, words, sizeof words);
}

UNCOUNTED void mplan_host_mark(uint32_t id) {
    record((int)id, 0, 0);
}

size_t mplan_host_read(void *data, size_t size) {
    const uint32_t file = opened(&mplan_host_state.input, "mplan.in", 8, OPEN_READ);
    const size_t read = transfer(SYS_READ, file, data, size);
    record(READ_MARK, (uint32_t)(uintptr_t)data, (uint32_t)read);
    return read;
}

size_t mplan_host_write(const void *data, size_t size) {
    const uint32_t file = opened(&mplan_host_state.output, "mplan.out", 9, OPEN_WRITE);
    return transfer(SYS_WRITE, file, data, size);
}

void mplan_host_print(const char *text) {
    semihost(SYS_WRITE0, text);
}

void mplan_host_start(void) {
    mplan_host_state.input = mplan_host_state.output = mplan_host_state.marks = 0;
}

__attribute__((noreturn)) static void leave(uint32_t code) {
    const uint32_t arguments[2] = {STOPPED_APPLICATION_EXIT, code};
    for (;;) {
        semihost(SYS_EXIT_EXTENDED, arguments);
    }
}

UNCOUNTED void mplan_host_exit(int code) {
    const uint32_t *lowest = mplan_stack_limit;
    while (lowest < mplan_stack_top && *lowest == MPLAN_STACK_PAINT) {
        lowest++;
    }
    record(LAST_MARK, (uint32_t)((uintptr_t)lowest - (uintptr_t)mplan_stack_limit), 0);
    leave((uint32_t)code & 0xFFu);
}

void mplan_host_fault(const uint32_t *frame) {
    const int valid = frame >= mplan_stack_limit && frame + 8 <= mplan_stack_top;
    const uint32_t report[6] = {(uint32_t)(uintptr_t)frame, valid ? frame[6] : 0, CFSR, HFSR,
                                MMFAR, BFAR};
    int file = 0;
    transfer(SYS_WRITE, opened(&file, "mplan.fault", 11, OPEN_WRITE), report, sizeof report);
    leave(0xFFu);
}
