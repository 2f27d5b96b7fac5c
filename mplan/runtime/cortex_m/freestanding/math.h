/* The float part of math.h, from the compiler's runtime (first block) and libm.c (second block). */
#ifndef MPLAN_MATH_H
#define MPLAN_MATH_H

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define isnan(x) __builtin_isnan(x)
#define signbit(x) __builtin_signbit(x)
#define isinf(x) __builtin_isinf(x)

float ceilf(float x);
float copysignf(float x, float y);
float cosf(float x);
float exp2f(float x);
float expf(float x);
float fabsf(float x);
float floorf(float x);
float fmaf(float x, float y, float z);
float fmaxf(float x, float y);
float fminf(float x, float y);
float fmodf(float x, float y);
float log10f(float x);
float log2f(float x);
float logf(float x);
float roundf(float x);
float sinf(float x);
float sqrtf(float x);
float tanf(float x);
float truncf(float x);
double exp2(double x);
double log2(double x);

float acosf(float x);
float acoshf(float x);
float asinf(float x);
float asinhf(float x);
float atan2f(float y, float x);
float atanf(float x);
float atanhf(float x);
float coshf(float x);
float erfcf(float x);
float erff(float x);
float expm1f(float x);
float log1pf(float x);
long lrintf(float x);
long lroundf(float x);
float nearbyintf(float x);
float powf(float x, float y);
float rintf(float x);
float sinhf(float x);
float tanhf(float x);

#endif
