/* The part of string.h that exists without an operating system; the compiler's runtime has it. */
#ifndef MPLAN_STRING_H
#define MPLAN_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);

#endif
