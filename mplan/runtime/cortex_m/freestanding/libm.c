/* Float functions that the compiler's runtime lacks, accurate to about 2 ulp (erfcf: 4).
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

/* Above 1/2, exp(-x^2) t P(t) with t = 1 / (x + 2); x^2 is split into the exact square of x's upper
 * half and the rest, so that the exponential gets no rounded argument. */
float erfcf(float x) {
    if (!(x >= 0.5f)) {
        return 1.0f - erff(x);
    }
    if (x > 10.1f) {
        return 0.0f;
    }
    const float t = 1.0f / (x + 2.0f);
    float p = -3.1357333789498508e1f;
    p = p * t + 7.585870777218462e1f;
    p = p * t - 6.555818476523773e1f;
    p = p * t + 1.9584676027162498e1f;
    p = p * t - 1.4339361421554917f;
    p = p * t + 3.356250963043375f;
    p = p * t + 1.9319315879703314f;
    p = p * t + 1.1302875775114887f;
    p = p * t + 5.641531701307841e-1f;
    const float high = (float)(int32_t)(x * 256.0f) / 256.0f;
    return expf(-high * high) * (expf(-(x - high) * (x + high)) * (t * p));
}

#define PI_2 1.57079632679489662f
#define PI_2_REST (-4.37113883e-8f) /* pi/2 minus its float */

/* x + x^3 p(x^2) up to tan(pi/8), else through atan(x) = pi/4 + atan((x - 1) / (x + 1)) and
 * atan(x) = pi/2 - atan(1/x). */
float atanf(float x) {
    const float a = fabsf(x);
    const float inverse = a > 1.0f ? 1.0f / a : a;
    const int upper = inverse > 0.41421357f;
    const float r = upper ? (inverse - 1.0f) / (inverse + 1.0f) : inverse;
    const float z = r * r;
    float p = -6.466506279952094e-2f;
    p = p * z + 1.0748759769409014e-1f;
    p = p * z - 1.4264498074984763e-1f;
    p = p * z + 1.999955924213514e-1f;
    p = p * z - 3.333333186286673e-1f;
    float angle = r + r * z * p;
    if (upper) {
        angle = 0.5f * PI_2 + (angle + 0.5f * PI_2_REST);
    }
    if (a > 1.0f) {
        angle = PI_2 - (angle - PI_2_REST);
    }
    return copysignf(angle, x);
}

float atan2f(float y, float x) {
    if (isnan(x) || isnan(y)) {
        return NAN;
    }
    if (y == 0.0f) {
        return copysignf(signbit(x) ? 2.0f * PI_2 : 0.0f, y);
    }
    if (x == 0.0f) {
        return copysignf(PI_2, y);
    }
    const float b = fabsf(y), a = fabsf(x);
    const float angle = isinf(a) && isinf(b) ? 0.5f * PI_2 : atanf(b / a);
    return copysignf(signbit(x) ? 2.0f * PI_2 - (angle - 2.0f * PI_2_REST) : angle, y);
}

/* asin(sqrt(z)) / sqrt(z) - 1, for z up to 1/4. */
static float arcsine(float z) {
    float p = 3.8328305906244954e-2f;
    p = p * z + 2.643336261836155e-2f;
    p = p * z + 4.502021514230831e-2f;
    p = p * z + 7.498761620549475e-2f;
    p = p * z + 1.6666673135971577e-1f;
    return p * z;
}

/* The angle of a half: asin(x) = pi/2 - 2 asin(sqrt((1 - x) / 2)). NaN outside of [-1, 1]. */
float asinf(float x) {
    const float a = fabsf(x);
    if (a <= 0.5f) {
        return x + x * arcsine(x * x);
    }
    const float z = 0.5f * (1.0f - a), root = sqrtf(z);
    return copysignf(PI_2 - (2.0f * (root + root * arcsine(z)) - PI_2_REST), x);
}

float acosf(float x) {
    const float a = fabsf(x);
    if (a <= 0.5f) {
        return PI_2 - (x - PI_2_REST + x * arcsine(x * x));
    }
    const float z = 0.5f * (1.0f - a), root = sqrtf(z);
    const float half = root + root * arcsine(z);
    return x > 0.0f ? 2.0f * half : 2.0f * (PI_2 - (half - PI_2_REST));
}

float asinhf(float x) {
    const float a = fabsf(x);
    const float y = a > 4096.0f ? logf(a) + 0.693147182f
                                : log1pf(a + a * a / (1.0f + sqrtf(a * a + 1.0f)));
    return copysignf(y, x);
}

float acoshf(float x) {
    const float t = x - 1.0f;
    return x > 4096.0f ? logf(x) + 0.693147182f : log1pf(t + sqrtf(t * (t + 2.0f)));
}

float atanhf(float x) {
    const float a = fabsf(x);
    return copysignf(0.5f * log1pf(2.0f * a / (1.0f - a)), x);
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
