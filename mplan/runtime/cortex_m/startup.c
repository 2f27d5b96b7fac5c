/* From reset to main, and from a fault to the host, on any Cortex-M.
 *
 * The stack lies at the bottom of the RAM: an overflow leaves the memory and faults, in the place of
 * silently overwriting data.
 */
#include <stdint.h>

#include "mplan_host.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define CPACR REGISTER(0xE000ED88u)

extern uint32_t mplan_stack_limit[], mplan_stack_top[];
extern uint32_t mplan_data_start[], mplan_data_end[], mplan_data_image[];
extern uint32_t mplan_bss_start[], mplan_bss_end[];

int main(void);
void mplan_host_start(void);
__attribute__((noreturn)) void mplan_host_fault(const uint32_t *frame);
__attribute__((noreturn)) void Reset_Handler(void);
void Fault_Handler(void);

__attribute__((noinline)) static void prepare_memory(void) {
    const uint32_t *from = mplan_data_image;
    for (uint32_t *to = mplan_data_start; to < mplan_data_end; to++, from++) {
        *to = *from;
    }
    for (volatile uint32_t *to = mplan_bss_start; to < mplan_bss_end; to++) {
        *to = 0;
    }
    uint32_t *here = __builtin_frame_address(0);
    for (volatile uint32_t *to = mplan_stack_limit; to < here - 16; to++) {
        *to = MPLAN_STACK_PAINT;
    }
}

void Reset_Handler(void) {
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    CPACR |= 0xFu << 20;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    prepare_memory();
    mplan_host_start();
    mplan_host_exit(main());
}

/* The stack pointer may be the cause of the fault, so the report runs on a fresh stack. */
__attribute__((naked)) void Fault_Handler(void) {
    __asm__ volatile(
        "mov r0, sp\n\t"
        "ldr r1, =mplan_stack_top\n\t"
        "mov sp, r1\n\t"
        "ldr r1, =mplan_host_fault\n\t"
        "bx r1\n\t");
}

typedef void (*Handler)(void);
typedef union {
    uint32_t *stack;
    Handler handler;
} Vector;

__attribute__((section(".vectors"), used)) const Vector mplan_vectors[16] = {
    {.stack = mplan_stack_top},   {.handler = Reset_Handler}, {.handler = Fault_Handler},
    {.handler = Fault_Handler},   {.handler = Fault_Handler}, {.handler = Fault_Handler},
    {.handler = Fault_Handler},   {.handler = Fault_Handler}, {.handler = Fault_Handler},
    {.handler = Fault_Handler},   {.handler = Fault_Handler}, {.handler = Fault_Handler},
    {.handler = Fault_Handler},   {.handler = Fault_Handler}, {.handler = Fault_Handler},
    {.handler = Fault_Handler},
};
