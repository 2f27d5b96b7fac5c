/* A TCG plugin for QEMU: notes a run in the file whose path is its argument `trace`.
 *
 * The declarations are those of QEMU's plugin API (include/qemu/qemu-plugin.h, documented in
 * docs/devel/tcg-plugins.rst) that have been the same since its version 1. MPLAN_PLUGIN_API is the
 * version that the QEMU at hand asks for. User data is an integer, 64 bits wide.
 */
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "trace.h"

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint32_t meminfo;

enum { NO_REGISTERS = 0, LOADS_AND_STORES = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*call)(uint64_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*call)(unsigned, void *), int flags,
                                          void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*call)(unsigned, void *),
                                            int flags, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
                                      void (*call)(unsigned, meminfo, uint64_t, void *), int flags,
                                      int which, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
unsigned qemu_plugin_mem_size_shift(meminfo);
_Bool qemu_plugin_mem_is_store(meminfo);

EXPORT int qemu_plugin_version = MPLAN_PLUGIN_API;

static struct trace *trace;
static int with_memory;

static void *pair(uint64_t high, uint64_t low) {
    return (void *)(uintptr_t)(high << 32 | low);
}

static void on_block(unsigned cpu, void *data) {
    (void)cpu;
    note_block(trace, (uintptr_t)data & 0xFFFFFFFFu, (uintptr_t)data >> 32);
}

static void on_step(unsigned cpu, void *data) {
    (void)cpu;
    note_step(trace, (uintptr_t)data & 0xFFFFFFFFu, (uintptr_t)data >> 32);
}

static void on_access(unsigned cpu, meminfo info, uint64_t address, void *pc) {
    (void)cpu;
    note_access(trace, (uintptr_t)pc, address, 1ull << qemu_plugin_mem_size_shift(info),
                qemu_plugin_mem_is_store(info));
}

static void on_translation(uint64_t id, struct qemu_plugin_tb *block) {
    const size_t n = qemu_plugin_tb_n_insns(block);
    (void)id;
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        const uint64_t address = qemu_plugin_insn_vaddr(instruction);
        const u32 step = step_of(trace, address);
        if (i == 0) {
            qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, NO_REGISTERS, pair(n, address));
        }
        if (step) {
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_step, NO_REGISTERS, pair(n - i, step));
        }
        if (with_memory) {
            qemu_plugin_register_vcpu_mem_cb(instruction, on_access, NO_REGISTERS, LOADS_AND_STORES,
                                             (void *)(uintptr_t)address);
        }
    }
}

static struct trace *opened(const char *path) {
    struct stat status;
    const int file = open(path, O_RDWR);
    if (file < 0 || fstat(file, &status) != 0) {
        return 0;
    }
    void *memory = mmap(0, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return memory == MAP_FAILED ? 0 : memory;
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int count, char **arguments);
EXPORT int qemu_plugin_install(uint64_t id, const void *info, int count, char **arguments) {
    (void)info;
    for (int i = 0; i < count; i++) {
        if (strncmp(arguments[i], "trace=", 6) == 0) {
            trace = opened(arguments[i] + 6);
        } else if (strcmp(arguments[i], "memory=on") == 0) {
            with_memory = 1;
        }
    }
    if (!trace) {
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}
