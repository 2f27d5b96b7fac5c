/* What a program under emulation can ask of the machine that emulates it.
 *
 * The calls use Arm semihosting, so the same image runs in every emulator and under a debugger.
 */
#ifndef MPLAN_HOST_H
#define MPLAN_HOST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Read the next `size` bytes of the run's input; returns how many there were. */
size_t mplan_host_read(void *data, size_t size);

/* Append `size` bytes to the run's output; returns how many were accepted. */
size_t mplan_host_write(const void *data, size_t size);

/* Print a text to the run's console. */
void mplan_host_print(const char *text);

/* Note the number of instructions so far under the name `id` (below UINT32_MAX - 1). The call itself
 * is not counted, so two marks around a piece of code measure that code alone. */
void mplan_host_mark(uint32_t id);

/* End the run; the low 8 bits of `code` are its exit code. Returning from main does the same. */
__attribute__((noreturn)) void mplan_host_exit(int code);

#ifdef __cplusplus
}
#endif

#endif
