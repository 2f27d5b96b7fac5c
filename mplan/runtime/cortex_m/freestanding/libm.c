/* Float functions that the compiler's runtime lacks, accurate to about 2 ulp.
 *
 * The polynomials are minimax fits of our own (Remez exchange in 40 digits).
 */
#include <math.h>
#include <stdint.h>

/* Round to the nearest integer, ties to even: above 2^23 every float is one. */
float rintf(float x) {
    const float shift = copysignf(8388608.0f, x);
    if (!(fabsf(x) < 8388608.0f)) {
        return x;
    }
    volatile float moved = x + shift; /* volatile, so that the sum is rounded to float */
    return copysignf(moved - shift, x);
}

float nearbyintf(float x) {
    return rintf(x);
}

long lrintf(float x) {
    return (long)rintf(x);
}

long lroundf(float x) {
    return (long)roundf(x);
}

/* x + x^2 p(x) near zero, where the subtraction would cancel. */
float expm1f(float x) {
    if (!(fabsf(x) < 0.36f)) {
        return expf(x) - 1.0f;
    }
    float p = 1.9912819681487375e-4f;
    p = p * x + 1.3937183926810493e-3f;
    p = p * x + 8.333278244161954e-3f;
    p = p * x + 4.166643182413026e-2f;
    p = p * x + 1.6666666779429956e-1f;
    p = p * x + 0.5f;
    return copysignf(x + x * x * p, x);
}

/* log(u) corrected for the rounding of u = 1 + x. Source: D. Goldberg, "What every computer
 * scientist should know about floating-point arithmetic", 1991, theorem 4. */
float log1pf(float x) {
    volatile float sum = 1.0f + x;
    const float u = sum;
    if (u == 1.0f || u == INFINITY) {
        return x;
    }
    return logf(u) * (x / (u - 1.0f));
}

float tanhf(float x) {
    const float a = fabsf(x);
    if (a >= 0.6f) {
        return copysignf(a > 9.02f ? 1.0f : 1.0f - 2.0f / (expf(2.0f * a) + 1.0f), x);
    }
    const float z = x * x;
    float p = -5.905868728155605e-3f;
    p = p * z + 2.0805384875854767e-2f;
    p = p * z - 5.3786683663220126e-2f;
    p = p * z + 1.3331958243900827e-1f;
    p = p * z - 3.3333299272118244e-1f;
    return copysignf(x + x * z * p, x);
}

/* x + x p(x^2) near zero, else 1 - exp(-x q(x)), as erfc falls like an exponential of a polynomial. */
float erff(float x) {
    const float a = fabsf(x);
    if (a >= 0.92f) {
        float q = 1.1231305126860102e-5f;
        q = q * a - 3.228038658176526e-4f;
        q = q * a + 3.6424591389094775e-3f;
        q = q * a - 2.376206331091133e-2f;
        q = q * a + 1.062368782756585e-1f;
        q = q * a + 6.351513159481357e-1f;
        q = q * a + 1.1286484903771576f;
        return copysignf(a > 3.92f ? 1.0f : 1.0f - expf(-a * q), x);
    }
    const float z = x * x;
    float p = 8.36230965024379e-5f;
    p = p * z - 8.141480939713925e-4f;
    p = p * z + 5.200990034980009e-3f;
    p = p * z - 2.6859413506248684e-2f;
    p = p * z + 1.1283696496415152e-1f;
    p = p * z - 3.7612633861487e-1f;
    p = p * z + 1.28379166659092e-1f;
    return x + x * p;
}

float sinhf(float x) {
    const float a = fabsf(x);
    const float half = copysignf(0.5f, x);
    if (a > 88.0f) {
        const float e = expf(0.5f * a);
        return half * e * e;
    }
    const float e = expm1f(a);
    return half * (e + e / (e + 1.0f));
}

float coshf(float x) {
    const float e = expf(0.5f * fabsf(x));
    if (e > 1e9f) {
        return 0.5f * e * e;
    }
    return 0.5f * (e * e + 1.0f / (e * e));
}

/* 2^(y log2 x) in double: the error of a float logarithm would grow with the result's exponent. */
float powf(float x, float y) {
    const float whole = truncf(y);
    const int integer = whole == y;
    const int odd = integer && fabsf(y) < 16777216.0f && ((int32_t)whole & 1);
    if (y == 0.0f || x == 1.0f) {
        return 1.0f;
    }
    if (isnan(x) || isnan(y)) {
        return NAN;
    }
    if (x < 0.0f && !integer && x != -INFINITY && !isinf(y)) {
        return NAN;
    }
    if (x == -1.0f && isinf(y)) {
        return 1.0f;
    }
    const float size = x == 0.0f ? (y < 0.0f ? INFINITY : 0.0f)
                                 : (float)exp2((double)y * log2((double)fabsf(x)));
    return odd ? copysignf(size, x) : size;
}
